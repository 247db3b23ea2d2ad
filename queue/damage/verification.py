"""Reading a queue whole, to know that everything in it is as it was written.

A look (inspection.py) believes the file's keys; here every row is read and checked by its own
CRC-32, sealed ranges by their MD5, the pages by SQLite, the write-ahead log's frames by their
checksums; and the ledger tells which rows are missing. Nothing is changed, and one row is held
at a time.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from open_llm_proxy.queue.batches import Batch, window_of
from open_llm_proxy.queue.checksums import is_call_intact, seq_of
from open_llm_proxy.queue.damage import inspection, ledger
from open_llm_proxy.queue.damage.ledger import Ledger, State
from open_llm_proxy.queue.damage.ranges import joined, runs, spelled
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.durable_files import read_regular
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.schema import PAGE_BYTES, ROW_KEY, open_image

# More faults of the pages than these are not asked for.
PAGE_FAULTS = 20
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
    image = bytearray(read_regular(path, size * PAGE_BYTES).ljust(size * PAGE_BYTES, b"\0"))
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
    found.faults.extend(_row_faults(database, meta, found))
    found.faults.extend(_open_call_faults(database, found))


def _page_faults(database: Database) -> Iterator[str]:
    for (text,) in database.rows(f"PRAGMA integrity_check({PAGE_FAULTS})"):
        for line in str(text).splitlines():
            if line != "ok" and not line.startswith("***"):
                yield f"SQLite's integrity check: {line}"


def _row_faults(database: Database, meta: Meta, found: Verification) -> Iterator[str]:
    batches, damaged = ledger.batch_records(database, meta)
    rows = _Rows(database, meta, batches)
    present = list(runs(rows))
    found.checked_rows = rows.checked
    account = Ledger(
        batches,
        joined([*present, *runs(sorted(rows.misplaced))]),
        runs(rows.bad),
        bad_records=list(damaged),
        newest_open_call=ledger.newest_open_call(database),
    )
    yield from inspection.record_faults(account)
    yield from inspection.text_faults(meta)
    if missing := account.ranges(State.MISSING):
        yield f"missing: {spelled(missing)}"
    if undecided := account.ranges(State.UNDECIDED):
        found.doubts.append(f"uploaded or missing, no batch record tells: {spelled(undecided)}")
    if rows.bad:
        yield f"CRC-32 mismatch: {spelled(list(runs(rows.bad)))}"
    if rows.misplaced:
        yield f"stored under the key of another row: {spelled(list(runs(sorted(rows.misplaced))))}"
    if account.leftover:
        yield f"in the file although uploaded: {spelled(account.leftover)}"
    for batch in rows.changed:
        yield f"MD5 mismatch of the sealed batch: {spelled([(batch.first, batch.last)])}"


class _Rows:
    """Gives the seqs of intact rows as it walks once through all; then tells what it has seen."""

    def __init__(self, database: Database, meta: Meta, batches: list[Batch]) -> None:
        self.checked = 0
        self.bad: list[int] = []  # keys of rows that do not match their CRC-32
        self.misplaced: list[int] = []  # seqs of rows that lie under another one's key
        self.changed: list[Batch] = []
        self._database = database
        self._meta = meta
        self._sealed = [batch for batch in batches if not batch.is_uploaded]

    def __iter__(self) -> Iterator[int]:
        query = f"SELECT {ROW_KEY}, timestamp_ms, crc32, line FROM rows ORDER BY seq"
        with closing(self._database.iterate(query)) as cursor:
            for batch, rows in groupby(cursor, key=self._batch_of):
                head = self._meta.object_head(window_of(batch.name) or 0) if batch else b""
                digest, intact = hashlib.md5(head, usedforsecurity=False), 0
                for key, timestamp_ms, crc32, line in rows:
                    self.checked += 1
                    seq = seq_of(self._meta.queue_id, timestamp_ms, crc32, line)
                    if seq is None:
                        self.bad.append(key)
                    elif seq != key:
                        self.misplaced.append(seq)
                    else:
                        digest.update(line)
                        intact += 1
                        yield seq
                # A row that is bad or missing is told by itself.
                if batch and intact == batch.rows and digest.digest() != batch.md5:
                    self.changed.append(batch)

    def _batch_of(self, row: tuple[Any, ...]) -> Batch | None:
        """The sealed batch that the row, later than all before, lies in."""
        while self._sealed and self._sealed[0].last < row[0]:
            self._sealed.pop(0)
        return self._sealed[0] if self._sealed and self._sealed[0].first <= row[0] else None


def _open_call_faults(database: Database, found: Verification) -> Iterator[str]:
    bad = []
    for seq, timestamp_ms, crc32, body in database.rows(
        "SELECT seq, timestamp_ms, crc32, head FROM open_calls ORDER BY seq"
    ):
        found.checked_open_calls += 1
        if not is_call_intact(seq, timestamp_ms, crc32, body):
            bad.append(seq)
    if bad:
        yield f"CRC-32 mismatch of the stored heads of open calls: {', '.join(map(str, bad))}"
