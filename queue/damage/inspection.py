"""Looking at a queue from outside, without changing a byte of it.

A dead owner's queue is read through a connection that cannot write, while its lock keeps owners
away. A living owner's file is not opened at all: its sizes come from stat, and everything else
from that process's /health.
"""

import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.batches import QUEUE_ID
from open_llm_proxy.queue.damage import ledger, wal
from open_llm_proxy.queue.damage.ledger import Ledger, State
from open_llm_proxy.queue.damage.ranges import spelled
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME, open_regular
from open_llm_proxy.queue.errors import NotAQueue, OtherSchema, OwnerAlive, QueueError
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.meta import Meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a look at one queue has shown; what it could not show is None.

    Sizes in bytes, times in ms since the epoch. `rows` and `queued_bytes` are what no store has
    confirmed yet. `sealed_batches` are on no store, `tried_batches` may be on the sink that they
    name, with `tried_rows`. `faults` are sentences; a look does not read the rows themselves, see
    verification.py. `doubts` are sentences about what may be a loss and may be none.
    """

    path: Path
    queue_id: str
    owner_lives: bool = False
    is_other_schema: bool = False
    disk_bytes: int = 0
    rows: int | None = None
    queued_bytes: int | None = None
    oldest_ms: int | None = None
    newest_ms: int | None = None
    open_calls: int | None = None
    uploaded_batches: int | None = None
    uploaded_rows: int | None = None
    sealed_batches: int | None = None
    tried_batches: dict[str, int] | None = None
    tried_rows: dict[str, int] | None = None
    ended_cleanly: bool | None = None
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def inspect(path: Path) -> Inspection:
    """Look at the queue in the folder `path`; whatever its state, the answer is an Inspection."""
    try:
        with at_rest(path):
            return _at_rest(path)
    except OwnerAlive:
        return Inspection(
            path=path, queue_id=path.name, owner_lives=True, disk_bytes=disk_bytes(path)
        )
    except (QueueError, sqlite3.Error, OSError) as error:
        return Inspection(
            path=path,
            queue_id=path.name,
            is_other_schema=isinstance(error, OtherSchema),
            disk_bytes=disk_bytes(path),
            faults=tuple(dict.fromkeys((*wal_faults(path), explained(path, error)))),
        )


def rows_in(path: Path, seconds: float) -> tuple[int | None, int | None]:
    """How many rows lie in the queue in `path`, damaged or of another release as it may be, and the
    time in ms of the first one; None for what cannot be told, or not within `seconds`."""
    file, deadline = path / schema.DATABASE_NAME, time.monotonic() + seconds
    try:
        with at_rest(path):
            log = wal.condition(path / schema.WAL_NAME)
            database = Database(schema.open_unchanged(file, with_wal=log.readable > 0))
            try:
                database.stop_at(deadline)
                return database.number("SELECT count(*) FROM rows"), _time_of(database, "min")
            finally:
                database.close()
    except (QueueError, sqlite3.Error, OSError):
        return None, None


@contextmanager
def at_rest(path: Path) -> Iterator[None]:
    """Keep owners away from the queue in `path` during the block; raises `OwnerAlive`.

    Several may look at once. No lock file is made where there is none: an owner has one.
    """
    try:
        lock = open_regular(path / folder.LOCK_NAME)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OwnerAlive(f"{path} belongs to a process that is still running") from None
        yield
    finally:
        os.close(lock)


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Read the queue in `path`, which must be at rest. Raises `NotAQueue`, `OtherSchema`.

    What the log holds behind damaged frames is not read; `wal_faults` tells of it.
    """
    file = path / schema.DATABASE_NAME
    schema.check_header(file)
    condition = wal.condition(path / schema.WAL_NAME)
    connection = schema.open_unchanged(file, with_wal=condition.readable > 0)
    database = Database(connection)
    try:
        schema.check_tables(connection)
        yield database
    finally:
        database.close()


def wal_faults(path: Path) -> tuple[str, ...]:
    """What is wrong with the log of the queue in `path`, as sentences."""
    try:
        condition = wal.condition(path / schema.WAL_NAME)
    except (QueueError, OSError) as error:
        return (explained(path, error),)
    if not condition.damaged:
        return ()
    return (
        f"{schema.WAL_NAME} has {counted(condition.damaged, 'damaged frame')} with whole ones "
        f"behind, and SQLite reads {condition.readable} of {condition.frames}; "
        "a start of the server or a replay repairs it as far as that is safe",
    )


def wal_doubts(path: Path, database: Database) -> tuple[str, ...]:
    """What may be missing because of the log's state, as sentences; it may be nothing."""
    log = path / schema.WAL_NAME
    condition = wal.condition(log)
    if condition.doubtful and not condition.damaged:
        return (wal.unread(condition, ledger.outline(database).last + 1),)
    if log.exists() or ended_cleanly(database):
        return ()
    return (wal.missing(ledger.outline(database).last + 1),)


def ended_cleanly(database: Database) -> bool:
    """Whether the last owner's last commit was the mark of an orderly end."""
    return bool(database.number("SELECT value FROM meta WHERE name = 'closed_cleanly'"))


def disk_bytes(path: Path) -> int:
    """Size of the queue's file and its log, by stat."""
    total = 0
    for name in (schema.DATABASE_NAME, schema.WAL_NAME):
        try:
            total += (path / name).stat().st_size
        except OSError:
            continue  # not there, or not to be looked at: it counts as nothing
    return total


def explained(path: Path, error: Exception) -> str:
    """`error`, met while looking at the queue in `path`, as a sentence."""
    if isinstance(error, sqlite3.Error):
        return str(schema.explained(path / schema.DATABASE_NAME, error))
    if isinstance(error, OSError):
        return f"{error.filename or path} cannot be read: {error.strerror or error}"
    return str(error)


def record_faults(account: Ledger) -> tuple[str, ...]:
    """What is wrong with the records of batches, as sentences."""
    if account.bad_records:
        keys = [(first, first) for first in account.bad_records]
        return (f"damaged batch record at {spelled(keys)}",)
    if lost := account.ranges_without_record:
        return (f"missing batch record: {spelled(lost)}",)
    return ()


def text_faults(meta: Meta) -> tuple[str, ...]:
    """What is wrong with the texts of the log's format, as sentences."""
    return tuple(f"damaged {name} of the log's format, left out" for name in meta.damaged_texts)


def _at_rest(path: Path) -> Inspection:
    with opened(path) as database:
        meta = Meta.read(database)
        account = ledger.outline(database, meta)
        waiting = [batch for batch in account.batches if not batch.is_uploaded]
        tried, tried_rows = Counter[str](), Counter[str]()
        for batch in waiting:
            if batch.sink is not None:
                tried[batch.sink] += 1
                tried_rows[batch.sink] += batch.rows
        used_bytes = database.file_bytes - database.free_pages * schema.PAGE_BYTES
        return Inspection(
            path=path,
            queue_id=meta.queue_id,
            disk_bytes=disk_bytes(path),
            rows=account.queued_rows,
            queued_bytes=used_bytes if account.queued_rows else 0,
            oldest_ms=_time_of(database, "min"),
            newest_ms=_time_of(database, "max"),
            open_calls=database.number("SELECT count(*) FROM open_calls"),
            uploaded_batches=len(account.batches) - len(waiting),
            uploaded_rows=account.count(State.UPLOADED),
            sealed_batches=len(waiting) - tried.total(),
            tried_batches=dict(tried),
            tried_rows=dict(tried_rows),
            ended_cleanly=ended_cleanly(database),
            faults=(*wal_faults(path), *record_faults(account), *text_faults(meta)),
            doubts=wal_doubts(path, database),
        )


def _time_of(database: Database, which: str) -> int | None:
    query = f"SELECT timestamp_ms FROM rows WHERE seq = (SELECT {which}(seq) FROM rows)"
    found = database.rows(query)
    return found[0][0] if found and isinstance(found[0][0], int) else None


def quarantine_told(path: Path) -> str | None:
    """A sentence where the quarantine below the root `path` holds something."""
    kept = path / QUARANTINE_NAME
    count = len(list(kept.glob("*")))
    return f"{kept} holds {counted(count, 'item')} for a person to look at" if count else None


def queues_at(path: Path) -> list[Path]:
    """The queue folders that `path` means: itself where it holds a queue, else those below it.

    A queue's own folder may have any name, below a root only queue ids count: what is being
    born or removed and the quarantine are left alone. Raises `NotAQueue` where there is no
    folder, or where only a folder below it holds queues: that nothing is left would be wrong.
    OSError where it cannot be read.
    """
    if path.name == schema.DATABASE_NAME and path.is_file():
        return [path.parent]
    if not path.is_dir():
        raise NotAQueue(f"{path} is not a directory: pass LOG_QUEUE_DIR or the folder of a queue")
    if (path / schema.DATABASE_NAME).exists() or QUEUE_ID.fullmatch(path.name):
        return [path]
    if found := folder.queue_folders(path):
        return found
    for below in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        if not folder.RUBBISH.fullmatch(below.name) and _holds_queues(below):
            raise NotAQueue(f"{path} contains no queue itself, but {below} does: pass that")
    return []


def _holds_queues(path: Path) -> bool:
    try:
        return (path / schema.DATABASE_NAME).exists() or bool(folder.queue_folders(path))
    except OSError:
        return False  # lost+found and the like are nobody's queues
