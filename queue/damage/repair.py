"""Mending a queue's file whose order is damaged, without losing a row that is still there.

A flipped bit in a row's key puts the row where no look-up finds it, and can hide its neighbours
too; one in a batch's record makes it lie about what was uploaded. So before any row is called
missing, the rows are walked through as they lie on the pages, each is believed by its own line
and CRC-32 alone, and the table is written anew in that order. All in one transaction, by an
adopter that has kept a copy of the file as it was found; a living owner ends instead.

What is then decided about a range that no trusted batch covers: where there are rows they are
sealed again, into the same objects if the damage was in the record only; where there is not one
row left, an acknowledgement has deleted them, as nothing else deletes whole ranges.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from open_llm_proxy.queue.checksums import checksum, is_batch_intact, seq_of
from open_llm_proxy.queue.damage.ranges import Range, count
from open_llm_proxy.queue.damaged_rows import Damage, neighbour_ms
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.schema import BATCH_COLUMNS, ROWS_TABLE

log = logging.getLogger(__name__)

Row = tuple[int, int, int, bytes]


# What SQLite's own check says of keys out of order and of values that have lost their type. The
# rows are all there then; anything else may mean that pages full of rows are out of reach.
_MENDABLE = re.compile(r"Rowid \S+ out of order| value in ")


def is_sound(database: Database, meta: Meta) -> bool:
    """A look at every opening: pages, batches that follow each other, and both outer rows.

    Whatever else may be damaged is found when it is read. Raises `NotAQueue` where the pages
    are so damaged that nobody can tell how many rows there were.
    """
    if not _are_pages_sound(database):
        return False
    expected = 1
    for record in database.rows(f"SELECT {BATCH_COLUMNS} FROM batches ORDER BY first"):
        if not is_batch_intact(record) or record[0] != expected:
            return False
        expected = record[1] + 1
    last = expected - 1
    for order in ("", "DESC"):
        for seq, *columns in database.rows(
            f"SELECT seq, timestamp_ms, crc32, line FROM rows ORDER BY seq {order} LIMIT 1"
        ):
            if seq_of(meta.queue_id, *columns) != seq:
                return False
            last = max(last, seq)
    return newest_open_call(database) <= last


def _are_pages_sound(database: Database) -> bool:
    found = "\n".join(str(row[0]) for row in database.rows("PRAGMA quick_check"))
    faults = [line for line in found.splitlines() if line != "ok" and not line.startswith("***")]
    if grave := [line for line in faults if not _MENDABLE.search(line)]:
        raise NotAQueue(f"the queue's file is damaged: {grave[0]}")
    return not any("out of order" in line for line in faults)


def newest_open_call(database: Database) -> int:
    """The highest seq of an intact open call; 0 where there is none."""
    calls = database.rows("SELECT seq, timestamp_ms, crc32, body FROM open_calls")
    return max((c[0] for c in calls if checksum(c[3], c[0], c[1]) == c[2]), default=0)


def mend(database: Database, meta: Meta, damage: Damage) -> None:
    """Write the tables anew from what can be trusted, and fill every gap with `damaged` rows.

    Raises `NotAQueue` where the pages are so damaged that nobody can tell what there was.
    """
    _are_pages_sound(database)
    found = _Found()
    with database.transaction(database.file_bytes) as execute_many:
        _read_batches(database, damage, found)
        execute_many("DELETE FROM batches WHERE first = ?", [(b,) for b in found.bad_batches])
        database.execute(ROWS_TABLE.format(name="mended"))
        execute_many(
            "INSERT OR IGNORE INTO mended VALUES (?, ?, ?, ?)",
            _intact_rows(database, meta, damage, found),
        )
        uploaded = [(first, last) for first, last, is_uploaded in found.batches if is_uploaded]
        execute_many("DELETE FROM mended WHERE seq BETWEEN ? AND ?", uploaded)
        found.last = max(found.last, newest_open_call(database))
        while found.last + 1 in found.bad_rows:
            found.last += 1
        acknowledged = list(_acknowledged(database, found))
        execute_many(
            f"INSERT INTO batches ({BATCH_COLUMNS}) VALUES (?, ?, '', x'', 0, NULL, 1, ?)",
            [(a, b, checksum(b"", a, b, "", 0, None, 1)) for a, b in acknowledged],
        )
        gaps = _gaps(database, found, acknowledged)
        execute_many(
            "INSERT INTO mended VALUES (?, ?, ?, ?)",
            _replacements(database, meta, damage, found, gaps),
        )
        database.execute("DROP TABLE rows")
        database.execute("ALTER TABLE mended RENAME TO rows")
        reach("mend-written")
    database.checkpoint()
    reach("mended")
    damage.rows += (lost := count(gaps))
    log.error(
        "queue %s was damaged and is mended: %d rows and %d batch records could not be trusted, "
        "%d rows are lost; the file as it was found is in quarantine/",
        *(meta.queue_id, len(found.bad_rows), len(found.bad_batches), lost),
    )


@dataclass(slots=True)
class _Found:
    """What the walk through the file has shown; `last` is the last seq that must be there."""

    last: int = 0
    batches: list[tuple[int, int, bool]] = field(default_factory=list)  # first, last, uploaded
    bad_batches: list[int] = field(default_factory=list)
    bad_rows: set[int] = field(default_factory=set)

    @property
    def sealed_to(self) -> int:
        return max((last for _, last, _ in self.batches), default=0)

    def uncovered(self) -> Iterator[Range]:
        """The ranges up to `last` that no trusted batch covers."""
        expected = 1
        for first, last, _ in [*self.batches, (self.last + 1, self.last, False)]:
            if first > expected:
                yield expected, first - 1
            expected = last + 1


def _read_batches(database: Database, damage: Damage, found: _Found) -> None:
    for record in database.rows(f"SELECT {BATCH_COLUMNS} FROM batches"):
        if is_batch_intact(record):
            found.batches.append((record[0], record[1], bool(record[6])))
        else:
            damage.keep(f"{record[0]:010d}.batch", repr(record))
            found.bad_batches.append(record[0])
    found.batches.sort()
    found.last = max(found.last, found.sealed_to)


def _intact_rows(database: Database, meta: Meta, damage: Damage, found: _Found) -> Iterator[Row]:
    """The rows in the order of the pages, each under the seq that its own line names."""
    cursor = database.iterate("SELECT seq, timestamp_ms, crc32, line FROM rows")
    try:
        for key, timestamp_ms, crc32, line in cursor:
            seq = seq_of(meta.queue_id, timestamp_ms, crc32, line)
            if seq is None:
                damage.keep(f"{key:010d}.row", line)
                found.bad_rows.add(key)
            else:
                found.last = max(found.last, seq)
                yield seq, timestamp_ms, crc32, line
    finally:
        cursor.close()


def _acknowledged(database: Database, found: _Found) -> Iterator[Range]:
    """The uncovered ranges that are empty because their rows were uploaded.

    Only where a batch's record is known to have been: before a trusted batch, or it was found.
    """
    for first, last in found.uncovered():
        present = [seq for seq in found.bad_rows if first <= seq <= last]
        query = "SELECT min(seq) FROM mended WHERE seq BETWEEN ? AND ?"
        if oldest := database.number(query, first, last):
            present.append(oldest)
        if not present and (found.bad_batches or last < found.sealed_to):
            yield first, last
        elif present and found.bad_batches and min(present) > first:
            yield first, min(present) - 1


def _gaps(database: Database, found: _Found, acknowledged: list[Range]) -> list[Range]:
    """The ranges of rows that must be there and are not."""
    done = [(first, last) for first, last, uploaded in found.batches if uploaded]
    gaps: list[Range] = []
    expected = 1
    for first, last in sorted([*done, *acknowledged, (found.last + 1, found.last)]):
        cursor = database.iterate(
            "SELECT seq FROM mended WHERE seq BETWEEN ? AND ? ORDER BY seq", expected, first - 1
        )
        for (seq,) in cursor:
            if seq > expected:
                gaps.append((expected, seq - 1))
            expected = seq + 1
        if first > expected:
            gaps.append((expected, first - 1))
        expected = max(expected, last + 1)
    return gaps


def _replacements(
    database: Database, meta: Meta, damage: Damage, found: _Found, gaps: list[Range]
) -> Iterator[Row]:
    for first, last in gaps:
        timestamp_ms = neighbour_ms(database, meta, first, "mended")
        for seq in range(first, last + 1):
            bad = seq in found.bad_rows
            reason = "its CRC-32 does not match" if bad else "it is missing"
            line = damage.line(seq, timestamp_ms, reason)
            yield seq, timestamp_ms, checksum(line, timestamp_ms), line
