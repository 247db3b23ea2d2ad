"""Lines on stdout: in order, whole, and never in a call's way."""

import asyncio
import os

from open_llm_proxy.server.entries.stdout import StdoutLines
from waiting import wait_until


async def read_all(descriptor: int) -> bytes:
    """Everything until the other end is closed."""
    with os.fdopen(descriptor, "rb") as file:
        return await asyncio.to_thread(file.read)


async def test_lines_come_out_whole_and_in_order() -> None:
    out, into = os.pipe()
    reading = asyncio.create_task(read_all(out))
    stdout = StdoutLines(into)
    lines = [b'{"seq":%d}\n' % i for i in range(5000)]
    for i in range(0, 5000, 7):
        stdout.write(lines[i : i + 7])
        if i % 70 == 0:
            await asyncio.sleep(0)
    await asyncio.to_thread(lambda: None)
    stdout.close(10)
    os.close(into)
    assert await reading == b"".join(lines)
    assert stdout.dropped == 0


async def test_a_reader_that_stands_still_blocks_nobody_and_drops_are_counted() -> None:
    out, into = os.pipe()
    stdout = StdoutLines(into, pending_max_bytes=200_000)
    line = b"x" * 999 + b"\n"
    for _ in range(1000):
        stdout.write([line])
        await asyncio.sleep(0)
    assert stdout.dropped > 0
    reading = asyncio.create_task(read_all(out))
    dropped = stdout.dropped

    async def room_again() -> bool:
        before = stdout.dropped
        stdout.write([b"last\n"])
        await asyncio.sleep(0)
        return stdout.dropped == before

    await wait_until(room_again, "stdout takes lines again", 10)
    stdout.close(10)
    os.close(into)
    printed = (await reading).splitlines()
    assert printed[-1] == b"last"
    assert printed.count(line.strip()) == 1000 - dropped


async def test_a_closed_stdout_is_no_error() -> None:
    out, into = os.pipe()
    os.close(out)
    stdout = StdoutLines(into)
    stdout.write([b"lost\n", b"too\n"])
    await wait_until(lambda: stdout.dropped == 2, "both lines are counted", 10)
    stdout.close(10)
    os.close(into)
