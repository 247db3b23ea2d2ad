"""What salvage has found in a file, sorted by queue and seq in a scratch database.

A million rows do not fit into memory, and they come in the order of pages, in several versions
and with deleted ones among them; the first version that proves itself counts.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue.checksums import checksum, is_batch_intact, seq_of
from open_llm_proxy.queue.damage.pages import Record, Value
from open_llm_proxy.queue.damage.ranges import Range, runs

_LINE_FRONT = re.compile(rb'\{"queue_id":"([0-9a-f]{16})","seq":')
_OBJECT_NAME = re.compile(r"-([0-9a-f]{16})-\d+-\d+-[0-9a-f]{12}\.jsonl$")


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A sealed range whose record is intact."""

    first: int
    last: int
    sink: str | None
    is_uploaded: bool


@dataclass(frozen=True, slots=True)
class OpenCall:
    """The kept end of a call, under its request row's seq.

    One that is not current was found on pages that are used otherwise by now: it was closed, if
    what took its place is not what is damaged.
    """

    seq: int
    body: bytes
    is_current: bool


class FoundRecords:
    """Made on the path of a scratch file, and to be closed.

    `call_field` is the field of a row that names its call, near the row's front.
    """

    def __init__(self, scratch: Path, call_field: str) -> None:
        self._call_id = re.compile(rb'"%b":"([^"\\]+)"' % call_field.encode())
        self._ids: dict[str, int] = {}
        self._batches: dict[int, tuple[str | None, FoundBatch]] = {}
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

    # Taking in.

    def add(self, record: Record) -> None:
        """Take in what proves to be a row, an open call or a batch; the rest is dropped."""
        rowid = record.rowid
        if len(record.columns) == 4:
            _, timestamp_ms, crc32, blob = record.columns
            if isinstance(timestamp_ms, int) and isinstance(blob, bytes):
                if self._add_row(timestamp_ms, crc32, blob) or rowid is None:
                    return
                if checksum(blob, rowid, timestamp_ms) == crc32:
                    call = OpenCall(rowid, blob, record.is_current)
                    if call.is_current or rowid not in self._open_calls:
                        self._open_calls[rowid] = call
        elif len(record.columns) == 8 and rowid is not None:
            self._add_batch(rowid, record.columns)

    def finish(self) -> None:
        """All is taken in; now it may be asked."""
        self._database.execute("CREATE INDEX calls ON rows (call, seq)")
        self._database.execute("COMMIT")

    def _add_row(self, timestamp_ms: int, crc32: Value, line: bytes) -> bool:
        front = _LINE_FRONT.match(line)
        if front is None:
            return False
        queue_id = front[1].decode()
        seq = seq_of(queue_id, timestamp_ms, crc32, line)
        if seq is None:
            return False
        added = self._database.execute(
            "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)",
            (queue_id, seq, timestamp_ms, self._call_of(line), line),
        )
        self._ids[queue_id] = self._ids.get(queue_id, 0) + added.rowcount
        return True

    def _add_batch(self, first: int, columns: Sequence[Value]) -> None:
        _, last, name, md5, size, sink, uploaded, crc32 = columns
        if not isinstance(name, bytes) or not isinstance(last, int):
            return
        text = name.decode("utf-8", "surrogateescape")
        where = sink.decode("utf-8", "surrogateescape") if isinstance(sink, bytes) else sink
        if not is_batch_intact((first, last, text, md5, size, where, uploaded, crc32)):
            return
        batch = FoundBatch(first, last, str(where) if where is not None else None, uploaded == 1)
        known = self._batches.get(first)
        # Older versions are found too. Nothing takes an upload back.
        if known is None or (batch.is_uploaded and not known[1].is_uploaded):
            queue_id = _OBJECT_NAME.search(text)
            self._batches[first] = queue_id[1] if queue_id else None, batch

    def _call_of(self, line: bytes) -> bytes | None:
        found = self._call_id.search(line)
        return found[1] if found else None

    # Asking.

    def queue_ids(self) -> list[str]:
        """The queues of which something was found, that of most rows first."""
        known = dict(self._ids)
        for queue_id, _ in self._batches.values():
            if queue_id is not None:
                known.setdefault(queue_id, 0)
        return sorted(known, key=lambda queue_id: (-known[queue_id], queue_id))

    def batches(self, queue_id: str) -> list[FoundBatch]:
        """Sealed ranges in order; one that names no queue belongs to that of most rows."""
        main = self.queue_ids()[0]
        found = [batch for owner, batch in self._batches.values() if (owner or main) == queue_id]
        return sorted(found, key=lambda batch: batch.first)

    def unclosed_calls(self, queue_id: str) -> list[OpenCall]:
        """Open calls of which no later row was found, in order.

        They name no queue, so they belong to that of most rows.
        """
        if queue_id != self.queue_ids()[0]:
            return []
        query = "SELECT 1 FROM rows WHERE call = ? AND seq > ? AND queue_id = ? LIMIT 1"
        return [
            call
            for seq, call in sorted(self._open_calls.items())
            if not self._database.execute(
                query, (self._call_of(call.body), seq, queue_id)
            ).fetchone()
        ]

    def newest_seq(self, queue_id: str) -> int:
        """The highest seq that anything tells of."""
        row = self._database.execute("SELECT max(seq) FROM rows WHERE queue_id = ?", (queue_id,))
        highest: int | None = row.fetchone()[0]
        batches = [batch.last for batch in self.batches(queue_id)]
        calls = [call.seq for call in self.unclosed_calls(queue_id)]
        return max([highest or 0, *batches, *calls])

    def present(self, queue_id: str, within: Range) -> Iterator[Range]:
        """Which rows were found between two numbers."""
        query = "SELECT seq FROM rows WHERE queue_id = ? AND seq BETWEEN ? AND ? ORDER BY seq"
        return runs(seq for (seq,) in self._database.execute(query, (queue_id, *within)))

    def rows(self, queue_id: str, within: Range) -> Iterator[tuple[int, bytes]]:
        """(time in ms, line) of the rows found between two numbers, in order."""
        yield from self._database.execute(
            "SELECT timestamp_ms, line FROM rows"
            " WHERE queue_id = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (queue_id, *within),
        )

    def time_before(self, queue_id: str, seq: int) -> int | None:
        """The time in ms of the nearest row that was found before row `seq`."""
        return self._time("seq < ? ORDER BY seq DESC", queue_id, seq)

    def time_after(self, queue_id: str, seq: int) -> int | None:
        return self._time("seq > ? ORDER BY seq", queue_id, seq)

    def _time(self, which: str, queue_id: str, seq: int) -> int | None:
        query = f"SELECT timestamp_ms FROM rows WHERE queue_id = ? AND {which} LIMIT 1"
        found = self._database.execute(query, (queue_id, seq)).fetchone()
        return found[0] if found else None
