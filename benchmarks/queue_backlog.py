"""A large backlog: what it costs a start, and how fast and in how much memory it is drained.

    python benchmarks/queue_backlog.py [--rows 1000000] [--folder DIR] [--json FILE]

The queue of a process that was killed is filled with rows, and the real server is started on it
in turn with starts on an empty folder: the time is that from the start of the process to the
first 200 of /ready. Then one server stays and drains the backlog into a directory, which is a
write, an fsync and a rename for each object of 16 MiB; the time is that from /ready to the
removal of the queue's folder. `--folder` chooses the disk.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.entry import Append, Entry, LogFormat
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from proxy_process import ProxyProcess, one_provider
from waiting import wait_until

GROUP = 1000
BEGAN_MS = 1_700_049_600_000
MS_PER_ROW = 20  # 50 rows a second: windows of five minutes hold 30 MB
OBJECT_BYTES = 16 * 1024 * 1024
STARTS = 5
NOWHERE = "http://127.0.0.1:9"  # no call is made


@dataclass(frozen=True, slots=True)
class Figures:
    """What one backlog came to; starts are medians."""

    rows: int
    queue_bytes: int
    start_seconds: float
    start_empty_seconds: float
    drain_seconds: float
    rows_per_second: float
    bytes_per_second: float
    peak_memory_bytes: int
    idle_memory_bytes: int
    objects: int
    load_average: float  # before the first start: what else the machine does


def fill(root: Path, rows: int, row_bytes: int) -> Path:
    """The folder of a killed process's queue."""
    folder.prepare_root(root)
    owned = folder.give_birth(root, Meta(300, OBJECT_BYTES, LogFormat(b"", b"}", b"{}")))
    store = Store.open(owned.path)
    for start in range(0, rows, GROUP):
        numbers = range(start, min(start + GROUP, rows))
        store.commit([Append(tuple(entry(number, row_bytes) for number in numbers))])
        store.checkpoint_if_due()
    store.close(cleanly=False)
    owned.release()
    return owned.path


def entry(number: int, row_bytes: int) -> Entry:
    fields = {"type": "request", "request_id": f"{number:016x}", "user_question": ""}
    fields["user_question"] = "x" * (row_bytes - len(json.dumps(fields)) - 60)
    return Entry(json.dumps(fields).encode(), BEGAN_MS + number * MS_PER_ROW)


async def started(proxy: ProxyProcess) -> float:
    """Start the server; returns the seconds until it takes calls."""
    begun = time.monotonic()
    await proxy.start()
    return time.monotonic() - begun


async def start_seconds(proxy: ProxyProcess) -> float:
    """The same for a server that is killed at once, and leaves the folder as it was."""
    seconds = await started(proxy)
    proxy.kill()
    await proxy.wait()
    return seconds


def objects_of(objects: Path, queue: Path) -> list[Path]:
    """The objects that hold rows of that queue."""
    return list(objects.glob(f"*/*-{queue.name}-*.jsonl"))


def stored_rows(objects: Path, queue: Path) -> int:
    """How many rows they hold, by the ranges in their names."""
    ranges = (path.name.split("-")[4:6] for path in objects_of(objects, queue))
    return sum(int(last) - int(first) + 1 for first, last in ranges)


async def measure(base: Path, rows: int, row_bytes: int) -> Figures:
    config = one_provider(NOWHERE)
    empty = ProxyProcess(base / "empty", config, {"LOG_DIR": str(base / "nothing")})
    full = ProxyProcess(base / "full", config, {"LOG_DIR": str(base / "objects")})
    queue = fill(full.queue_folder, rows, row_bytes)
    size = sum(path.stat().st_size for path in queue.glob("*.db*"))
    load_average = os.getloadavg()[0]
    try:
        starts = [(await start_seconds(empty), await start_seconds(full)) for _ in range(STARTS)]
        await empty.start()
        idle = empty.peak_memory_bytes()
        # The killed ones have drained a little already.
        left = rows - stored_rows(base / "objects", queue)
        await started(full)
        begun = time.monotonic()
        await wait_until(lambda: not queue.exists(), "the backlog is drained", 3600, 0.05)
        seconds = time.monotonic() - begun
        peak = full.peak_memory_bytes()
        await full.stop()
        await empty.stop()
    finally:
        empty.close()
        full.close()
    stored = objects_of(base / "objects", queue)
    lines = sum(path.read_bytes().count(b"\n") for path in stored)
    assert lines == rows, f"{lines} of {rows} rows were stored"
    return Figures(
        rows=rows,
        queue_bytes=size,
        start_seconds=statistics.median(full_start for _, full_start in starts),
        start_empty_seconds=statistics.median(empty_start for empty_start, _ in starts),
        drain_seconds=seconds,
        rows_per_second=left / seconds,
        bytes_per_second=left / rows * sum(path.stat().st_size for path in stored) / seconds,
        peak_memory_bytes=peak,
        idle_memory_bytes=idle,
        objects=len(stored),
        load_average=load_average,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        figures = asyncio.run(measure(Path(name), arguments.rows, arguments.row_bytes))
    print(
        f"{figures.rows:,} rows, {figures.queue_bytes / 1e6:,.0f} MB\n"
        f"  start {figures.start_seconds:.2f} s, on an empty folder"
        f" {figures.start_empty_seconds:.2f} s\n"
        f"  drained in {figures.drain_seconds:.0f} s: {figures.rows_per_second:,.0f} rows/s,"
        f" {figures.bytes_per_second / 1e6:,.0f} MB/s, {figures.objects} objects\n"
        f"  peak memory {figures.peak_memory_bytes / 1e6:.0f} MB,"
        f" of an idle server {figures.idle_memory_bytes / 1e6:.0f} MB"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=1) + "\n")


if __name__ == "__main__":
    main()
