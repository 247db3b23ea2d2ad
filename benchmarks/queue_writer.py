"""The queue's writer beside a bare sqlite3 loop: commits and entries a second, in one run.

    python benchmarks/queue_writer.py [--seconds 4] [--folder DIR] [--json FILE]

An appender hands one entry over and waits until it is on the disk, as a call does twice. The
loop beside it writes the same rows through the same settings of SQLite (WAL, synchronous=FULL)
and nothing else: no numbering, no checksum, no thread, no event loop. For 32 appenders it puts
32 rows into each commit, which is the most that they can have waiting. `--folder` chooses the
disk, whose fsync decides nearly everything; how long one takes there is measured, too.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.entry import Append, Entry, LogFormat
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.writer import Writer

APPENDERS = (1, 8, 32, 128)
SYNCS = 200
SWITCH_INTERVAL_SECONDS = 0.0005  # what the server sets


@dataclass(frozen=True, slots=True)
class Rate:
    """What one way of writing reached."""

    commits_per_second: float
    entries_per_second: float


def entries(entry_bytes: int) -> Iterator[Entry]:
    """Entries of about that size, each different."""
    for number in count():
        fields = {"type": "request", "request_id": f"{number:016x}", "user_question": ""}
        fields["user_question"] = "x" * (entry_bytes - len(json.dumps(fields)))
        yield Entry(json.dumps(fields).encode(), time.time_ns() // 1_000_000)


async def measure_writer(root: Path, appenders: int, seconds: float, entry_bytes: int) -> Rate:
    """Let `appenders` tasks hand entries to one writer, each waiting for its own."""
    owned = folder.give_birth(root, Meta(300, 16 << 20, LogFormat(b"", b"}", b"{}")))
    groups: list[int] = []
    writer = Writer(Store.open(owned.path), on_committed=lambda lines: groups.append(len(lines)))
    source = entries(entry_bytes)
    begun = time.monotonic()

    async def append() -> None:
        while time.monotonic() < begun + seconds:
            await writer.append(Append((next(source),)))

    await asyncio.gather(*(append() for _ in range(appenders)))
    elapsed = time.monotonic() - begun
    await writer.close()
    owned.remove()
    return Rate(len(groups) / elapsed, sum(groups) / elapsed)


def measure_loop(root: Path, rows_per_commit: int, seconds: float, entry_bytes: int) -> Rate:
    """Write the same rows in a plain loop over one connection."""
    owned = folder.give_birth(root, Meta(300, 16 << 20, LogFormat(b"", b"}", b"{}")))
    connection = schema.open_exclusively(owned.path / schema.DATABASE_NAME)
    connection.execute("PRAGMA wal_autocheckpoint=1000").fetchall()
    source = entries(entry_bytes)
    commits, seq = 0, 0
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        rows = []
        for _ in range(rows_per_commit):
            seq += 1
            entry = next(source)
            rows.append((seq, entry.timestamp_ms, 0, entry.body))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        commits += 1
    elapsed = time.monotonic() - begun
    connection.close()
    owned.remove()
    return Rate(commits / elapsed, seq / elapsed)


def measure_fsync(root: Path, size_bytes: int) -> float:
    """The median of the seconds that writing so many bytes and their fdatasync take."""
    seconds = []
    with (root / "synced").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            begun = time.monotonic()
            file.write(b"x" * size_bytes)
            os.fdatasync(file.fileno())
            seconds.append(time.monotonic() - begun)
    (root / "synced").unlink()
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--entry-bytes", type=int, default=4000)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there, too")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    figures = []
    load_average = os.getloadavg()[0]  # of what else the machine does
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        fsync = measure_fsync(Path(name), arguments.entry_bytes)
        print(f"writing {arguments.entry_bytes} bytes and their fdatasync: {fsync * 1e3:.2f} ms")
        print(f"{'appenders':>9}  {'':<12} {'commits/s':>10} {'entries/s':>10} {'ratio':>6}")
        for appenders in APPENDERS:
            size = arguments.seconds, arguments.entry_bytes
            loop = measure_loop(Path(name), appenders, *size)
            writer = asyncio.run(measure_writer(Path(name), appenders, *size))
            figures.append(
                {"appenders": appenders, "writer": asdict(writer), "bare_sqlite3": asdict(loop)}
            )
            for what, rate in (("bare sqlite3", loop), ("writer", writer)):
                ratio = rate.entries_per_second / loop.entries_per_second
                print(
                    f"{appenders:>9}  {what:<12} {rate.commits_per_second:>10,.0f}"
                    f" {rate.entries_per_second:>10,.0f} {ratio:>6.2f}"
                )
    if arguments.json:
        record = {
            "entry_bytes": arguments.entry_bytes,
            "fdatasync_seconds": fsync,
            "load_average": load_average,
            "rates": figures,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
