"""The commands ``replay`` and ``queue`` as processes, and queues that killed servers have left."""

import asyncio
import os
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import calls
from open_llm_proxy.queue import fault_points, schema
from open_llm_proxy.queue.durable_files import make_folders
from proxy_process import PROXY_KEY, ProxyProcess

COMMAND = (sys.executable, "-m", "open_llm_proxy.server.commands.cli")
TIMEOUT_SECONDS = 60.0
CALLS = 40  # of each server


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left: its exit code (minus the signal's number after a kill) and output."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()


async def start(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    dies_at: str = "",
    stdout: int = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    """Start the command with no environment but `env`; it is killed when it gets to `dies_at`."""
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})}
    if dies_at:
        environment[fault_points.VARIABLE] = dies_at
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *map(str, arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Ended:
    """What the process has left once it is over."""
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
    except TimeoutError:
        process.kill()
        raise AssertionError("the command did not end") from None
    assert process.returncode is not None
    text = stderr.decode()
    assert "Traceback" not in text, text
    return Ended(process.returncode, stdout or b"", text)


async def run(*arguments: object, env: Mapping[str, str] | None = None, dies_at: str = "") -> Ended:
    """The command from start to end."""
    return await ended(await start(*arguments, env=env, dies_at=dies_at))


@dataclass(slots=True)
class Leavings:
    """Queues of servers that were killed under load, below `root`, and what their clients saw."""

    root: Path
    record: calls.CallRecord


async def leave_queues(
    proxy: ProxyProcess, root: Path, chance: random.Random, count: int
) -> Leavings:
    """Run the server `count` times, each time killed at a random moment among calls.

    Each queue is moved below `root` before the next server starts, which would adopt it.
    """
    leavings = Leavings(root, calls.CallRecord())
    make_folders(root)
    for turn in range(count):
        await proxy.start()
        caller = calls.Caller(proxy.url, PROXY_KEY, options={"pace": 0.02, "delay": 0.2})
        numbers = range(turn * CALLS, (turn + 1) * CALLS)
        load = asyncio.ensure_future(caller.send_all(numbers, leavings.record, concurrency=12))
        answered = len(leavings.record.answered) + chance.randrange(CALLS // 2)
        await leavings.record.answered_at_least(answered, timeout_seconds=60)
        proxy.kill()
        await proxy.wait()
        await load
        for name in proxy.queues():
            left = proxy.queue_folder / name
            if schema.DATABASE_NAME in os.listdir(left):
                shutil.move(left, root / name)
    return leavings
