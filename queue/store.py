"""The queue's file as tables: rows in, batches sealed, rows out. Every SQL statement is here.

A `Store` belongs to one thread, the writer's; nothing in it waits, locks or retries. Each
method is one transaction, so that a process killed inside any of them leaves the file as it
was before or as it is after. seq is counted from what was committed: a failed commit leaves
no gap.
"""

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import Batch, TailRun, object_name, window_start
from open_llm_proxy.queue.entry import Append, CallRecord, Entry, finished_line
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.integrity import damaged_entry, quarantine

ExecuteMany = Callable[[str, Iterable[Sequence[object]]], sqlite3.Cursor]
BATCH_COLUMNS = "first, last, name, md5, bytes, sink"


@dataclass(frozen=True, slots=True)
class StoredRow:
    seq: int
    timestamp_ms: int
    line: bytes


@dataclass(frozen=True, slots=True)
class Sealable:
    """Rows `first` to `last` may be sealed (none if last < first).

    `only_full`: their run still grows, so only batches that reach the object's size.
    """

    first: int
    last: int
    only_full: bool


@dataclass(frozen=True, slots=True)
class StoreState:
    """What is in the file now; sizes in bytes, times in ms since the epoch.

    `accepted_rows` and `uploaded_rows` count since the file was opened, and what was queued in
    it then is accepted; so ``accepted_rows = uploaded_rows + queued_rows`` at every moment.
    """

    accepted_rows: int
    uploaded_rows: int
    queued_rows: int
    queued_bytes: int
    oldest_timestamp_ms: int | None
    open_calls: int
    sealed_batches: int
    damaged_rows: int


class Store:
    """One queue file, opened by its owner."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        self.queue_id: str = meta["queue_id"]
        self.window_seconds: int = meta["window_seconds"]
        self.object_max_bytes: int = meta["object_max_bytes"]
        self._damaged_template: bytes = meta["damaged_body"]
        self.was_closed_cleanly = bool(meta["closed_cleanly"])
        self.sealed_to = self._number("SELECT max(last) FROM batches")
        self.last_seq = max(
            self.sealed_to,
            self._number("SELECT max(seq) FROM rows"),
            self._number("SELECT max(seq) FROM open_calls"),
        )
        self._uploaded_rows = self._number(
            "SELECT sum(last - first + 1) FROM batches WHERE uploaded"
        )
        self._uploaded_before = self._uploaded_rows
        self._open_calls = self._number("SELECT count(*) FROM open_calls")
        self._tail = TailRun(self.window_seconds)
        self.damaged_rows = 0

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open the queue in `folder`, whose lock the caller holds, and mark it as in use.

        Raises `OwnerAlive`, `NotAQueue`, `SchemaFromFuture`.
        """
        connection = schema.open_exclusively(folder / schema.DATABASE_NAME)
        try:
            store = cls(folder, connection)
            store._set_meta("closed_cleanly", 0)
            # In the main file too: a WAL that gets lost whole is then noticed at the next start.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            connection.close()
            raise NotAQueue(f"{folder} cannot be read as a queue: {error}") from error
        return store

    # The way in.

    def commit(self, group: Sequence[Append]) -> list[tuple[bytes, ...]]:
        """Store a group of appends in one transaction; returns each one's finished lines.

        An append that closes a call which is not open (refused, or closed already) stores
        nothing and returns no lines. On sqlite3.Error nothing of the group is stored.
        """
        seq = self.last_seq
        rows: list[tuple[int, int, int, bytes]] = []
        opened: dict[CallRecord, int] = {}
        kept: list[tuple[int, int, int, bytes]] = []
        closed: dict[CallRecord, int] = {}
        results: list[tuple[bytes, ...]] = []
        for append in group:
            if append.closes is not None:
                call_seq = opened.get(append.closes, append.closes.seq)
                if call_seq is None or append.closes in closed:
                    results.append(())
                    continue
                closed[append.closes] = call_seq
            lines = []
            for entry in append.entries:
                seq += 1
                line = finished_line(self.queue_id, seq, entry.body)
                rows.append((seq, entry.timestamp_ms, zlib.crc32(line), line))
                lines.append(line)
            if append.opens is not None and append.interrupted is not None:
                opened[append.opens] = seq
                body = append.interrupted.body
                kept.append((seq, append.interrupted.timestamp_ms, zlib.crc32(body), body))
            results.append(tuple(lines))
        with self._transaction() as execute_many:
            execute_many("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
            execute_many("INSERT INTO open_calls VALUES (?, ?, ?, ?)", kept)
            execute_many("DELETE FROM open_calls WHERE seq = ?", [(s,) for s in closed.values()])
        self.last_seq = seq
        now = time.monotonic()
        for row_seq, timestamp_ms, _, line in rows:
            self._tail.join(row_seq, timestamp_ms, len(line), now)
        self._open_calls += len(opened) - len(closed)
        for call, call_seq in opened.items():
            call.seq = call_seq
        for call in closed:
            call.seq = None
        return results

    def close_open_calls(self) -> list[bytes]:
        """Append the kept `interrupted` lines of a dead owner's calls, in order, at once.

        All in one transaction, so that finishing a file twice gives the same bytes.
        """
        kept = self._connection.execute(
            "SELECT timestamp_ms, crc32, body, seq FROM open_calls ORDER BY seq"
        ).fetchall()
        if not kept:
            return []
        lines: list[bytes] = []
        rows = []
        for timestamp_ms, crc32, body, call_seq in kept:
            seq = self.last_seq + len(lines) + 1
            if zlib.crc32(body) == crc32:
                entry = Entry(body, timestamp_ms)
            else:
                entry = self._damaged(seq, timestamp_ms, f"the end of call {call_seq}", body)
            line = finished_line(self.queue_id, seq, entry.body)
            rows.append((seq, entry.timestamp_ms, zlib.crc32(line), line))
            lines.append(line)
        with self._transaction() as execute_many:
            execute_many("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
            execute_many("DELETE FROM open_calls WHERE seq = ?", [(k[3],) for k in kept])
        self.last_seq += len(lines)
        self._open_calls = 0
        return lines

    # The way out.

    def sealable(self, everything: bool) -> Sealable:
        """The rows that may be sealed now; `everything` in the file of an owner that ended."""
        first, last = self.sealed_to + 1, self.last_seq
        tail = self._tail
        if everything or tail.first is None or tail.is_aged(time.monotonic()):
            return Sealable(first, last, only_full=False)
        if tail.first > first:
            return Sealable(first, tail.first - 1, only_full=False)
        if tail.size_bytes >= self.object_max_bytes:
            return Sealable(first, last, only_full=True)
        return Sealable(first, first - 1, only_full=False)

    def read(self, first: int, limit: int, max_bytes: int) -> list[StoredRow]:
        """Rows from seq `first` to at most `limit`, up to about `max_bytes` and at least one.

        Every row's CRC-32 and the continuity of seq are checked; what is bad or missing is
        replaced in the file by a `damaged` row before anything is returned.
        """
        rows: list[StoredRow] = []
        size = 0
        cursor = self._connection.execute(
            "SELECT seq, timestamp_ms, crc32, line FROM rows WHERE seq BETWEEN ? AND ?"
            " ORDER BY seq",
            (first, limit),
        )
        replaced = []
        try:
            for seq, timestamp_ms, crc32, line in cursor:
                for missing in range(first + len(rows), seq):
                    rows.append(self._replacement(missing, timestamp_ms, "it is missing", b""))
                    replaced.append(rows[-1])
                row = StoredRow(seq, timestamp_ms, line)
                if not isinstance(line, bytes) or zlib.crc32(line) != crc32:
                    row = self._replacement(seq, timestamp_ms, "its CRC-32 does not match", line)
                    replaced.append(row)
                rows.append(row)
                size += len(row.line)
                if size >= max_bytes:
                    break
            else:
                neighbour = rows[-1].timestamp_ms if rows else self._newest_timestamp_ms(first)
                for missing in range(first + len(rows), limit + 1):
                    rows.append(self._replacement(missing, neighbour, "it is missing", b""))
                    replaced.append(rows[-1])
        finally:
            cursor.close()
        if replaced:
            self._replace(replaced)
        return rows

    def seal(self, first: int, last: int, md5: bytes, size: int, sink: str) -> Batch:
        """Store that rows `first` to `last` form one object, about to be tried on `sink`."""
        timestamp_ms = self._number("SELECT timestamp_ms FROM rows WHERE seq = ?", first)
        name = self._name(timestamp_ms, first, last, md5)
        with self._transaction() as execute_many:
            execute_many(
                f"INSERT INTO batches ({BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                [(first, last, name, md5, size, sink)],
            )
        self.sealed_to = last
        self._tail.sealed(last, size)
        return Batch(first, last, name, md5, size, sink)

    def reseal(self, batch: Batch, md5: bytes, size: int) -> Batch:
        """Rename a batch whose rows turned out damaged: other bytes need another name."""
        timestamp_ms = self._number("SELECT timestamp_ms FROM rows WHERE seq = ?", batch.first)
        name = self._name(timestamp_ms, batch.first, batch.last, md5)
        with self._transaction() as execute_many:
            execute_many(
                "UPDATE batches SET name = ?, md5 = ?, bytes = ? WHERE first = ?",
                [(name, md5, size, batch.first)],
            )
        return Batch(batch.first, batch.last, name, md5, size, batch.sink)

    def bind(self, batch: Batch, sink: str | None) -> Batch:
        """Store which sink may hold the batch; None after a refusal that proves none does."""
        with self._transaction() as execute_many:
            execute_many("UPDATE batches SET sink = ? WHERE first = ?", [(sink, batch.first)])
        return batch.on(sink)

    def sealed(self) -> list[Batch]:
        """The batches that no store has confirmed yet, oldest first."""
        found = self._connection.execute(
            f"SELECT {BATCH_COLUMNS} FROM batches WHERE NOT uploaded ORDER BY first"
        ).fetchall()
        return [Batch(*columns) for columns in found]

    def ack(self, batch: Batch) -> None:
        """The store confirmed the batch: delete its rows and keep its range."""
        with self._transaction() as execute_many:
            execute_many("DELETE FROM rows WHERE seq BETWEEN ? AND ?", [(batch.first, batch.last)])
            reach("ack-rows-deleted")
            execute_many("UPDATE batches SET uploaded = 1 WHERE first = ?", [(batch.first,)])
        self._uploaded_rows += batch.rows

    def vacuum(self, pages: int, keep_pages: int) -> bool:
        """Give up to `pages` free pages back to the disk, leaving `keep_pages` for new rows.

        Returns whether there are more to give back; the last slice shrinks the file itself.

        executescript, as execute() would step the PRAGMA once and free a single page.
        """
        free = self._number("PRAGMA freelist_count")
        if free > keep_pages:
            self._connection.executescript(
                f"PRAGMA incremental_vacuum({min(pages, free - keep_pages)})"
            )
            reach("vacuumed")
            if free - pages <= keep_pages:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return free - pages > keep_pages

    # The file as a whole.

    @property
    def queued_rows(self) -> int:
        return self.last_seq - self._uploaded_rows

    def state(self) -> StoreState:
        """Counts and sizes as of the last commit; cheap, whatever the backlog."""
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        oldest = self._connection.execute(
            "SELECT timestamp_ms FROM rows ORDER BY seq LIMIT 1"
        ).fetchone()
        uploaded = self._uploaded_rows - self._uploaded_before
        return StoreState(
            accepted_rows=uploaded + self.queued_rows,
            uploaded_rows=uploaded,
            queued_rows=self.queued_rows,
            queued_bytes=pages * schema.PAGE_BYTES if oldest else 0,
            oldest_timestamp_ms=oldest[0] if oldest else None,
            open_calls=self._open_calls,
            sealed_batches=self._number("SELECT count(*) FROM batches WHERE NOT uploaded"),
            damaged_rows=self.damaged_rows,
        )

    def limit_pages(self, max_bytes: int) -> None:
        """Cap the file; deletes still work at the cap, so the drain can make room again."""
        self._connection.execute(
            f"PRAGMA max_page_count={max(1, max_bytes // schema.PAGE_BYTES)}"
        ).fetchall()

    @property
    def is_empty(self) -> bool:
        """Whether everything that was ever appended is in the store, and no call is open."""
        return self.queued_rows == 0 and self._open_calls == 0

    def close(self, cleanly: bool) -> None:
        """Close the file; `cleanly` makes the mark of an orderly end its last commit."""
        try:
            if cleanly:
                self._set_meta("closed_cleanly", 1)
                reach("closed-cleanly")
        finally:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[ExecuteMany]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.executemany
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _damaged(self, seq: int, timestamp_ms: int, reason: str, raw: object) -> Entry:
        kept = raw if isinstance(raw, bytes) else repr(raw).encode()
        if kept:
            quarantine(self.folder.parent, f"{self.queue_id}-{seq:010d}.row", kept)
        self.damaged_rows += 1
        return damaged_entry(self._damaged_template, seq, timestamp_ms, reason)

    def _replacement(self, seq: int, timestamp_ms: int, reason: str, raw: object) -> StoredRow:
        entry = self._damaged(seq, timestamp_ms, reason, raw)
        return StoredRow(seq, timestamp_ms, finished_line(self.queue_id, seq, entry.body))

    def _replace(self, rows: Sequence[StoredRow]) -> None:
        with self._transaction() as execute_many:
            execute_many(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                [(row.seq, row.timestamp_ms, zlib.crc32(row.line), row.line) for row in rows],
            )

    def _set_meta(self, name: str, value: object) -> None:
        with self._transaction() as execute_many:
            execute_many("UPDATE meta SET value = ? WHERE name = ?", [(value, name)])

    def _number(self, query: str, *parameters: object) -> int:
        found = self._connection.execute(query, parameters).fetchone()
        return int(found[0] or 0) if found else 0

    def _name(self, timestamp_ms: int, first: int, last: int, md5: bytes) -> str:
        start = window_start(timestamp_ms, self.window_seconds)
        return object_name(start, self.queue_id, first, last, md5)

    def _newest_timestamp_ms(self, before: int) -> int:
        return self._number(
            "SELECT timestamp_ms FROM rows WHERE seq < ? ORDER BY seq DESC LIMIT 1", before
        ) or self._number("SELECT value FROM meta WHERE name = 'created_at_ms'")
