"""The log queue of one process: its own file, its drain, and the queues that it recovers.

This is what the request path sees. `open` hands a call's request entry over, `LoggedCall.close`
its closing entry, and both are durable when their futures resolve. Everything behind that is done
in the background, again and again: sealing and uploading every finished window, recovering what
dead processes left, watching the room on the disk.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.disk_space import DiskSpace
from open_llm_proxy.queue.drain import Drain
from open_llm_proxy.queue.entry import Append, CallMark, Entry, Lines
from open_llm_proxy.queue.errors import (
    QueueBroken,
    QueueError,
    QueueFolderUnusable,
    QueueFull,
    QueueStalled,
)
from open_llm_proxy.queue.left_queue import LeftQueue
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.periodic import Periodic
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.uploads import Uploads
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

# How long /health waits for the writer before it shows the state of a moment ago.
STATUS_PATIENCE_SECONDS = 0.25

# How long the files may take to be closed in order; shorter where the disk hangs already.
CLOSE_SECONDS = 15.0
STALLED_CLOSE_SECONDS = 2.0

# How often it is told that new calls are refused, on a disk that is full again and again.
TOLD_SECONDS = 60.0

OnCommitted = Callable[[list[bytes]], None]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue's part of /health: this process's own file and those it has adopted.

    `left` is what lies beside them and is not being uploaded. `left_rows` counts the rows in there
    that can be counted; of `left_uncounted_queues` nobody knows how many they hold.
    """

    queue_id: str
    sink: str
    accepted_rows: int
    queued_rows: int
    queued_bytes: int
    oldest_age_seconds: float | None
    open_calls: int
    adopted_files: int
    quarantined_files: int
    quarantined_queues: int
    left_queues: int
    left_rows: int
    left_uncounted_queues: int
    left_oldest_age_seconds: float | None
    left: list[LeftQueue]
    damaged_rows: int
    damaged_texts: int
    batches_sealed: int
    batches_uploaded: int
    uploaded_rows: int
    upload_failures: int
    last_upload_at: float | None
    last_error: str | None
    oldest_uncommitted_seconds: float
    last_commit_seconds: float
    last_commit_appends: int


class Recovery(Protocol):
    """What finishes the queues of dead processes beside this one, see orphans/adoption.py.

    `states`: of the queues that it has in hand, and one for those that are finished and gone, so
    that rows balance over all of them. `left`: the queues that nobody uploads. `refresh` looks at
    the files for both.
    """

    @property
    def adopted_files(self) -> int: ...

    @property
    def quarantined_files(self) -> int: ...

    def start(self) -> None: ...

    def hurry(self) -> None: ...

    def states(self) -> list[StoreState]: ...

    def left(self) -> list[LeftQueue]: ...

    async def refresh(self) -> None: ...

    async def stop(self) -> None: ...


# Makes a `Recovery` for a root, the id of the own queue, a sink, and what uploads share. The core
# knows no orphans, so whoever starts it brings along what does.
Recover = Callable[[Path, str, Sink, Uploads, OnCommitted], Recovery]


class LoggedCall:
    """An opened call: `stored` resolves when its request entry is durable, or raises.

    `close` must be called exactly once whatever becomes of `stored`, and takes effect only if
    the opening was stored; so it belongs into a ``finally`` that begins before the first await.
    """

    __slots__ = ("_mark", "_writer", "stored")

    def __init__(self, writer: Writer, mark: CallMark, stored: "asyncio.Future[Lines]"):
        self._writer = writer
        self._mark = mark
        self.stored = stored

    def close(self, entry: Entry, slim: Entry | None = None) -> "asyncio.Future[Lines]":
        """Hand the closing entry over; the future resolves when it is durable.

        `slim`, the same entry without its texts, is stored instead on a disk so full that not
        even the reserve has room for `entry`. Where the opening was given up because the disk
        hangs, this entry follows it should it be stored all the same, and nobody waits for that:
        the future is the opening's.
        """
        closed = self._writer.append(Append((entry,), closes=self._mark, slim=slim))
        return self.stored if _is_given_up(self.stored) else closed


class LogQueue:
    """Made by `start`; ended by `close`. Used from one event loop."""

    def __init__(
        self,
        root: Path,
        owned: folder.OwnedFolder,
        store: Store,
        sink: Sink,
        max_bytes: int,
        recover: Recover,
        *,
        on_committed: OnCommitted,
        on_broken: Callable[[QueueBroken], None],
    ) -> None:
        self.queue_id = owned.queue_id
        self._owned = owned
        self._sink = sink
        self._space = DiskSpace(root, owned.path, max_bytes)
        self._space.measure(store.free_bytes)
        store.limit_pages(self._space.page_cap_bytes)
        self._state = store.state()
        self._uploads = Uploads()
        self._writer = Writer(store, self._space, on_committed=on_committed, on_broken=on_broken)
        self._drain = Drain(self._writer, sink, self._uploads)
        self._draining = asyncio.Lock()
        self._recovery = recover(root, owned.queue_id, sink, self._uploads, on_committed)
        self._watching: asyncio.Future[None] | None = None
        self._refusing_since: float | None = None
        self._refusal_told_at = -TOLD_SECONDS
        self._repeated = (
            Periodic(self._fresh_state, 1.0),
            Periodic(self._tell_refusal, 1.0),
            Periodic(self._advance, min(1.0, store.meta.window_seconds / 5)),
        )

    @classmethod
    def start(
        cls,
        root: Path,
        meta: Meta,
        sink: Sink,
        max_bytes: int,
        recover: Recover,
        *,
        on_committed: OnCommitted,
        on_broken: Callable[[QueueBroken], None],
    ) -> "LogQueue":
        """Make this process's queue below `root` and begin to drain and to recover others.

        `max_bytes` bounds all of `root`. `on_committed` gets every durable line, in order;
        `on_broken` is called once when the file fails. Raises `QueueFolderUnusable`.
        """
        while True:
            try:
                owned, store = _born(root, meta)
                break
            except QueueFolderUnusable:
                # A full disk may be full of what dead owners left, which only a start drains.
                if not root.is_dir() or not folder.free_reserve(root):
                    raise
        queue = cls(
            root, owned, store, sink, max_bytes, recover,
            on_committed=on_committed, on_broken=on_broken,
        )  # fmt: skip
        queue._begin()
        return queue

    def _begin(self) -> None:
        self._recovery.start()
        for work in self._repeated:
            work.start()

    # The way in.

    @property
    def refusal(self) -> QueueError | None:
        """Why a new call would be refused now, or None."""
        return self._writer.refusal

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> LoggedCall:
        """Hand over the entries that open a call, and the head of the one that closes it after a
        death: the `interrupted_tail` of the queue's `LogFormat` completes it then.

        The last of `entries` is the request entry. Raises `QueueFull`, `QueueBroken` or
        `QueueClosed` at once when the call must be refused.
        """
        mark = CallMark()
        append = Append(tuple(entries), opens=mark, interrupted_head=interrupted_head)
        return LoggedCall(self._writer, mark, self._writer.append(append))

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[Lines]":
        """Hand over entries that open nothing, to be stored in one transaction."""
        return self._writer.append(Append(tuple(entries)))

    async def _tell_refusal(self) -> None:
        """Say on stderr when new calls begin to be refused, and when that is over."""
        now, refusal = time.monotonic(), self.refusal
        is_told = self._refusing_since is not None or now - self._refusal_told_at < TOLD_SECONDS
        if refusal is None and self._refusing_since is not None:
            log.warning("New calls are taken again, after %.0f s", now - self._refusing_since)
            self._refusing_since = None
        elif isinstance(refusal, QueueFull) and not is_told:  # a broken queue ends the process
            log.error("New calls are refused: %s", refusal)
            self._refusing_since = self._refusal_told_at = now

    # The way out.

    def flush(self) -> "asyncio.Task[None]":
        """Seal and upload everything now (SIGUSR1); calls continue meanwhile."""
        self._recovery.hurry()
        return asyncio.ensure_future(self._advance(everything=True))

    async def _advance(self, everything: bool = False) -> None:
        """One pass of the drain over the own file; at most one runs at a time."""
        async with self._draining:
            self._drain.everything = everything
            if everything:
                self._drain.backoff.try_now()
            try:
                await self._drain.advance()
            except QueueError as error:
                log.debug("Drain stopped: %s", error)

    async def close(self, upload_seconds: float) -> bool:
        """Upload what the store takes within `upload_seconds`, leave the rest for the next owner.

        Returns whether everything was uploaded; the folder is removed then. Calls must have
        been closed before. Raises `QueueBroken` where the disk hangs: the folder's lock is held
        until the process is gone, and threads may wait for the disk for ever.
        """
        for work in self._repeated:
            work.stop()
        is_stalled = isinstance(self.refusal, QueueStalled)
        flush = self.flush()
        await asyncio.wait({flush}, timeout=0 if is_stalled else upload_seconds)
        flush.cancel()
        try:
            async with asyncio.timeout(STALLED_CLOSE_SECONDS if is_stalled else CLOSE_SECONDS):
                return await self._close_files(flush)
        except TimeoutError:
            raise QueueBroken(
                f"the disk of the log queue {self._owned.path} does not answer, so this process "
                "ends without closing its files; nothing is lost: repair the disk, and the next "
                "start uploads the rows"
            ) from None
        finally:
            self._uploads.close()

    async def _close_files(self, flush: "asyncio.Task[None]") -> bool:
        looks = [self._watching] if self._watching is not None else []
        await asyncio.gather(flush, *looks, return_exceptions=True)
        await self._recovery.stop()
        empty = await self._is_empty()
        await self._writer.close()
        if empty:
            await asyncio.to_thread(self._owned.remove)
        elif not isinstance(self._writer.refusal, QueueBroken):
            self._owned.release()
        return empty

    async def _is_empty(self) -> bool:
        try:
            return await self._writer.run(Store.is_empty)
        except QueueError:
            return False

    # What it looks like.

    async def status(self) -> QueueStatus:
        """What /health shows; at most a second old, also while the disk hangs."""
        await asyncio.wait({self._fresh_state()}, timeout=STATUS_PATIENCE_SECONDS)
        states = [self._state, *self._recovery.states()]
        oldest = min((s.oldest_timestamp_ms for s in states if s.oldest_timestamp_ms), default=None)
        counts = self._uploads.counts
        left = self._recovery.left()
        pace = self._writer.pace
        return QueueStatus(
            queue_id=self.queue_id,
            sink=self._sink.identity,
            accepted_rows=sum(s.accepted_rows for s in states),
            queued_rows=sum(s.queued_rows for s in states),
            queued_bytes=sum(s.queued_bytes for s in states),
            oldest_age_seconds=max(0.0, time.time() - oldest / 1000) if oldest else None,
            open_calls=sum(s.open_calls for s in states),
            adopted_files=self._recovery.adopted_files,
            quarantined_files=self._recovery.quarantined_files,
            quarantined_queues=sum(queue.is_quarantined for queue in left),
            left_queues=len(left),
            left_rows=sum(queue.rows or 0 for queue in left),
            left_uncounted_queues=sum(queue.rows is None for queue in left),
            left_oldest_age_seconds=max((q.age_seconds() for q in left), default=None),
            left=left,
            damaged_rows=sum(s.damaged_rows for s in states),
            damaged_texts=sum(s.damaged_texts for s in states),
            batches_sealed=counts.batches_sealed,
            batches_uploaded=counts.batches_uploaded,
            uploaded_rows=sum(s.uploaded_rows for s in states),
            upload_failures=counts.upload_failures,
            last_upload_at=counts.last_upload_at,
            last_error=counts.last_error,
            oldest_uncommitted_seconds=pace.oldest_waiting_seconds,
            last_commit_seconds=pace.last_seconds,
            last_commit_appends=pace.last_appends,
        )

    def _fresh_state(self) -> "asyncio.Future[None]":
        """Look at the files again, unless a look is in progress: a hanging disk gets one."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())
        return self._watching

    async def _watch(self) -> None:
        try:
            self._state = await self._writer.run(self._measured_state)
        except QueueError as error:
            log.debug("No fresh state of the queue: %s", error)
        await self._recovery.refresh()

    def _measured_state(self, store: Store) -> StoreState:
        self._space.measure(store.free_bytes)
        return store.state()


def _is_given_up(stored: "asyncio.Future[Lines]") -> bool:
    has_ended = stored.done() and not stored.cancelled()
    return has_ended and isinstance(stored.exception(), QueueStalled)


def _born(root: Path, meta: Meta) -> tuple[folder.OwnedFolder, Store]:
    folder.prepare_root(root)
    owned = folder.give_birth(root, meta)
    try:
        return owned, owned.with_room(lambda: Store.open(owned.path))
    except QueueError as error:
        owned.remove()
        raise QueueFolderUnusable(str(error)) from error
