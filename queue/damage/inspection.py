"""Looking at a queue from outside, without changing a byte of it.

A dead owner's queue is read through a connection that cannot write, while its lock keeps owners
away. A living owner's file is not opened at all: its sizes come from stat, and everything else
from that process's /health.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.checksums import is_batch_intact
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, QueueError
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.meta import Meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a look at one queue has shown; what it could not show is None.

    Sizes in bytes, times in ms since the epoch. `rows` and `queued_bytes` are what no store has
    confirmed yet. `sealed_batches` are on no store, `tried_batches` may be on the sink that they
    name. `faults` are sentences; a look does not read the rows themselves, see verification.py.
    `doubts` are sentences about what may be a loss and may be none.
    """

    path: Path
    queue_id: str
    owner_lives: bool = False
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
    ended_cleanly: bool | None = None
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A record of table batches; `is_intact` by its own CRC-32."""

    first: int
    last: int
    md5: bytes
    sink: str | None
    is_uploaded: bool
    is_intact: bool

    @property
    def rows(self) -> int:
        return self.last - self.first + 1


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
            disk_bytes=disk_bytes(path),
            faults=(*wal_faults(path), explained(path, error)),
        )


@contextmanager
def at_rest(path: Path) -> Iterator[None]:
    """Keep owners away from the queue in `path` during the block; raises `OwnerAlive`.

    Several may look at once. No lock file is made where there is none: an owner has one.
    """
    try:
        lock = os.open(path / folder.LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
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
    """Read the queue in `path`, which must be at rest. Raises `NotAQueue`, `SchemaFromFuture`.

    What the log holds behind damaged frames is not read; `wal_faults` tells of it.
    """
    file = path / schema.DATABASE_NAME
    schema.check_header(file)
    condition = wal.condition(path / schema.WAL_NAME)
    database = Database(schema.open_unchanged(file, with_wal=condition.readable > 0))
    try:
        yield database
    finally:
        database.close()


def stored_batches(database: Database) -> Iterator[StoredBatch]:
    """The records of sealed ranges in their order, as far as they have the form of one."""
    for record in database.iterate(f"SELECT {schema.BATCH_COLUMNS} FROM batches ORDER BY first"):
        first, last, _, md5, _, sink, uploaded, _ = record
        intact = is_batch_intact(record)
        if intact or (isinstance(last, int) and first <= last):
            yield StoredBatch(first, last, md5, sink, bool(uploaded), intact)


def wal_faults(path: Path) -> tuple[str, ...]:
    """What is wrong with the log of the queue in `path`, as sentences."""
    condition = wal.condition(path / schema.WAL_NAME)
    if not condition.damaged:
        return ()
    return (
        f"{schema.WAL_NAME} has {counted(condition.damaged, 'damaged frame')} with whole ones "
        f"behind, and SQLite reads {condition.readable} of {condition.frames}; "
        "a start of the server or a replay mends it as far as that is safe",
    )


def wal_doubts(path: Path, database: Database) -> tuple[str, ...]:
    """What may be missing because of the log's state, as sentences; it may be nothing."""
    condition = wal.condition(path / schema.WAL_NAME)
    if condition.doubtful and not condition.damaged:
        return (wal.unread(condition, next_seq(database)),)
    return missing_wal(path, database)


def missing_wal(path: Path, database: Database) -> tuple[str, ...]:
    """A sentence where the log of a queue that did not end properly is missing."""
    if ended_cleanly(database) or (path / schema.WAL_NAME).exists():
        return ()
    return (wal.missing(next_seq(database)),)


def next_seq(database: Database) -> int:
    """The seq behind the last row that the file knows of."""
    sealed = database.number("SELECT max(CAST(last AS INTEGER)) FROM batches")
    return max(sealed, database.number("SELECT max(seq) FROM rows")) + 1


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


def batch_faults(batches: list[StoredBatch]) -> tuple[str, ...]:
    """What is wrong with the records of sealed ranges, as sentences."""
    if bad := [str(batch.first) for batch in batches if not batch.is_intact]:
        return (f"the records of the batches from row {', '.join(bad)} are damaged",)
    expected = 1
    for batch in batches:
        if batch.first != expected:
            return (f"a batch begins at row {batch.first} where {expected} belongs",)
        expected = batch.last + 1
    return ()


def _at_rest(path: Path) -> Inspection:
    with opened(path) as database:
        meta = Meta.read(database)
        records = list(stored_batches(database))
        batches = [batch for batch in records if batch.is_intact]
        uploaded = [batch for batch in batches if batch.is_uploaded]
        waiting = [batch for batch in batches if not batch.is_uploaded]
        last = max(next_seq(database) - 1, *(batch.last for batch in batches), 0)
        rows = last - sum(batch.rows for batch in uploaded)
        tried: dict[str, int] = {}
        for batch in waiting:
            if batch.sink is not None:
                tried[batch.sink] = tried.get(batch.sink, 0) + 1
        used_bytes = database.file_bytes - database.free_pages * schema.PAGE_BYTES
        return Inspection(
            path=path,
            queue_id=meta.queue_id,
            disk_bytes=disk_bytes(path),
            rows=rows,
            queued_bytes=used_bytes if rows else 0,
            oldest_ms=_time_of(database, "min"),
            newest_ms=_time_of(database, "max"),
            open_calls=database.number("SELECT count(*) FROM open_calls"),
            uploaded_batches=len(uploaded),
            uploaded_rows=sum(batch.rows for batch in uploaded),
            sealed_batches=len(waiting) - sum(tried.values()),
            tried_batches=tried,
            ended_cleanly=ended_cleanly(database),
            faults=(
                *wal_faults(path),
                *batch_faults(records),
            ),
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
        raise NotAQueue(f"{path} is no folder: name LOG_QUEUE_DIR or the folder of a queue")
    if (path / schema.DATABASE_NAME).exists() or folder.QUEUE_ID.fullmatch(path.name):
        return [path]
    if found := folder.queue_folders(path):
        return found
    for below in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        if not folder.RUBBISH.fullmatch(below.name) and _holds_queues(below):
            raise NotAQueue(f"{path} holds no queue itself, but {below} does: name that")
    return []


def _holds_queues(path: Path) -> bool:
    try:
        return (path / schema.DATABASE_NAME).exists() or bool(folder.queue_folders(path))
    except OSError:
        return False  # lost+found and the like are nobody's queues
