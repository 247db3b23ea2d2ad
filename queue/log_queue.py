"""The log queue of one process: its own file, the drain, and the files it has adopted.

This is what the request path sees. `open` hands a call's request entry over, `Call.close` its
closing entry, and both are durable when their futures resolve. Everything behind that is done
in the background, again and again: sealing and uploading every finished window, taking
over what dead processes left, watching the room on the disk.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.disk_space import Space
from open_llm_proxy.queue.drain import Drain, UploadCounts
from open_llm_proxy.queue.entry import Append, CallRecord, Entry
from open_llm_proxy.queue.errors import QueueBroken, QueueError, QueueFolderUnusable
from open_llm_proxy.queue.folder import Birth
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.orphans.orphan import open_store
from open_llm_proxy.queue.periodic import Periodic
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.writer import Lines, Writer

log = logging.getLogger(__name__)

ADOPT_EVERY_SECONDS = 120.0
UPLOAD_THREADS = 4
# How long /health waits for the writer before it shows the state of a moment ago.
STATUS_PATIENCE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue's part of /health: this process's own file and those it has adopted."""

    queue_id: str
    sink: str
    accepted_rows: int
    queued_rows: int
    queued_bytes: int
    oldest_age_seconds: float | None
    open_calls: int
    adopted_files: int
    quarantined_files: int
    damaged_rows: int
    batches_sealed: int
    batches_uploaded: int
    uploaded_rows: int
    upload_failures: int
    last_upload_at: float | None
    last_error: str | None


class Call:
    """An opened call: `stored` resolves when its request entry is durable, or raises.

    `close` must be called exactly once whatever becomes of `stored`, and takes effect only if
    the opening was stored; so it belongs into a ``finally`` that begins before the first await.
    """

    __slots__ = ("_record", "_writer", "stored")

    def __init__(self, writer: Writer, record: CallRecord, stored: "asyncio.Future[Lines]"):
        self._writer = writer
        self._record = record
        self.stored = stored

    def close(self, entry: Entry, slim: Entry | None = None) -> "asyncio.Future[Lines]":
        """Hand the closing entry over; the future resolves when it is durable.

        `slim`, the same entry without its texts, is stored instead on a disk so full that not
        even the reserve has room for `entry`.
        """
        return self._writer.append(Append((entry,), closes=self._record, slim=slim))


class LogQueue:
    """Made by `start`; ended by `close`. Used from one event loop."""

    def __init__(
        self,
        root: Path,
        owned: folder.OwnedFolder,
        store: Store,
        sink: Sink,
        max_bytes: int,
        *,
        on_committed: Callable[[list[bytes]], None],
        on_broken: Callable[[QueueBroken], None],
    ) -> None:
        self.queue_id = owned.queue_id
        self._owned = owned
        self._sink = sink
        self._space = Space(root, owned.path, max_bytes)
        self._space.measure(store.free_bytes)
        store.limit_pages(self._space.page_cap_bytes)
        self._state = store.state()
        self._counts = UploadCounts()
        self._uploads = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload")
        slots = asyncio.Semaphore(UPLOAD_THREADS)
        self._writer = Writer(store, self._space, on_committed=on_committed, on_broken=on_broken)
        self._drain = Drain(
            self._writer,
            sink,
            self._uploads,
            slots,
            self._counts,
            object_max_bytes=store.object_max_bytes,
            window_seconds=store.window_seconds,
        )
        tick_seconds = min(1.0, store.window_seconds / 5)
        self._adoption = Adoption(
            root,
            owned.queue_id,
            sink,
            self._uploads,
            slots,
            self._counts,
            on_committed=on_committed,
            poll_seconds=tick_seconds,
        )
        self._draining = asyncio.Lock()
        self._watching = asyncio.ensure_future(self._watch())
        self._first_look = asyncio.ensure_future(self._adoption.look())
        self._repeated = [
            Periodic(self._fresh_state, 1.0),
            Periodic(self.drain, tick_seconds),
            Periodic(self._adoption.look, ADOPT_EVERY_SECONDS),
        ]
        for work in self._repeated:
            work.start()

    @classmethod
    def start(
        cls,
        root: Path,
        birth: Birth,
        sink: Sink,
        max_bytes: int,
        *,
        on_committed: Callable[[list[bytes]], None],
        on_broken: Callable[[QueueBroken], None],
    ) -> "LogQueue":
        """Make this process's queue below `root` and begin to drain and to adopt.

        `max_bytes` bounds all of `root`. `on_committed` gets every durable line, in order;
        `on_broken` is told once when the file fails. Raises `QueueFolderUnusable`.
        """
        while True:
            try:
                owned, store = _born(root, birth)
                break
            except QueueFolderUnusable:
                # A full disk may be full of what dead owners left, which only a start drains.
                if not root.is_dir() or not folder.free_reserve(root):
                    raise
        return cls(
            root, owned, store, sink, max_bytes, on_committed=on_committed, on_broken=on_broken
        )

    @property
    def refusal(self) -> QueueError | None:
        """Why a new call would be refused now, or None."""
        return self._writer.refusal

    def open(self, entries: Sequence[Entry], interrupted: Entry) -> Call:
        """Hand over the entries that open a call, and the one that closes it after a death.

        The last of `entries` is the request entry. Raises `QueueFull`, `QueueBroken` or
        `QueueClosed` at once when the call must be refused.
        """
        record = CallRecord()
        append = Append(tuple(entries), opens=record, interrupted=interrupted)
        return Call(self._writer, record, self._writer.append(append))

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[Lines]":
        """Hand over entries that open nothing, to be stored in one transaction."""
        return self._writer.append(Append(tuple(entries)))

    async def drain(self) -> None:
        """One pass of the drain over the own file; at most one runs at a time."""
        async with self._draining:
            try:
                await self._drain.advance()
            except QueueError as error:
                log.debug("drain stopped: %s", error)

    def flush(self) -> "asyncio.Task[None]":
        """Seal and upload everything now (SIGUSR1); calls go on meanwhile."""
        self._adoption.hurry()
        return asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        async with self._draining:
            self._drain.everything = True
            self._drain.backoff.try_now()
            try:
                await self._drain.advance()
            except QueueError as error:
                log.debug("flush stopped: %s", error)
            finally:
                self._drain.everything = False

    async def status(self) -> QueueStatus:
        """What /health shows; at most a second old, also while the disk hangs."""
        await asyncio.wait({self._fresh_state()}, timeout=STATUS_PATIENCE_SECONDS)
        adopted = [file.state for file in self._adoption.files.values()]
        states = [self._state, *adopted]
        oldest = min((s.oldest_timestamp_ms for s in states if s.oldest_timestamp_ms), default=None)
        counts = self._counts
        settled = self._adoption.settled_rows
        return QueueStatus(
            queue_id=self.queue_id,
            sink=self._sink.identity,
            accepted_rows=settled + sum(s.accepted_rows for s in states),
            queued_rows=sum(s.queued_rows for s in states),
            queued_bytes=sum(s.queued_bytes for s in states),
            oldest_age_seconds=max(0.0, time.time() - oldest / 1000) if oldest else None,
            open_calls=sum(s.open_calls for s in states),
            adopted_files=self._adoption.adopted_files,
            quarantined_files=self._adoption.quarantined_files,
            damaged_rows=self._adoption.settled_damaged_rows + sum(s.damaged_rows for s in states),
            batches_sealed=counts.batches_sealed,
            batches_uploaded=counts.batches_uploaded,
            uploaded_rows=settled + sum(s.uploaded_rows for s in states),
            upload_failures=counts.upload_failures,
            last_upload_at=counts.last_upload_at,
            last_error=counts.last_error,
        )

    async def close(self, upload_seconds: float) -> bool:
        """Upload what the store takes within `upload_seconds`, leave the rest for the next owner.

        Returns whether everything was uploaded; the folder is removed then. Calls must have
        been closed before.
        """
        for work in self._repeated:
            work.stop()
        flush = self.flush()
        await asyncio.wait({flush}, timeout=upload_seconds)
        flush.cancel()
        await asyncio.gather(flush, self._first_look, self._watching, return_exceptions=True)
        await self._adoption.stop()
        empty = await self._is_empty()
        await self._writer.close()
        self._uploads.shutdown(wait=False, cancel_futures=True)
        if empty:
            self._owned.remove()
        elif not isinstance(self._writer.refusal, QueueBroken):
            self._owned.release()
        return empty

    async def _is_empty(self) -> bool:
        try:
            return await self._writer.run(Store.is_empty)
        except QueueError:
            return False

    def _fresh_state(self) -> "asyncio.Future[None]":
        """Look at the files again, unless a look is under way: a hanging disk gets one."""
        if self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())
        return self._watching

    async def _watch(self) -> None:
        self._state = await _seen(self._writer, self._measured_state) or self._state
        for file in list(self._adoption.files.values()):
            file.state = await _seen(file.writer, Store.state) or file.state

    def _measured_state(self, store: Store) -> StoreState:
        self._space.measure(store.free_bytes)
        return store.state()


def _born(root: Path, birth: Birth) -> tuple[folder.OwnedFolder, Store]:
    folder.prepare_root(root)
    owned = folder.give_birth(root, birth)
    try:
        return owned, open_store(owned)
    except QueueError as error:
        owned.remove()
        raise QueueFolderUnusable(str(error)) from error


async def _seen(writer: Writer, look: Callable[[Store], StoreState]) -> StoreState | None:
    try:
        return await writer.run(look)
    except QueueError as error:
        log.debug("no fresh state of the queue: %s", error)
        return None
