"""The queue's SQLite file: its tables, its settings, and how a connection to it is opened.

WAL with ``synchronous=FULL`` makes a commit durable against a power cut, not only against a
kill (https://sqlite.org/pragma.html#pragma_synchronous); NORMAL would lose acknowledged rows.
``locking_mode=EXCLUSIVE``, set before the first access, gives the file exactly one owner and
needs no shared memory (https://sqlite.org/wal.html#noshm). Both belong to the connection and
not to the file, so every connection is made here.
"""

import sqlite3
from pathlib import Path

from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, SchemaFromFuture

DATABASE_NAME = "queue.db"
APPLICATION_ID = 0x6F6C7071  # "olpq", so that a foreign database is told from a queue
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
WAL_LIMIT_BYTES = 4 * 1024 * 1024

DDL = (
    # What whoever finishes the file is bound to, see Birth in folder.py.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # The finished lines. seq has no gap; crc32 is taken over the line as it will be uploaded.
    "CREATE TABLE rows (seq INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL,"
    " crc32 INTEGER NOT NULL, line BLOB NOT NULL)",
    # One per opened call, under its request row's seq: the entry that closes the call should
    # its process die, without the queue_id and seq that it gets when it is appended.
    "CREATE TABLE open_calls (seq INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL,"
    " crc32 INTEGER NOT NULL, body BLOB NOT NULL)",
    # Sealed ranges; an uploaded one is kept, so that gaps can be told from work done.
    "CREATE TABLE batches (first INTEGER PRIMARY KEY, last INTEGER NOT NULL,"
    " name TEXT NOT NULL UNIQUE, md5 BLOB NOT NULL, bytes INTEGER NOT NULL,"
    " sink TEXT, uploaded INTEGER NOT NULL DEFAULT 0)",
)


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html) behind `error`.

    0 where Python's module raised it by itself.
    """
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_disk_full(error: sqlite3.Error) -> bool:
    """Whether `error` says that the disk or the file's page cap is full (SQLITE_FULL)."""
    return primary_code(error) == sqlite3.SQLITE_FULL


def is_damage(error: sqlite3.Error) -> bool:
    """Whether `error` says that the file's content cannot be right."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def create(path: Path, meta: dict[str, object]) -> None:
    """Make an empty queue file at `path`, committed and closed."""
    connection = _connect(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for statement in DDL:
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    finally:
        connection.close()


def open_exclusively(path: Path) -> sqlite3.Connection:
    """Open an existing queue file as its only owner.

    Raises `OwnerAlive`, `NotAQueue` or `SchemaFromFuture`; in each case nothing was changed.
    """
    if not path.is_file():
        raise NotAQueue(f"{path} does not exist")
    connection = None
    try:
        connection = _connect(path)
        version = _checked_version(connection, path)
        for step in MIGRATIONS[version:SCHEMA_VERSION]:
            connection.executescript(step)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise OwnerAlive(f"{path} is in use by another process") from error
        raise NotAQueue(f"{path} cannot be read as a queue: {error}") from error
    except (NotAQueue, SchemaFromFuture):
        if connection is not None:
            connection.close()
        raise
    return connection


# Entry n is the script that takes a file of version n to n + 1, in one transaction.
MIGRATIONS: tuple[str, ...] = ("",)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "locking_mode=EXCLUSIVE",
            f"page_size={PAGE_BYTES}",
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"journal_size_limit={WAL_LIMIT_BYTES}",
            f"wal_autocheckpoint={WAL_LIMIT_BYTES // PAGE_BYTES}",
            # Deleted lines went to the store; zeroing their pages would only double the writes.
            "secure_delete=OFF",
            "cell_size_check=ON",
            "mmap_size=0",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _checked_version(connection: sqlite3.Connection, path: Path) -> int:
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application_id != APPLICATION_ID or version < 1:
        raise NotAQueue(f"{path} is a SQLite database, but no queue of open-llm-proxy")
    if version > SCHEMA_VERSION:
        raise SchemaFromFuture(
            f"{path} has schema version {version} and this program knows {SCHEMA_VERSION}: "
            "finish it with the newer release that wrote it"
        )
    return version
