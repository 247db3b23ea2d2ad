"""Processes that own a queue and can be killed for real, at a named fault point or at any moment.

They are forked from a server that has imported everything, so that each costs milliseconds. What
a process was promised is noted in a file before it goes on, by a write that outlives a SIGKILL.
"""

import asyncio
import logging
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from open_llm_proxy.queue import fault_points, folder
from open_llm_proxy.queue.log_queue import LogQueue
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.sinks import DirectorySink
from queue_fixtures import NOON_MS, WINDOW_SECONDS, birth, entry, interrupted, rows_of
from waiting import wait_until

KILLED = -9
Work = Callable[..., None]


def _fork_server() -> multiprocessing.context.ForkServerContext:
    """Starts the server, which in Python 3.11 finds this module by PYTHONPATH alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["queue_process"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def start(work: Work, *arguments: object, dies_at: str = "", count: int = 1) -> BaseProcess:
    """Run `work` in a process of its own, which dies when it gets to `dies_at` for the
    `count`-th time."""
    process = _fork_server().Process(target=_run, args=(work, arguments, dies_at, count))
    process.start()
    return process


def run(work: Work, *arguments: object, dies_at: str = "", count: int = 1) -> int:
    """The same to its end; returns the exit code, which is `KILLED` after a SIGKILL."""
    process = start(work, *arguments, dies_at=dies_at, count=count)
    process.join(60)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{work.__name__} did not end, dying at {dies_at or 'nothing'}")
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _run(work: Work, arguments: tuple[object, ...], dies_at: str, count: int) -> None:
    logging.disable(logging.CRITICAL)
    if dies_at:
        fault_points._countdown[dies_at] = count
    work(*arguments)


def finish(root: str, objects: str) -> None:
    """Start on the queues below `root`, finish all that are dead, and end."""
    asyncio.run(_finish(Path(root), Path(objects)))


async def _finish(root: Path, objects: Path) -> None:
    queue = _started(root, objects, window_seconds=WINDOW_SECONDS)
    await _alone(root, queue)
    await queue.close(10)


async def _alone(root: Path, queue: LogQueue) -> None:
    """Wait until every other queue below `root` is finished."""
    await wait_until(
        lambda: folder.queue_folders(root) == [root / queue.queue_id],
        "all dead queues are finished",
        timeout_seconds=25,
        poll_seconds=0.005,
    )


def call(root: str, objects: str, record: str, calls: int, size_bytes: int, rounds: int) -> None:
    """Make calls, note what was promised of each, flush after each round, and end."""
    asyncio.run(_call(Path(root), Path(objects), Path(record), calls, size_bytes, rounds))


async def _call(
    root: Path, objects: Path, record: Path, calls: int, size_bytes: int, rounds: int
) -> None:
    queue = _started(root, objects, window_seconds=WINDOW_SECONDS)
    notes = _notes(record)

    async def one(number: str, at_ms: int) -> None:
        opened = queue.open([entry(number, at_ms, "request", size_bytes)],
                            interrupted(number, at_ms))  # fmt: skip
        await opened.stored
        _note(notes, f"stored {number}")
        await opened.close(entry(number, at_ms + 1000, "response", size_bytes))
        _note(notes, f"closed {number}")

    for turn in range(rounds):
        at_ms = NOON_MS + turn * WINDOW_SECONDS * 1000
        await asyncio.gather(*(one(f"{queue.queue_id}/{turn}/{n}", at_ms) for n in range(calls)))
        await queue.flush()
    await _alone(root, queue)
    await queue.close(10)


def call_until_killed(root: str, objects: str, record: str) -> None:
    """Make calls and drain them in windows of a second until somebody kills this process."""
    asyncio.run(_call_until_killed(Path(root), Path(objects), Path(record)))


async def _call_until_killed(root: Path, objects: Path, record: Path) -> None:
    queue = _started(root, objects, window_seconds=1)
    notes = _notes(record)

    async def caller(name: int) -> None:
        turn = 0
        while True:
            number = f"{queue.queue_id}/{name}/{turn}"
            at_ms = NOON_MS + turn * 40
            opened = queue.open([entry(number, at_ms, "request")],
                                interrupted(number, at_ms))  # fmt: skip
            await opened.stored
            _note(notes, f"stored {number}")
            await opened.close(entry(number, at_ms, "response"))
            _note(notes, f"closed {number}")
            turn += 1

    await asyncio.gather(*(caller(name) for name in range(4)))


def _started(root: Path, objects: Path, window_seconds: int) -> LogQueue:
    return LogQueue.start(
        root,
        birth(window_seconds),
        DirectorySink(objects),
        1 << 30,
        Adoption,
        on_committed=lambda lines: None,
        on_broken=lambda broken: os._exit(70),
    )


def _notes(record: Path) -> int:
    return os.open(record, os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def _note(notes: int, promise: str) -> None:
    os.write(notes, f"{promise}\n".encode())


def objects_of(folder_of_objects: Path) -> dict[str, bytes]:
    """Key and bytes of every object in a directory."""
    return {
        path.relative_to(folder_of_objects).as_posix(): path.read_bytes()
        for path in sorted(folder_of_objects.rglob("*.jsonl"))
    }


def check(objects: Path, record: Path) -> Counter[str]:
    """Fail unless every promise in `record` is kept by the objects; counts rows by type."""
    rows = rows_of(objects_of(objects).values())
    by_queue: dict[str, list[int]] = defaultdict(list)
    opened: Counter[str] = Counter()
    closed: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_queue[row["queue_id"]].append(row["seq"])
        if row["type"] == "request":
            opened[row["number"]] += 1
        else:
            closed[row["number"]].append(row["type"])
    for queue_id, seqs in by_queue.items():
        assert seqs == list(range(1, len(seqs) + 1)), f"gaps in queue {queue_id}"
    assert set(opened.values()) <= {1}, "a request row is there twice"
    for number in opened:
        assert len(closed[number]) == 1, f"call {number} was closed by {closed[number]}"
    assert closed.keys() <= opened.keys(), "a closing row without its request row"
    for promise in record.read_text().splitlines() if record.exists() else []:
        what, number = promise.split()
        assert opened[number] == 1, f"{promise}: the request row is lost"
        if what == "closed":
            assert closed[number] == ["response"], f"{promise}: but {closed[number]}"
    return Counter(row["type"] for row in rows)
