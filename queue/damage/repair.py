"""Repair of a closed queue, without losing a row that is still there.

A flipped bit in a row's key puts the row where no look-up finds it, and can hide its neighbours
too; one in a batch's record makes it lie about what was uploaded. So before any row is called
lost, the rows are walked through as they lie on the pages, each is believed by its own line and
CRC-32 alone, and the table is written anew in that order. All in one transaction, by an owner
that has kept a copy of the file as it was found; the process that made the queue ends instead.

Repair runs by itself, so it takes nothing from pages that are free. What the ledger leaves
undecided counts as uploaded where rows are gone as an acknowledgement deletes them, from the
front of a range or all of it; else a `damaged` row takes their place. Where there are rows they
are sealed again, into the same objects if the damage was in the record only.
"""

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.checksums import checksum, seq_of
from open_llm_proxy.queue.damage import inspection, ledger, wal
from open_llm_proxy.queue.damage.ledger import Ledger, Span, State
from open_llm_proxy.queue.damage.ranges import Range, runs
from open_llm_proxy.queue.damage.verification import is_sound_with
from open_llm_proxy.queue.damaged_rows import Damage, neighbour_ms
from open_llm_proxy.queue.database import Database, ExecuteMany
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.meta import Meta

log = logging.getLogger(__name__)

Row = tuple[int, int, int, bytes]

# What SQLite's own check says of keys out of order and of values that have lost their type. The
# rows are all there then; anything else may mean that pages full of rows are out of reach.
_REPAIRABLE = re.compile(r"Rowid \S+ out of order| value in ")

# Each of them is replaced by a row. More than these no disk loses and keeps a sound record of.
MAX_LOST_ROWS = 1_000_000

REASONS = {
    State.BAD: "its CRC-32 does not match",
    State.MISSING: "it is missing",
    State.UNDECIDED: "it is missing, and the record that says whether it was uploaded is lost",
}


def repair_log(folder: Path) -> None:
    """Repair the write-ahead log of the closed queue in `folder`, whose lock the caller holds.

    To be called before the queue is opened; a repaired log is kept as it was found. What may be
    missing because of the log's state is logged. Raises what `repair_folder` does.
    """
    log_is_there = (folder / schema.WAL_NAME).exists()
    with _explaining(folder):
        found = _repair_wal(folder)
        with inspection.opened(folder) as database:
            next_seq = ledger.outline(database).last + 1
            if found.damaged or found.doubtful:
                log.error("Queue %s: %s", folder.name, wal.unread(found, next_seq))
            elif not log_is_there and not inspection.ended_cleanly(database):
                log.warning("Queue %s: %s", folder.name, wal.missing(next_seq))


def is_sound(folder: Path) -> bool:
    """Look at the closed queue in `folder`, changing nothing: can its tables be believed?

    At its pages, at the order of its batches, and at the outer rows; whatever else may be
    damaged is found when it is read. Raises `NotAQueue` where the pages are so damaged that
    nobody can tell how many rows there were, or `OtherSchema`.
    """
    with _explaining(folder), inspection.opened(folder) as database:
        return _is_in_order(database, Meta.read(database))


def repair_folder(folder: Path) -> int:
    """Repair the closed queue in `folder`, whose lock the caller holds: its log, then its tables.

    To be called where it is not sound, or where reading it has shown damage, and after a copy
    was kept. Returns how many rows were lost and are replaced by `damaged` rows. Raises what
    `is_sound` does, and `QueueFull` or `QueueFolderUnusable` where the disk is at fault.
    """
    with _explaining(folder):
        _repair_wal(folder)
        database = Database(schema.open_exclusively(folder / schema.DATABASE_NAME))
        with closing(database):
            return _repair_tables(database, folder.parent)


def _repair_wal(folder: Path) -> wal.WalCondition:
    path = folder / schema.DATABASE_NAME
    # Another program's file, or one from a newer release, is left as it is.
    schema.check_header(path)
    return wal.repair_wal(folder / schema.WAL_NAME, folder.parent, partial(is_sound_with, path))


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise schema.explained(folder / schema.DATABASE_NAME, error) from error


def _is_in_order(database: Database, meta: Meta) -> bool:
    if not _are_pages_sound(database):
        return False
    account = ledger.outline(database, meta)
    if account.bad_records or account.count(State.MISSING, State.UNDECIDED):
        return False
    # Rows without a record are sound if they are there: a repair leaves them to be sealed again.
    query = "SELECT count(*) FROM rows WHERE seq BETWEEN ? AND ?"
    for first, last in account.ranges_without_record:
        if database.number(query, first, last) != last - first + 1:
            return False
    return all(
        seq_of(meta.queue_id, *columns) == seq
        for order in ("", "DESC")
        for seq, *columns in database.rows(
            f"SELECT seq, timestamp_ms, crc32, line FROM rows ORDER BY seq {order} LIMIT 1"
        )
    )


def _are_pages_sound(database: Database) -> bool:
    found = "\n".join(str(row[0]) for row in database.rows("PRAGMA quick_check"))
    faults = [line for line in found.splitlines() if line != "ok" and not line.startswith("***")]
    if grave := [line for line in faults if not _REPAIRABLE.search(line)]:
        raise NotAQueue(f"the queue's file is damaged: {grave[0]}")
    return not any("out of order" in line for line in faults)


def _repair_tables(database: Database, root: Path) -> int:
    """Write the tables anew from what can be trusted, and fill every gap with `damaged` rows.

    What was found in their place is kept below `root`. Returns how many rows are lost.
    """
    _are_pages_sound(database)
    meta = Meta.read(database)
    damage = Damage(root, meta)
    with database.transaction(database.file_bytes) as execute_many:
        account = _rows_gathered(database, meta, damage, execute_many)
        acknowledged, lost = decided(account)
        rows = sum(span.last - span.first + 1 for span in lost)
        if rows > MAX_LOST_ROWS:
            raise NotAQueue(f"its tables tell of {rows:,} rows that are not there")
        bad_records = [(key,) for key in account.bad_records]
        execute_many("DELETE FROM batches WHERE rowid = ?", bad_records)
        execute_many(
            f"INSERT INTO batches ({schema.BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [Batch(first, last, "", b"", 0, None, True).record for first, last in acknowledged],
        )
        execute_many("DELETE FROM repaired WHERE seq BETWEEN ? AND ?", account.leftover)
        execute_many(
            "INSERT INTO repaired VALUES (?, ?, ?, ?)", _replacements(database, meta, damage, lost)
        )
        database.execute("DROP TABLE rows")
        database.execute("ALTER TABLE repaired RENAME TO rows")
        # After the checkpoint nothing is in the log alone, so it may be gone at the next start.
        database.execute("UPDATE meta SET value = 1 WHERE name = 'closed_cleanly'")
        reach("repair-written")
    database.checkpoint()
    reach("repaired")
    log.error(
        "Repaired queue %s: %d damaged batch records, %d rows lost and replaced by rows of type "
        "damaged; a copy of the file as it was found is in quarantine/",
        *(meta.queue_id, len(bad_records), rows),
    )
    return rows


def _rows_gathered(
    database: Database, meta: Meta, damage: Damage, execute_many: ExecuteMany
) -> Ledger:
    """Fill a new table with all rows that prove themselves; returns the account of the file."""
    database.execute(schema.ROWS_TABLE.format(name="repaired"))
    bad_rows: set[int] = set()
    execute_many(
        "INSERT OR IGNORE INTO repaired VALUES (?, ?, ?, ?)",
        _intact_rows(database, meta, damage, bad_rows),
    )
    batches, bad_records = ledger.batch_records(database, meta)
    for key, columns in bad_records.items():
        damage.keep(f"{key:010d}.batch", repr(columns))
    with closing(database.iterate("SELECT seq FROM repaired ORDER BY seq")) as cursor:
        present = list(runs(seq for (seq,) in cursor))
    return Ledger(
        batches,
        present,
        runs(sorted(bad_rows)),
        bad_records=list(bad_records),
        newest_open_call=ledger.newest_open_call(database),
    )


def decided(account: Ledger) -> tuple[list[Range], list[Span]]:
    """The undecided ranges that count as uploaded, and the rows that are lost.

    Nothing but an acknowledgement deletes a range whole. Where only the front of one is gone,
    that counts if a damaged record shows that there was a batch.
    """
    acknowledged: list[Range] = []
    lost: list[Span] = []
    for span in account.spans:
        is_whole = span.last == span.stretch.last or bool(account.bad_records)
        if span.state is State.UNDECIDED and span.first == span.stretch.first and is_whole:
            acknowledged.append((span.first, span.last))
        elif span.state in REASONS:
            lost.append(span)
    return acknowledged, lost


def _intact_rows(
    database: Database, meta: Meta, damage: Damage, bad_rows: set[int]
) -> Iterator[Row]:
    """The rows in the order of the pages, each under the seq that its own line names."""
    query = f"SELECT {schema.ROW_KEY}, timestamp_ms, crc32, line FROM rows"
    with closing(database.iterate(query)) as cursor:
        for key, timestamp_ms, crc32, line in cursor:
            seq = seq_of(meta.queue_id, timestamp_ms, crc32, line)
            if seq is None:
                damage.keep(f"{key:010d}.row", line)
                bad_rows.add(key)
            else:
                yield seq, timestamp_ms, crc32, line


def _replacements(
    database: Database, meta: Meta, damage: Damage, lost: list[Span]
) -> Iterator[Row]:
    for span in lost:
        timestamp_ms = neighbour_ms(database, meta, span.first, "repaired")
        for seq in range(span.first, span.last + 1):
            line = damage.line(seq, timestamp_ms, REASONS[span.state])
            yield seq, timestamp_ms, checksum(line, timestamp_ms), line
