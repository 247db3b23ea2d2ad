"""What salvage has recovered from a file, sorted by queue and seq in a scratch database.

A million rows do not fit into memory, and they come in the order of pages, in several versions
and with deleted ones among them; the first version that proves itself counts.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue.batches import OBJECT_NAME, Batch
from open_llm_proxy.queue.checksums import checksum, seq_of
from open_llm_proxy.queue.damage.pages import Record, Value
from open_llm_proxy.queue.damage.ranges import Range, runs

_LINE_FRONT = re.compile(rb'\{"queue_id":"([0-9a-f]{16})","seq":')


@dataclass(frozen=True, slots=True)
class OpenCall:
    """The kept head of the entry that closes a call, under its request row's seq.

    One that is not current was found on pages that are used otherwise by now: it was closed, if
    what took its place is not what is damaged.
    """

    seq: int
    head: bytes
    is_current: bool


class RecoveredRows:
    """Made on the path of a scratch file, and to be closed.

    `call_field` is the field of a row that names its call, near the row's front. `queue_ids` are
    the queues of which something was found, that of most rows first; known after `finish`.
    """

    def __init__(self, scratch: Path, call_field: str) -> None:
        self._call_id = re.compile(rb'"%b":"([^"\\]+)"' % call_field.encode())
        self.queue_ids: list[str] = []
        self.interrupted_tail = b"}"
        self._batches: dict[int, Batch] = {}
        self._open_calls: dict[int, OpenCall] = {}
        self._database = sqlite3.connect(scratch, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE rows (queue_id TEXT, seq INTEGER, timestamp_ms INTEGER, call BLOB,"
            " line BLOB, PRIMARY KEY (queue_id, seq))",
            "BEGIN",
        ):
            self._database.execute(statement)

    def close(self) -> None:
        self._database.close()

    def add(self, record: Record) -> None:
        """Take in what proves to be a row, an open call, a batch or the tail of the lines that
        close open calls; the rest is dropped."""
        key, columns = record.rowid, record.columns
        if len(columns) == 4:
            _, timestamp_ms, crc32, blob = columns
            if not isinstance(timestamp_ms, int) or not isinstance(blob, bytes):
                return
            if self._add_row(timestamp_ms, crc32, blob) or key is None:
                return
            is_better = record.is_current or key not in self._open_calls
            if is_better and checksum(blob, key, timestamp_ms) == crc32:
                self._open_calls[key] = OpenCall(key, blob, record.is_current)
        elif len(columns) == 3 and columns[0] == b"interrupted_tail":
            _, crc32, tail = columns
            if isinstance(tail, bytes) and checksum(tail, "interrupted_tail") == crc32:
                self.interrupted_tail = tail
        elif len(columns) == 8 and key is not None:
            _, last, name, md5, size, sink, uploaded, crc32 = columns
            fields = (key, last, _text(name), md5, size, _text(sink), uploaded, crc32)
            batch = Batch.of(fields)
            # Older versions are found too. Nothing takes an upload back.
            if batch and (key not in self._batches or batch.is_uploaded):
                self._batches[key] = batch

    def _add_row(self, timestamp_ms: int, crc32: Value, line: bytes) -> bool:
        front = _LINE_FRONT.match(line)
        queue_id = front[1].decode() if front else ""
        seq = seq_of(queue_id, timestamp_ms, crc32, line)
        if seq is None:
            return False
        self._database.execute(
            "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)",
            (queue_id, seq, timestamp_ms, self._call_of(line), line),
        )
        return True

    def finish(self) -> None:
        """All is taken in; now it may be asked."""
        self._database.execute("CREATE INDEX calls ON rows (call, seq)")
        self._database.execute("COMMIT")
        query = "SELECT queue_id, count(*) FROM rows GROUP BY queue_id"
        known: dict[str, int] = dict(self._database.execute(query))
        for batch in self._batches.values():
            if (named := _queue_of(batch)) is not None:
                known.setdefault(named, 0)
        self.queue_ids = sorted(known, key=lambda queue_id: (-known[queue_id], queue_id))

    def _call_of(self, line: bytes) -> bytes | None:
        found = self._call_id.search(line)
        return found[1] if found else None

    def batches(self, queue_id: str) -> list[Batch]:
        """Its batches; one that names no queue belongs to that of most rows."""
        return [
            batch
            for batch in self._batches.values()
            if (_queue_of(batch) or self.queue_ids[0]) == queue_id
        ]

    def unclosed_calls(self, queue_id: str) -> list[OpenCall]:
        """Open calls of which no later row was found, in order.

        They name no queue, so they belong to that of most rows.
        """
        if queue_id != self.queue_ids[0]:
            return []
        query = "SELECT 1 FROM rows WHERE call = ? AND seq > ? AND queue_id = ? LIMIT 1"
        return [
            call
            for seq, call in sorted(self._open_calls.items())
            if not self._database.execute(
                query, (self._call_of(call.head), seq, queue_id)
            ).fetchone()
        ]

    def present(self, queue_id: str) -> Iterator[Range]:
        """Which rows were found."""
        query = "SELECT seq FROM rows WHERE queue_id = ? ORDER BY seq"
        return runs(seq for (seq,) in self._database.execute(query, (queue_id,)))

    def times_around(self, queue_id: str, within: Range) -> list[int | None]:
        """The times in ms of the nearest rows that were found before and behind a range."""
        found = []
        for seq, which in zip(within, ("< ? ORDER BY seq DESC", "> ? ORDER BY seq"), strict=True):
            query = f"SELECT timestamp_ms FROM rows WHERE queue_id = ? AND seq {which} LIMIT 1"
            row = self._database.execute(query, (queue_id, seq)).fetchone()
            found.append(row[0] if row else None)
        return found

    def drop(self, queue_id: str, ranges: list[Range]) -> None:
        """Forget these rows."""
        self._database.executemany(
            "DELETE FROM rows WHERE queue_id = ? AND seq BETWEEN ? AND ?",
            [(queue_id, *within) for within in ranges],
        )

    def lines(self, queue_id: str) -> Iterator[bytes]:
        """The rows in order."""
        query = "SELECT line FROM rows WHERE queue_id = ? ORDER BY seq"
        return (line for (line,) in self._database.execute(query, (queue_id,)))

    def totals(self, queue_id: str) -> tuple[int, int, int | None, int | None]:
        """Number and bytes of the rows, the oldest and the newest time in ms."""
        query = (
            "SELECT count(*), total(length(line)), min(timestamp_ms), max(timestamp_ms)"
            " FROM rows WHERE queue_id = ?"
        )
        rows, size, oldest, newest = self._database.execute(query, (queue_id,)).fetchone()
        return rows, int(size), oldest, newest


def _queue_of(batch: Batch) -> str | None:
    found = OBJECT_NAME.fullmatch(batch.name)
    return found[2] if found else None


def _text(value: Value) -> object:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
