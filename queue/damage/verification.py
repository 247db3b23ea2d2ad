"""Reading a queue whole, to know that everything in it is as it was written.

A look (inspection.py) believes the file; here every row is read and checked by its own CRC-32,
the numbers of the rows against the records of what was uploaded, sealed ranges by their MD5, the
pages by SQLite, and the log's frames by theirs. Nothing is changed and one row held at a time.
"""

import hashlib
import itertools
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from open_llm_proxy.queue.checksums import checksum, seq_of
from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.damage.inspection import StoredBatch
from open_llm_proxy.queue.damage.ranges import Range, gaps, joined, runs, spelled
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.schema import PAGE_BYTES, open_image

# More faults of one kind than these are counted and not told one by one.
TOLD = 20
TRIED_MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Verification:
    """What verifying one queue has shown; it is sound where there are no `faults`.

    `doubts` tell of what may be a loss and may be none.
    """

    path: Path
    queue_id: str
    checked_rows: int = 0
    checked_open_calls: int = 0
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.faults


def verify(path: Path) -> Verification:
    """Read the dead queue in the folder `path` whole. Raises `OwnerAlive`."""
    found = Verification(path, path.name)
    with inspection.at_rest(path):
        found.faults.extend(inspection.wal_faults(path))
        try:
            with inspection.opened(path) as database:
                found.doubts.extend(inspection.wal_doubts(path, database))
                _verify(database, found)
        except (QueueError, sqlite3.Error, OSError) as error:
            found.faults.append(inspection.explained(path, error))
    return found


def is_sound_with(path: Path, pages: Mapping[int, bytes], size: int) -> bool | None:
    """Whether the queue's file at `path` has no fault with `pages`, by number, put into it.

    The file would be of `size` pages. None where it is too large to be tried in memory.
    """
    if size * PAGE_BYTES > TRIED_MAX_BYTES:
        return None
    with open(path, "rb") as file:
        image = bytearray(file.read(size * PAGE_BYTES).ljust(size * PAGE_BYTES, b"\0"))
    for number, page in pages.items():
        if number <= size:
            image[(number - 1) * PAGE_BYTES : number * PAGE_BYTES] = page
    found = Verification(path, path.parent.name)
    try:
        database = Database(open_image(image))
        try:
            _verify(database, found)
        finally:
            database.close()
    except (QueueError, sqlite3.Error):
        return False
    return found.is_sound


def _verify(database: Database, found: Verification) -> None:
    found.faults.extend(_page_faults(database))
    meta = Meta.read(database)
    found.queue_id = meta.queue_id
    records = list(inspection.stored_batches(database))
    found.faults.extend(inspection.batch_faults(records))
    batches = [batch for batch in records if batch.is_intact]
    rows = _Rows(database, meta.queue_id, batches)
    uploaded = [(batch.first, batch.last) for batch in batches if batch.is_uploaded]
    missing = list(gaps(joined(uploaded, runs(rows))))
    end = max([rows.last, *(last for _, last in uploaded)])
    if end < (sealed_to := max((batch.last for batch in batches), default=0)):
        missing.append((end + 1, sealed_to))
    if missing:
        found.faults.append(f"rows {_told(iter(missing))} are missing")
    found.checked_rows = rows.checked
    found.faults.extend(rows.faults())
    found.faults.extend(_open_call_faults(database, max(end, sealed_to), found))


class _Rows:
    """Walks through the rows once, gives the seq of each, and notes what is wrong with it."""

    def __init__(self, database: Database, queue_id: str, batches: list[StoredBatch]) -> None:
        self.checked = 0
        self.last = 0
        self._database = database
        self._queue_id = queue_id
        self._bad: list[int] = []
        self._uploaded: list[int] = []
        self._misplaced = 0
        self._changed: list[StoredBatch] = []
        self._batches = list(batches)
        self._digest = hashlib.md5(usedforsecurity=False)

    def __iter__(self) -> Iterator[int]:
        cursor = self._database.iterate(
            "SELECT seq, timestamp_ms, crc32, line FROM rows ORDER BY seq"
        )
        try:
            for seq, timestamp_ms, crc32, line in cursor:
                self.checked += 1
                named = seq_of(self._queue_id, timestamp_ms, crc32, line)
                if named is None:
                    self._bad.append(seq)
                elif named != seq:
                    self._misplaced += 1
                    continue
                self._follow(seq, line)
                # The number of a row that proves nothing counts only where it follows.
                if named is not None or seq == self.last + 1:
                    self.last = seq
                    yield seq
        finally:
            cursor.close()

    def _follow(self, seq: int, line: object) -> None:
        """Check the row against the batch that it lies in."""
        while self._batches and self._batches[0].last < seq:
            self._batches.pop(0)
        if not self._batches or seq < self._batches[0].first:
            return
        batch = self._batches[0]
        if batch.is_uploaded:
            self._uploaded.append(seq)
            return
        if seq == batch.first:
            self._digest = hashlib.md5(usedforsecurity=False)
        self._digest.update(line if isinstance(line, bytes) else b"")
        if seq == batch.last and self._digest.digest() != batch.md5:
            self._changed.append(batch)

    def faults(self) -> Iterator[str]:
        if self._bad:
            yield f"rows {_told(runs(self._bad))} do not match their CRC-32"
        if self._misplaced:
            yield f"{self._misplaced} of the rows stand under the number of another"
        if self._uploaded:
            yield f"rows {_told(runs(self._uploaded))} are there although they were uploaded"
        for batch in self._changed:
            yield f"rows {batch.first} to {batch.last} are not what was sealed"


def _page_faults(database: Database) -> Iterator[str]:
    for (text,) in database.rows(f"PRAGMA integrity_check({TOLD})"):
        for line in str(text).splitlines():
            if line != "ok" and not line.startswith("***"):
                yield f"pages: {line}"


def _open_call_faults(database: Database, last: int, found: Verification) -> Iterator[str]:
    bad = []
    for seq, timestamp_ms, crc32, body in database.rows(
        "SELECT seq, timestamp_ms, crc32, body FROM open_calls ORDER BY seq"
    ):
        found.checked_open_calls += 1
        if checksum(body, seq, timestamp_ms) != crc32:
            bad.append(seq)
        elif seq > last:
            yield f"call {seq} is open and its request row is missing"
    if bad:
        yield f"the kept ends of the open calls {_told(runs(bad))} do not match their CRC-32"


def _told(ranges: Iterator[Range]) -> str:
    first, more = list(itertools.islice(ranges, TOLD)), sum(1 for _ in ranges)
    return spelled(first) + (f" and {more} more ranges" if more else "")
