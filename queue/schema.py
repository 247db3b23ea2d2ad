"""The queue's SQLite file: its tables, its settings, and how a connection to it is opened.

WAL with ``synchronous=FULL`` makes a commit durable against a power cut, not only against a
kill (https://sqlite.org/pragma.html#pragma_synchronous); NORMAL would lose acknowledged rows.
``locking_mode=EXCLUSIVE``, set before the first access, gives the file exactly one owner and
needs no shared memory (https://sqlite.org/wal.html#noshm). Both belong to the connection and
not to the file, so every connection is made here.

SQLite notices no flipped bit inside a row, so every row of every table carries a CRC-32, see
checksums.py.
"""

import contextlib
import errno
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from open_llm_proxy.queue.durable_files import check_regular, read_regular
from open_llm_proxy.queue.errors import (
    NotAQueue,
    OtherSchema,
    OwnerAlive,
    QueueFolderUnusable,
    QueueFull,
)

DATABASE_NAME = "queue.db"
WAL_NAME = f"{DATABASE_NAME}-wal"
SHM_NAME = f"{DATABASE_NAME}-shm"
JOURNAL_NAME = f"{DATABASE_NAME}-journal"
APPLICATION_ID = 0x6F6C7071  # "olpq", so that another program's database is recognised
SCHEMA_VERSION = 2
PAGE_BYTES = 4096
WAL_LIMIT_BYTES = 4 * 1024 * 1024

# The finished lines. seq has no gap, and is in the line too.
ROWS_TABLE = (
    "CREATE TABLE {name} (seq INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL,"
    " crc32 INTEGER NOT NULL, line BLOB NOT NULL)"
)
DDL = (
    # What whoever finishes the file is bound to, see meta.py.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE log_format (name TEXT NOT NULL, crc32 INTEGER NOT NULL, body BLOB NOT NULL)",
    ROWS_TABLE.format(name="rows"),
    # One per opened call, under its request row's seq: the head of the entry that closes the
    # call should its process die.
    "CREATE TABLE open_calls (seq INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL,"
    " crc32 INTEGER NOT NULL, head BLOB NOT NULL)",
    # Sealed ranges; an uploaded one is kept, so that a gap is known as uploaded or lost.
    "CREATE TABLE batches (first INTEGER PRIMARY KEY, last INTEGER NOT NULL,"
    " name TEXT NOT NULL, md5 BLOB NOT NULL, bytes INTEGER NOT NULL,"
    " sink TEXT, uploaded INTEGER NOT NULL, crc32 INTEGER NOT NULL)",
)
# A row's key, also where a damaged description of the table lets that column hold anything.
ROW_KEY = "CASE typeof(seq) WHEN 'integer' THEN seq ELSE rowid END"
BATCH_COLUMNS = "first, last, name, md5, bytes, sink, uploaded, crc32"

# What SQLite says of content that cannot be right (https://sqlite.org/rescode.html): a schema
# that does not parse, a table that is missing or twice what should be there once.
_DAMAGE = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)


def primary_code(error: Exception) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html) behind `error`.

    0 where Python raised it by itself.
    """
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_disk_full(error: Exception) -> bool:
    """Whether SQLite or the system says that the disk or the file's page cap is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return primary_code(error) == sqlite3.SQLITE_FULL


def is_damage(error: Exception) -> bool:
    """Whether `error` says that the file's content is at fault, and not the disk below it."""
    return primary_code(error) in _DAMAGE


def create(
    path: Path,
    meta: Iterable[tuple[str, object]],
    log_format: Iterable[tuple[str, int, bytes]],
) -> None:
    """Make an empty queue file at `path`, committed and closed; its rows of meta are given."""
    connection = _connect(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for statement in DDL:
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        connection.executemany("INSERT INTO log_format VALUES (?, ?, ?)", log_format)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    finally:
        connection.close()


def check_header(path: Path) -> None:
    """Look at the file's first 100 bytes (https://sqlite.org/fileformat2.html) without SQLite.

    Raises `NotAQueue` or `OtherSchema`. SQLite itself would make an empty file into a
    database, change a foreign one's journal and checkpoint a newer one; here nothing is touched.
    This process must not have the file open: closing it would drop SQLite's locks.
    """
    _check_files(path)
    try:
        header = read_regular(path, 100)
    except OSError as error:
        raise NotAQueue(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise NotAQueue(f"{path} is not a SQLite database")
    version, application_id = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    _check_version(path, application_id, version)


def _check_files(path: Path) -> None:
    """Look at what SQLite would open: the file at `path` and those beside it.

    A file in WAL mode has no rollback journal. Whoever puts one there has SQLite write its pages
    into the queue, and delete whatever file it names.
    """
    journal = path.with_name(JOURNAL_NAME)
    try:
        for name in (DATABASE_NAME, WAL_NAME, SHM_NAME, JOURNAL_NAME):
            with contextlib.suppress(FileNotFoundError):
                check_regular(path.with_name(name))
        has_journal = journal.exists()
    except OSError as error:
        raise NotAQueue(f"{error.filename} cannot be read: {error.strerror}") from error
    if has_journal:
        raise NotAQueue(f"{journal} is no file of a queue: SQLite would apply it")


def open_exclusively(path: Path) -> sqlite3.Connection:
    """Open an existing queue file as its only owner.

    Raises `OwnerAlive`, `NotAQueue` or `OtherSchema`, or `QueueFull` or
    `QueueFolderUnusable` where the disk is at fault and not the file.
    """
    check_header(path)
    connection = None
    try:
        connection = _connect(path)
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        _check_version(path, application_id, version)
        check_tables(connection)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise explained(path, error) from error
        raise
    return connection


def open_unchanged(path: Path, with_wal: bool) -> sqlite3.Connection:
    """Open a queue file, whose folder's lock the caller holds, so that no byte on disk changes.

    `with_wal`: the log beside it holds a commit. SQLite reads the log into its own memory then,
    and cannot copy it into a file that is opened for reading. Without one it would remove the
    log when it closes, or make one where none is; so the file is read by itself.
    """
    options = "vfs=unix-none" if with_wal else "immutable=1"
    _check_files(path)
    url = f"{path.absolute().as_uri()}?mode=ro&{options}"
    connection = sqlite3.connect(url, uri=True, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    try:
        for pragma in ("locking_mode=EXCLUSIVE", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        with _reading_schema():
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def open_image(image: bytearray) -> sqlite3.Connection:
    """Open the content of a queue's file in memory."""
    image[18:20] = b"\x01\x01"  # not in WAL mode, as memory has no log beside it
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    try:
        connection.deserialize(bytes(image))
        connection.execute("PRAGMA cell_size_check=ON").fetchall()
        with _reading_schema():
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        check_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def check_tables(connection: sqlite3.Connection) -> None:
    """Raise `NotAQueue` where the file has anything but plain tables.

    A view may never end, a trigger does what its maker wants. That a flipped bit has changed a
    column is met where that is read.
    """
    with _reading_schema():
        found = connection.execute("SELECT type, sql FROM sqlite_master").fetchall()
    if not all(kind == "table" and _is_plain(str(sql)) for kind, sql in found):
        raise NotAQueue("its tables are not those of a queue")


def _is_plain(sql: str) -> bool:
    """Whether no column is computed and no module makes the rows; SQLite may have quoted names."""
    text = re.sub(r"\s+", "", sql).lower()
    return text.startswith("createtable") and "as(" not in text


def explained(path: Path, error: Exception) -> Exception:
    """What `error`, met while the file at `path` was opened, means to the caller."""
    if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OwnerAlive(f"{path} is in use by another process")
    if is_disk_full(error):
        return QueueFull(f"the disk is too full to open {path}; it is tried again later")
    if is_damage(error):
        return NotAQueue(f"{path} cannot be read as a queue: {error}")
    return QueueFolderUnusable(f"{path} cannot be opened: {error}")


@contextmanager
def _reading_schema() -> Iterator[None]:
    """For the first access: Python fails to decode SQLite's error if that quotes a damaged schema.

    Raises `NotAQueue` then.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise NotAQueue("the queue's file has a damaged schema") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    # A flipped bit can turn a BLOB into a TEXT that is not UTF-8; that must not stop a read.
    connection.text_factory = _text
    try:
        for pragma in (
            "locking_mode=EXCLUSIVE",
            f"page_size={PAGE_BYTES}",
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"journal_size_limit={WAL_LIMIT_BYTES}",
            # SQLite hides the errors of its own checkpoints; database.py makes them instead.
            "wal_autocheckpoint=0",
            # Deleted lines went to the store; zeroing their pages would only double the writes.
            "secure_delete=OFF",
            "cell_size_check=ON",
            "mmap_size=0",
        ):
            with _reading_schema():
                connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _check_version(path: Path, application_id: int, version: int) -> None:
    if application_id != APPLICATION_ID or version < 1:
        raise NotAQueue(f"{path} is a SQLite database, but not a queue of open-llm-proxy")
    if version != SCHEMA_VERSION:
        which = "newer" if version > SCHEMA_VERSION else "older"
        raise OtherSchema(
            f"{path} has schema version {version} and this release reads {SCHEMA_VERSION}: "
            f"it is left as it is; finish it with the {which} release that wrote it"
        )
