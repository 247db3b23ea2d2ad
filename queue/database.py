"""One connection to a queue's file, and what every transaction on it goes through.

Checkpoints are asked for and not left to SQLite: its automatic ones swallow their errors
(https://sqlite.org/c3ref/wal_autocheckpoint.html), so that a disk that fails there would go
unnoticed while the WAL grows. Here they are a step of their own, after a commit was answered.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from open_llm_proxy.queue.schema import PAGE_BYTES, WAL_LIMIT_BYTES

ExecuteMany = Callable[[str, Iterable[Sequence[object]]], sqlite3.Cursor]
# What a small commit writes: the last leaf of two or three tables and their parents.
PAGES_PER_COMMIT = 4
STEPS_BETWEEN_LOOKS = 10_000
UNCAPPED_PAGES = 0xFFFFFFFE


class Database:
    """Queries, transactions, the page cap and checkpoints of one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._writing = connection.cursor()  # one for all, as a commit has four statements
        self._cap_pages = UNCAPPED_PAGES
        self._is_capped: bool | None = None  # not known yet
        self._wal_pages = 0  # written since the last checkpoint, about

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, parameters).fetchall()

    def iterate(self, query: str, *parameters: object) -> sqlite3.Cursor:
        """A cursor; close it, for a half-read one keeps the WAL from being reset."""
        return self._connection.execute(query, parameters)

    def number(self, query: str, *parameters: object) -> int:
        """The first value of the first row; 0 where it is no whole number or there is no row."""
        found = self._connection.execute(query, parameters).fetchone()
        return found[0] if found and isinstance(found[0], int) else 0

    def execute(self, statement: str) -> None:
        self._connection.execute(statement).fetchall()

    def stop_at(self, deadline: float) -> None:
        """Have queries that still run at `deadline` (monotonic seconds) raise sqlite3.Error."""
        self._connection.set_progress_handler(
            lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS
        )

    @contextmanager
    def transaction(self, size_bytes: int = 0, is_capped: bool = False) -> Iterator[ExecuteMany]:
        """All or nothing, and on disk when it ends; `size_bytes` is about what it writes.

        `is_capped`: fail with SQLITE_FULL rather than grow the file beyond `set_cap`.
        """
        if is_capped != self._is_capped:
            pages = self._cap_pages if is_capped else UNCAPPED_PAGES
            self.execute(f"PRAGMA max_page_count={pages}")
            self._is_capped = is_capped
        writing = self._writing
        writing.execute("BEGIN IMMEDIATE")
        try:
            yield writing.executemany
            writing.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                writing.execute("ROLLBACK")
            raise
        self._wal_pages += PAGES_PER_COMMIT + size_bytes // PAGE_BYTES

    def set_cap(self, max_bytes: int) -> None:
        """How large capped transactions may make the file."""
        self._cap_pages = max(1, max_bytes // PAGE_BYTES)
        self._is_capped = None

    def checkpoint_if_due(self) -> None:
        """Copy the WAL into the file once it is long, so that its place can be used again."""
        if self._wal_pages * PAGE_BYTES >= WAL_LIMIT_BYTES:
            self._checkpoint("PASSIVE")

    def checkpoint(self) -> None:
        """Copy the WAL into the file and cut it to nothing."""
        self._checkpoint("TRUNCATE")

    def _checkpoint(self, mode: str) -> None:
        self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        self._wal_pages = 0

    @property
    def file_bytes(self) -> int:
        return self.number("PRAGMA page_count") * PAGE_BYTES

    @property
    def free_pages(self) -> int:
        return self.number("PRAGMA freelist_count")

    def vacuum(self, pages: int) -> None:
        """Give up to `pages` free pages back to the disk, once the next checkpoint is made."""
        # executescript, as execute() would step the PRAGMA once and free a single page.
        self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        self._wal_pages += pages

    def close(self) -> None:
        self._connection.close()
