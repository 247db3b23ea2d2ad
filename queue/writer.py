"""The one thread that touches a queue's file, and group commit.

The event loop hands over appends and jobs through a mailbox and never waits for a disk. What
arrives while a commit runs is gathered and goes into the next commit, so the rate follows the load
and not the disk's fsync: one slow fsync serves all calls that wait for it. The answers of a whole
group come back to the loop in a single wake-up, with which it sends what it has gathered.

Promises: a future resolves only after its rows were fsynced. Appends and jobs are carried out
in the order in which they were handed over. A closing append is never refused for want of
room: where not even its slim form fits it is held and tried again until it is stored or the
process ends. On a disk that hangs new calls are refused, see stall_clock.py. After an error that
says the file itself failed, nothing is acknowledged any more and the file is not touched again,
not even to close it: the next owner reads it with every checksum verified, which a checkpoint at
the end would not do.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from open_llm_proxy.queue.channel import Channel
from open_llm_proxy.queue.disk_space import DiskSpace
from open_llm_proxy.queue.entry import Append, Lines
from open_llm_proxy.queue.errors import (
    NotAQueue,
    QueueBroken,
    QueueClosed,
    QueueError,
    QueueFull,
)
from open_llm_proxy.queue.schema import is_damage, is_disk_full
from open_llm_proxy.queue.stall_clock import StallClock, fail
from open_llm_proxy.queue.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP_MAX_BYTES = 4 * 1024 * 1024
GROUP_MAX_APPENDS = 1024
HELD_RETRY_SECONDS = 1.0
PENDING_MAX_BYTES = 64 * 1024 * 1024


class _Pending(NamedTuple):
    append: Append
    future: "asyncio.Future[Lines]"
    size_bytes: int


class _Job(NamedTuple):
    work: Callable[[Store], Any]
    future: "asyncio.Future[Any]"
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CommitPace:
    """How the disk keeps up: the last commit, and the wait of what is not committed yet."""

    last_seconds: float = 0.0
    last_appends: int = 0
    oldest_waiting_seconds: float = 0.0


class _Report(NamedTuple):
    """What the thread tells the loop: results or exceptions, and the lines that are durable."""

    outcomes: Sequence[tuple[_Pending | _Job, Any]]
    lines: list[bytes]
    broken: QueueBroken | None


class Writer:
    """Owns a `Store` on a thread of its own; used from one event loop.

    `on_committed` gets the lines of each group on the loop, in order, after they are durable.
    `on_broken` is called once, on the loop, when the file failed. `pending_max_bytes` bounds
    what may wait between the loop and the disk before new calls are refused.
    """

    def __init__(
        self,
        store: Store,
        space: DiskSpace | None = None,
        *,
        on_committed: Callable[[list[bytes]], None] | None = None,
        on_broken: Callable[[QueueBroken], None] | None = None,
        pending_max_bytes: int = PENDING_MAX_BYTES,
    ) -> None:
        self.meta = store.meta
        self._store = store
        self._space = space
        self._on_committed = on_committed
        self._on_broken = on_broken
        self._pending_max_bytes = pending_max_bytes
        self._pending_bytes = 0
        self._clock = StallClock()
        self._last_commit = (0.0, 0)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._outbox: list[_Pending] = []
        self._outbox_bytes = 0
        self._is_at_work = False  # the thread has what was sent, and has reported nothing since
        self._mailbox: Channel[list[_Pending] | _Job | None] = Channel()
        self._reports: Channel[_Report | None] = Channel()
        self._loop.add_reader(self._reports.descriptor, self._read_reports)
        self._held: list[_Pending] = []
        self._broken: QueueBroken | None = None
        self._closed = False
        self._close_cleanly = True
        self._thread = threading.Thread(
            target=self._run, name=f"queue-{store.queue_id}", daemon=True
        )
        self._thread.start()

    # On the event loop.

    @property
    def refusal(self) -> QueueError | None:
        """Why a new call cannot be opened now, or None."""
        if self._broken is not None:
            return self._broken
        if self._closed:
            return QueueClosed("the log queue is closed")
        if self._pending_bytes > self._pending_max_bytes:
            return QueueFull("the log queue's disk cannot keep up; try again shortly")
        if self._space is not None and self._space.refusal is not None:
            return self._space.refusal
        return self._clock.refusal

    @property
    def pace(self) -> CommitPace:
        return CommitPace(*self._last_commit, self._clock.waited_seconds)

    def append(self, append: Append) -> "asyncio.Future[Lines]":
        """Hand `append` over before returning; the future resolves after its fsync.

        Raises `QueueFull`, `QueueBroken` or `QueueClosed` at once where a new call must be
        refused; an append that closes a call is refused only by the last two.
        """
        refusal = self.refusal
        if refusal is not None and (append.closes is None or not isinstance(refusal, QueueFull)):
            raise refusal
        future: asyncio.Future[Lines] = self._loop.create_future()
        self._pending_bytes += (size_bytes := append.size_bytes)
        self._clock.begin(future, append.closes is not None)
        self._outbox.append(_Pending(append, future, size_bytes))
        self._outbox_bytes += size_bytes
        is_full = self._outbox_bytes >= GROUP_MAX_BYTES or len(self._outbox) >= GROUP_MAX_APPENDS
        if is_full:
            self._send()
        elif not self._is_at_work and len(self._outbox) == 1:
            if self._last_commit[1] > 1:
                self._loop.call_soon(self._send)
            else:
                self._send()
        return future

    def run(self, work: Callable[[Store], T]) -> "asyncio.Future[T]":
        """Have the writer's thread do `work` on the store, between two commits."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._broken is not None or self._closed:
            fail(future, self._broken or QueueClosed("the log queue is closed"))
        else:
            self._send()
            self._is_at_work = True
            self._mailbox.put(_Job(work, future))
        return future

    async def close(self, cleanly: bool = True) -> None:
        """Carry out what was handed over, close the file and end the thread.

        A file that failed stays as it is, unless its content is what failed.
        """
        if not self._closed:
            self._closed = True
            self._close_cleanly = cleanly
            self._send()
            self._mailbox.put(None)
        await self._ended.wait()
        self._clock.stop()
        self._thread.join()

    def _send(self) -> None:
        """Put what was gathered into the mailbox, as one letter.

        Where the thread is at work, when it reports; where the last commit was of several appends,
        at the end of the loop's turn, in which more will come; else at once.
        """
        if self._outbox:
            self._is_at_work = True
            self._mailbox.put(self._outbox)
            self._outbox, self._outbox_bytes = [], 0

    def _read_reports(self) -> None:
        self._reports.clear()
        self._is_at_work = False
        self._send()
        while self._reports.items:
            report = self._reports.items.popleft()
            if report is not None:
                self._settle(report)
            else:
                self._loop.remove_reader(self._reports.descriptor)
                self._ended.set()

    def _settle(self, report: _Report) -> None:
        for asked, outcome in report.outcomes:
            future = asked.future
            self._pending_bytes -= asked.size_bytes
            self._clock.end(future)
            if future.done():
                continue
            if isinstance(outcome, Exception):
                fail(future, outcome)
            else:
                future.set_result(outcome)
        if report.lines and self._on_committed is not None:
            self._on_committed(report.lines)
        if report.broken is not None and self._on_broken is not None:
            self._on_broken(report.broken)

    # On the writer's thread.

    def _run(self) -> None:
        stop = False
        try:
            while not stop:
                group, job, stop = self._collect()
                if group or self._held:
                    self._commit(self._held + group)
                    if self._held:
                        self._post(())  # that no answer comes must not keep the loop waiting
                if job is not None:
                    self._do(job)
                self._checkpoint()
            self._end()
        finally:
            self._reports.put(None)

    def _collect(self) -> tuple[list[_Pending], _Job | None, bool]:
        """The next group of appends, the job that came right behind it, and the end's mark."""
        self._mailbox.wait(HELD_RETRY_SECONDS if self._held else None)
        group: list[_Pending] = []
        size_bytes = 0
        letters = self._mailbox.items
        while letters and size_bytes < GROUP_MAX_BYTES and len(group) < GROUP_MAX_APPENDS:
            letter = letters.popleft()
            if not isinstance(letter, list):
                return group, letter, letter is None
            group += letter
            for pending in letter:
                size_bytes += pending.size_bytes
        return group, None, False

    def _commit(self, group: list[_Pending]) -> None:
        """Store a group and answer it. Where the disk is full, give up as little as possible:

        1. A reserve is given up and new calls are refused, which costs nobody an entry; what
           closes a call is tried again, once more after each further reserve.
        2. With nothing left to give up, each closing is stored by itself, without its texts if
           need be.
        3. What does not fit even so is held, and tried again with the next group.
        """
        self._held = []
        if self._broken is not None:
            self._refuse(group, self._broken)
            return
        if self._space is not None and self._space.refusal is not None:
            group = self._refuse_openings(group, self._space.refusal)
        while group and not self._is_stored(group, [pending.append for pending in group]):
            made_room = self._make_room()
            closings = self._refuse_openings(group, self._no_room())
            if not made_room and len(closings) == len(group):
                for pending in group:
                    self._commit_alone(pending)
                return
            group = closings

    def _commit_alone(self, pending: _Pending) -> None:
        """Store a closing in the best form that fits, or hold it."""
        if self._broken is not None:
            self._refuse([pending], self._broken)
        elif not any(self._is_stored([pending], [form]) for form in pending.append.forms):
            self._held.append(pending)

    def _is_stored(self, group: list[_Pending], appends: list[Append]) -> bool:
        """Store and answer the group; False where there is no room for it, and nothing is done.

        A file that fails is an answer too: nobody waits for this group then.
        """
        if not self._fits(appends):
            return False
        started = time.monotonic()
        try:
            results = self._store.commit(appends)
        except sqlite3.Error as error:
            if is_disk_full(error):
                return False
            self._fail(error, group)
        except Exception as error:
            # A defect of ours. Whoever waits for this group must not wait for ever.
            self._fail(error, group)
        else:
            self._last_commit = (time.monotonic() - started, len(appends))
            lines = [line for result in results for line in result]
            if self._space is not None:
                self._space.note_written(sum(map(len, lines)))
            self._post(list(zip(group, results, strict=True)), lines)
        return True

    def _fits(self, appends: list[Append]) -> bool:
        space = self._space
        if space is None or not space.is_last:
            return True
        return space.fits(sum(append.size_bytes for append in appends))

    def _make_room(self) -> bool:
        return self._space is not None and self._space.exhausted()

    def _no_room(self) -> QueueFull:
        refusal = self._space.refusal if self._space is not None else None
        return refusal or QueueFull("the log queue's disk is full; try again later")

    def _refuse_openings(self, group: list[_Pending], refusal: QueueFull) -> list[_Pending]:
        """Refuse what opens or needs no call; returns the appends that close one."""
        self._refuse([p for p in group if p.append.closes is None], refusal)
        return [p for p in group if p.append.closes is not None]

    def _refuse(self, group: list[_Pending], refusal: QueueError) -> None:
        if group:
            self._post([(pending, refusal) for pending in group])

    def _do(self, job: _Job) -> None:
        outcome: Any = self._broken
        if self._broken is None:
            outcome = self._outcome_of(job)
            while isinstance(outcome, QueueFull) and self._make_room():
                outcome = self._outcome_of(job)
        self._post([(job, outcome)])

    def _outcome_of(self, job: _Job) -> Any:
        """What the job returned, or the exception that its future is to raise."""
        try:
            return job.work(self._store)
        except (sqlite3.Error, NotAQueue, OSError) as error:
            if is_disk_full(error):
                return self._no_room()
            self._fail(error, [])
            return self._broken
        except Exception as error:
            return error

    def _checkpoint(self) -> None:
        """Keep the WAL short; its rows are durable already, so that nobody waits for this."""
        if self._broken is not None:
            return
        try:
            self._store.checkpoint_if_due()
        except sqlite3.Error as error:
            if not is_disk_full(error):
                self._fail(error, [])
            else:
                self._make_room()

    def _end(self) -> None:
        self._refuse(self._held, self._broken or self._no_room())
        if self._broken is not None and not self._broken.is_damage:
            return
        try:
            self._store.close(self._close_cleanly and self._broken is None)
        except sqlite3.Error as error:
            log.error("Queue %s did not close cleanly: %s", self._store.queue_id, error)

    def _fail(self, error: Exception, group: list[_Pending]) -> None:
        code = getattr(error, "sqlite_errorname", None) or type(error).__name__
        self._broken = QueueBroken(
            f"the queue file of {self._store.queue_id} failed with {code}; "
            "this process must end, and the next start recovers the file",
            is_damage=isinstance(error, NotAQueue) or is_damage(error),
        )
        self._broken.__cause__ = error
        is_expected = isinstance(error, sqlite3.Error | NotAQueue | OSError)
        if self._on_broken is not None or not is_expected:  # else whoever uses this tells it
            log.error("%s", self._broken, exc_info=None if is_expected else error)
        self._post([(pending, self._broken) for pending in group], broken=self._broken)

    def _post(
        self,
        outcomes: Sequence[tuple[_Pending | _Job, Any]],
        lines: list[bytes] | None = None,
        broken: QueueBroken | None = None,
    ) -> None:
        self._reports.put(_Report(outcomes, lines or [], broken))
