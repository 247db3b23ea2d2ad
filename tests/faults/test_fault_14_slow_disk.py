"""Fault 14: the disk is slow or hangs, or nobody reads stdout.

Slow means slow calls and nothing worse: the event loop goes on, memory stays bounded, and what
waited is stored. A blocked stdout is nobody's reason to wait: its lines are dropped and counted,
and the queue has them all.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import syscall_faults
from loop_disk import LoopDisk
from trial import Trial
from waiting import DeadlinePassed, wait_until

pytestmark = pytest.mark.timeout(seconds=120)

MEMORY_MAX_BYTES = 400 * 1024 * 1024


async def healthy(trial: Trial) -> None:
    """`/health` answers within seconds, although the disk does not."""
    async with asyncio.timeout(15):
        await trial.proxy.health()


@pytest.mark.root
@pytest.mark.usefixtures("strace")
async def test_a_slow_fsync_slows_calls_and_nothing_else(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    await trial.proxy.start()
    log = trial.proxy.folder / "strace.txt"
    injection = "fdatasync:delay_exit=300000"
    async with syscall_faults.attached(trial.proxy.server_pid(), injection, log=log):
        async with trial.load(concurrency=32):
            await trial.answered_more(64)
            await healthy(trial)
    assert trial.record.answered.keys() == trial.record.sent
    # 64 calls of two entries each would take 38 s, were each entry synced by itself.
    assert log.read_text().count("fdatasync(") < 2 * len(trial.record.answered)
    await trial.settle()


@pytest.mark.root
async def test_a_frozen_disk_holds_calls_and_the_server_stays_alive(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(queue_folder=loop_disk.root / "queue")
    await trial.proxy.start()
    await trial.calls(10)
    async with trial.load(concurrency=16):
        await trial.answered_more(10)
        with loop_disk.frozen():
            seen = await unchanging(trial)
            for _ in range(4):
                await healthy(trial)
            assert trial.provider.seen() == seen, "a call went on without its entry"
        await trial.answered_more(32)
    assert trial.record.answered.keys() | trial.record.refused == trial.record.sent
    assert trial.proxy.peak_memory_bytes() < MEMORY_MAX_BYTES
    await trial.settle()


async def unchanging(trial: Trial) -> set[int]:
    """The calls that the provider has got, once no further one comes for half a second."""
    while True:
        seen = trial.provider.seen()
        await asyncio.sleep(0.5)
        if trial.provider.seen() == seen:
            return seen


@contextmanager
def unread_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    try:
        yield writing
    finally:
        os.close(writing)
        os.close(reading)


async def called_with_stdout_unread(trial: Trial) -> None:
    """Log more than pipe and buffer hold, and go on making calls."""
    with unread_pipe() as stdout:
        await trial.proxy.start(stdout=stdout)
        async with asyncio.timeout(60):
            assert set(await trial.big_calls(5, megabytes=3)) == {200}
            await trial.calls(40)
        assert trial.record.answered.keys() >= set(range(6, 46))

        async def has_dropped() -> bool:
            return bool((await trial.log())["stdout_lines_dropped"])

        await wait_until(has_dropped, "lines are dropped", 10)
        assert trial.proxy.peak_memory_bytes() < MEMORY_MAX_BYTES
        await trial.finish()


async def test_a_stdout_that_nobody_reads_delays_no_call(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    await called_with_stdout_unread(trial)
    trial.assert_nothing_lost()


async def test_the_same_test_notices_a_stdout_that_blocks(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial(variant="blocking_stdout")
    with unread_pipe() as stdout:
        await trial.proxy.start(stdout=stdout)
        async with trial.load(concurrency=8):
            with pytest.raises(DeadlinePassed):
                await trial.answered_more(200, timeout_seconds=5)
            await trial.killed()
