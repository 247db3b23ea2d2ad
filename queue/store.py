"""The queue's file as tables: rows in, batches sealed, rows out.

A `Store` belongs to one thread, the writer's; nothing in it waits, locks or retries. Each
method is one transaction, so that a process killed inside any of them leaves the file as it
was before or as it is after. seq is counted from what was committed: a failed commit leaves
no gap.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import Batch, Tail, object_name, renamed, window_start
from open_llm_proxy.queue.checksums import checksum, is_call_intact, is_object_line
from open_llm_proxy.queue.commit_group import CommitGroup
from open_llm_proxy.queue.damaged_rows import Damage, neighbour_ms
from open_llm_proxy.queue.database import Database, ExecuteMany
from open_llm_proxy.queue.entry import Append, finished_line
from open_llm_proxy.queue.errors import NeedsRepair
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.row_reader import RowReader, StoredRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreState:
    """What is in the file now; sizes in bytes, times in ms since the epoch.

    `accepted_rows` and `uploaded_rows` count since the file was opened, and what was queued in
    it then is accepted; so ``accepted_rows = uploaded_rows + queued_rows`` at every moment.
    """

    accepted_rows: int = 0
    uploaded_rows: int = 0
    queued_rows: int = 0
    queued_bytes: int = 0
    oldest_timestamp_ms: int | None = None
    open_calls: int = 0
    sealed_batches: int = 0
    damaged_rows: int = 0
    damaged_texts: int = 0  # of the log's format, left out


class Store:
    """One queue file, opened by its owner. It believes what it reads only as far as that proves
    itself, and never repairs: where it meets damage it raises `NeedsRepair`."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._database = database
        self.meta = Meta.read(database)
        self.queue_id = self.meta.queue_id
        self._damage = Damage(folder.parent, self.meta)
        self._reader = RowReader(database, self.meta, self._damage)
        self._tail = Tail(self.meta.run)
        self.was_closed_cleanly = bool(
            database.number("SELECT value FROM meta WHERE name = 'closed_cleanly'")
        )
        for name in self.meta.damaged_texts:
            log.error("The %s in queue %s is damaged and is left out", name, self.queue_id)
        self.sealed_to = 0
        self._skip_sealed()
        self.last_seq = max(
            database.number("SELECT max(last) FROM batches"),
            database.number("SELECT max(seq) FROM rows"),
        )
        self._acknowledged_rows = database.number(
            "SELECT sum(last - first + 1) FROM batches WHERE uploaded"
        )
        self._uploaded_here = 0
        self._open_calls = database.number("SELECT count(*) FROM open_calls")

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open the queue in `folder`, whose lock the caller holds, and mark it as in use.

        Raises `OwnerAlive`, `NotAQueue` or `OtherSchema`, or `QueueFull` or
        `QueueFolderUnusable` where the disk is at fault and not the file.
        """
        path = folder / schema.DATABASE_NAME
        database = Database(schema.open_exclusively(path))
        try:
            store = cls(folder, database)
            store._set_closed_cleanly(False)
            # In the main file too: a WAL that gets lost whole is then noticed at the next start.
            database.checkpoint()
        except BaseException as error:
            database.close()
            if isinstance(error, sqlite3.Error):
                raise schema.explained(path, error) from error
            raise
        return store

    # The way in.

    def commit(self, group: Sequence[Append]) -> list[tuple[bytes, ...]]:
        """Store a group of appends in one transaction; returns each one's finished lines.

        An append that closes a call which is not open (refused, or closed already) stores
        nothing and returns no lines. On sqlite3.Error nothing of the group is stored.
        """
        commit = CommitGroup(self.queue_id, self.last_seq)
        results = [commit.add(append) for append in group]
        is_capped = any(append.closes is None for append in group)
        try:
            self._write(commit, is_capped=True)
        except sqlite3.Error as error:
            if is_capped or not schema.is_disk_full(error):
                raise
            # Closings may exceed the cap. It costs two statements to lift, so not for each group.
            self._write(commit, is_capped=False)
        reach("committed")
        self.last_seq = commit.last_seq
        now = time.monotonic()
        for seq, timestamp_ms, _, line in commit.rows:
            self._tail.add(seq, timestamp_ms, len(line), now)
        self._open_calls += len(commit.opened) - len(commit.closed)
        for call, call_seq in commit.opened.items():
            call.seq = call_seq
        for call in commit.closed:
            call.seq = None
        return results

    def _write(self, commit: CommitGroup, is_capped: bool) -> None:
        with self._database.transaction(commit.size_bytes, is_capped) as execute_many:
            commit.write(execute_many)
            reach("commit-written")

    def close_open_calls(self) -> list[bytes]:
        """Append the `interrupted` lines of a dead owner's calls, in order, at once.

        All in one transaction, so that finishing a file twice gives the same bytes.
        """
        kept = self._database.rows(
            "SELECT seq, timestamp_ms, crc32, head FROM open_calls ORDER BY seq"
        )
        if not kept:
            return []
        rows = []
        damaged = 0
        for seq, (call_seq, timestamp_ms, crc32, head) in enumerate(kept, self.last_seq + 1):
            body = b""
            if is_call_intact(call_seq, timestamp_ms, crc32, head):
                body = self.meta.interrupted_body(head)
            if not is_object_line(body):
                # Its key may be what is damaged, so it is kept under the seq of what closes it.
                self._damage.keep(f"{seq:010d}.call", head)
                timestamp_ms = neighbour_ms(self._database, self.meta, seq)
                subject, reason = f"the end of call {call_seq}", "its CRC-32 does not match"
                body = self._damage.body(subject, timestamp_ms, reason)
                damaged += 1
            line = finished_line(self.queue_id, seq, body)
            rows.append((seq, timestamp_ms, checksum(line, timestamp_ms), line))
        with self._database.transaction(sum(len(row[3]) for row in rows)) as execute_many:
            execute_many("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
            execute_many("DELETE FROM open_calls", [()])
            reach("open-calls-written")
        self.last_seq += len(rows)
        self._open_calls = 0
        self._damage.rows += damaged
        return [row[3] for row in rows]

    # The way out.

    def sealable(self, everything: bool) -> tuple[int, int]:
        """First and last of the rows that may be sealed now; none where the last is less.

        `everything`: the owner has ended, or asks for it, so that the newest run is finished too.
        """
        first = self.sealed_to + 1
        # Rows before sealed ones are left where a repair has given up the record of a batch.
        if later := self._database.number("SELECT min(first) FROM batches WHERE first > ?", first):
            return first, later - 1
        if everything or self._tail.first is None or self._tail.is_aged(time.monotonic()):
            return first, self.last_seq
        return first, self._tail.first - 1

    def read(self, first: int, limit: int, max_bytes: int) -> list[StoredRow]:
        """Rows from seq `first` to at most `limit`, see `RowReader.read`."""
        return self._reader.read(first, limit, max_bytes)

    def seal(self, first: int, last: int, md5: bytes, size: int, sink: str | None) -> Batch:
        """Store that rows `first` to `last` form one object, about to be tried on `sink` if any."""
        timestamp_ms = self._database.number("SELECT timestamp_ms FROM rows WHERE seq = ?", first)
        start = window_start(timestamp_ms, self.meta.window_seconds)
        name = object_name(start, self.queue_id, first, last, md5)
        batch = Batch(first, last, name, md5, size, sink)
        with self._database.transaction() as execute_many:
            _write_batch(execute_many, batch)
            reach("seal-written")
        self._skip_sealed()
        self._tail.sealed(batch, self.last_seq)
        return batch

    def reseal(self, batch: Batch, md5: bytes, size: int) -> Batch:
        """Rename a batch whose rows turned out damaged: other bytes need another name."""
        name = renamed(batch.name, md5)
        changed = self._rewrite(replace(batch, name=name, md5=md5, bytes=size))
        reach("resealed")
        return changed

    def bind(self, batch: Batch, sink: str | None) -> Batch:
        """Store which sink may hold the batch; None after a refusal that proves none does."""
        return self._rewrite(replace(batch, sink=sink))

    def _rewrite(self, batch: Batch) -> Batch:
        with self._database.transaction() as execute_many:
            _write_batch(execute_many, batch)
        return batch

    def sealed(self) -> list[Batch]:
        """The batches that no store has confirmed yet, oldest first."""
        query = f"SELECT {schema.BATCH_COLUMNS} FROM batches WHERE NOT uploaded ORDER BY first"
        batches = []
        for record in self._database.rows(query):
            batch = self.meta.batch(record)
            if batch is None:
                raise NeedsRepair("the record of a batch is damaged")
            batches.append(batch)
        return batches

    def ack(self, batch: Batch) -> None:
        """The store confirmed the batch: delete its rows and keep its range."""
        with self._database.transaction() as execute_many:
            execute_many("DELETE FROM rows WHERE seq BETWEEN ? AND ?", [(batch.first, batch.last)])
            reach("ack-rows-deleted")
            _write_batch(execute_many, replace(batch, is_uploaded=True))
            reach("ack-written")
        self._acknowledged_rows += batch.rows
        self._uploaded_here += batch.rows

    def vacuum(self, pages: int, keep_pages: int) -> bool:
        """Give up to `pages` free pages back to the disk, leaving `keep_pages` for new rows.

        Returns whether there are more to give back; the last slice shrinks the file itself.
        """
        free = self._database.free_pages
        if free <= keep_pages:
            return False
        self._database.vacuum(min(pages, free - keep_pages))
        reach("vacuumed")
        if free - pages > keep_pages:
            return True
        self._database.checkpoint()
        reach("shrunk")
        return False

    # The file as a whole.

    @property
    def queued_rows(self) -> int:
        return self.last_seq - self._acknowledged_rows

    def is_empty(self) -> bool:
        """Whether everything that was ever appended is in the store, and no call is open.

        The counters are not believed: raises `NeedsRepair` where a row is left over.
        """
        if self.queued_rows or self._open_calls:
            return False
        if self._database.rows("SELECT seq FROM rows LIMIT 1"):
            raise NeedsRepair("there are rows behind the last one")
        return True

    @property
    def free_bytes(self) -> int:
        """Room inside the file that new rows take before the file grows."""
        return self._database.free_pages * schema.PAGE_BYTES

    def state(self) -> StoreState:
        """Counts and sizes as of the last commit; cheap, whatever the backlog."""
        oldest = self._database.rows("SELECT timestamp_ms FROM rows ORDER BY seq LIMIT 1")
        return StoreState(
            accepted_rows=self._uploaded_here + self.queued_rows,
            uploaded_rows=self._uploaded_here,
            queued_rows=self.queued_rows,
            queued_bytes=self._database.file_bytes - self.free_bytes if oldest else 0,
            oldest_timestamp_ms=_time(oldest[0][0]) if oldest else None,
            open_calls=self._open_calls,
            sealed_batches=self._database.number("SELECT count(*) FROM batches WHERE NOT uploaded"),
            damaged_rows=self._damage.rows,
            damaged_texts=len(self.meta.damaged_texts),
        )

    def done(self) -> StoreState:
        """What was done since the file was opened, also where it cannot be read any more."""
        return StoreState(
            accepted_rows=self._uploaded_here,
            uploaded_rows=self._uploaded_here,
            damaged_rows=self._damage.rows,
        )

    def limit_pages(self, max_bytes: int) -> None:
        """Cap the file for openings; closings, seals and deletes may still exceed it."""
        self._database.set_cap(max_bytes)

    def checkpoint_if_due(self) -> None:
        """Copy the WAL into the file once it is long; raises sqlite3.Error where that fails."""
        self._database.checkpoint_if_due()

    def close(self, cleanly: bool) -> None:
        """Close the file; `cleanly` makes the mark of an orderly end its last commit."""
        try:
            if cleanly:
                self._set_closed_cleanly(True)
                reach("closed-cleanly")
        finally:
            self._database.close()

    def _skip_sealed(self) -> None:
        query = "SELECT last FROM batches WHERE first = ?"
        while (last := self._database.number(query, self.sealed_to + 1)) > self.sealed_to:
            self.sealed_to = last

    def _set_closed_cleanly(self, closed: bool) -> None:
        with self._database.transaction() as execute_many:
            execute_many("UPDATE meta SET value = ? WHERE name = 'closed_cleanly'", [(closed,)])


def _time(value: object) -> int | None:
    """A time that nobody has checked yet."""
    return value if isinstance(value, int) else None


def _write_batch(execute_many: ExecuteMany, batch: Batch) -> None:
    execute_many(
        f"INSERT OR REPLACE INTO batches ({schema.BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [batch.record],
    )
