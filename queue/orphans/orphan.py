"""A dead owner's queue in this process's hands, and the one way in which it is finished.

Lock, repair if need be, close the open calls with the lines that were kept for them, deliver every
row, remove the folder. A starting server (adoption.py) and an operator (replay.py) go this way and
meet the same errors on it; they differ in where the rows go and in when they give up. So two of
them, one after the other, leave the same objects as one alone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeVar

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage import repair
from open_llm_proxy.queue.disk_space import DiskSpace
from open_llm_proxy.queue.drain import Drain, shrink
from open_llm_proxy.queue.errors import (
    NeedsRepair,
    NotAQueue,
    OtherSchema,
    QueueBroken,
    QueueError,
    QueueFull,
)
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.uploads import Uploads
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")


class End(Enum):
    """How far a queue was finished."""

    FINISHED = auto()  # every row is where it belongs
    LEFT = auto()  # what is left needs another sink, another release or a person
    LATER = auto()  # the disk did not let it be finished now; trying again may help
    UNREADABLE = auto()  # the file, or what is left of it, cannot be read as a queue
    DISK_FAILED = auto()  # the open file failed: its lock is kept until this process ends


@dataclass(frozen=True, slots=True)
class Ending:
    end: End
    reason: str = ""


class Orphan:
    """The queue in a folder whose lock this process holds.

    `state` is that of the last look. `lost_rows` were replaced by a repair. `waits_for_room`: the
    disk was too full for the last pass.
    """

    def __init__(self, owned: OwnedFolder) -> None:
        self.owned = owned
        self.queue_id = owned.queue_id
        self.state = StoreState()
        self.waits_for_room = False
        self.drains: list[Drain] = []
        self._before = StoreState()  # what earlier attempts did
        self._store: Store | None = None
        self._writer: Writer | None = None

    async def finish(
        self,
        deliver: "Deliver",
        *,
        remove: bool = True,
        quarantine: bool = False,
    ) -> Ending:
        """Finish the queue by `deliver`, and give its folder back, or remove it.

        `deliver` takes the open queue's rows where they belong, and returns why some are left. It
        is begun anew after a repair. `quarantine`: move an unreadable queue away, whole.
        What `deliver` raises beyond `QueueError` and OSError is passed on.
        """
        try:
            ending = await self._ending(deliver)
            if ending.end is End.FINISHED and remove:
                return await self._removed()
            if ending.end is End.UNREADABLE and quarantine:
                return await self._quarantined(ending)
        except BaseException:
            self.owned.release()
            raise
        if ending.end is not End.DISK_FAILED:
            self.owned.release()
        return ending

    async def _ending(self, deliver: "Deliver") -> Ending:
        """The one ladder of errors."""
        try:
            left = await self._repaired_if_damaged(deliver)
        except (NotAQueue, QueueBroken) as error:
            is_damage = isinstance(error, NotAQueue) or error.is_damage
            return Ending(End.UNREADABLE if is_damage else End.DISK_FAILED, str(error))
        except OtherSchema as error:
            return Ending(End.LEFT, str(error))
        except QueueError as error:
            return Ending(End.LATER, str(error))
        except OSError as error:
            is_full = schema.is_disk_full(error)
            reason = f"{error.filename or self.owned.path}: {error.strerror or error}"
            return Ending(End.LATER if is_full else End.UNREADABLE, reason)
        return Ending(End.FINISHED) if left is None else Ending(End.LEFT, left)

    async def _removed(self) -> Ending:
        try:
            await _to_its_end(self.owned.remove)
        except OSError as error:
            self.owned.release()
            reason = f"everything is uploaded, but {error.filename} cannot be removed"
            return Ending(End.LEFT, f"{reason} ({error.strerror or error})")
        reach("removed")
        return Ending(End.FINISHED)

    async def _quarantined(self, ending: Ending) -> Ending:
        try:
            kept = await _to_its_end(self.owned.quarantine)
        except OSError as error:
            self.owned.release()
            reason = f"{error.filename or self.owned.path} ({error.strerror or error})"
            return Ending(End.LEFT, f"{ending.reason}; it cannot be moved away: {reason}")
        return Ending(End.UNREADABLE, f"{ending.reason}; it was moved to {kept}")

    async def _repaired_if_damaged(self, deliver: "Deliver") -> str | None:
        """An attempt, and where that meets damage a repair and another one.

        A copy of the file as it was found is kept before.
        """
        try:
            await _to_its_end(lambda: self.owned.with_room(self._check))
            return await self._attempt(deliver)
        except (NeedsRepair, QueueBroken) as error:
            if isinstance(error, QueueBroken) and not error.is_damage:
                raise
            kept = await _to_its_end(self.owned.keep_copy)
            log.error(
                "Queue %s is damaged (%s) and is repaired; a copy is in %s",
                self.queue_id,
                error.__cause__ or error,
                kept,
            )
        # What was done since the last look counts too; the file itself is not asked any more.
        done = self._store.done() if self._store is not None else StoreState()
        lost = await _to_its_end(lambda: self.owned.with_room(self._repair))
        self._before = replace(done, damaged_rows=done.damaged_rows + lost)
        return await self._attempt(deliver)

    def _repair(self) -> int:
        return repair.repair_folder(self.owned.path)

    def _check(self) -> None:
        repair.repair_log(self.owned.path)
        if not repair.is_sound(self.owned.path):
            raise NeedsRepair("its tables do not agree")

    async def _attempt(self, deliver: "Deliver") -> str | None:
        path = self.owned.path
        self._store = self._writer = None
        self.drains = []
        try:
            store = await _to_its_end(lambda: self.owned.with_room(self._open))
            self._note(store.state())
            self._writer = Writer(store, DiskSpace(path.parent, path, max_bytes=0))
            return await deliver(self)
        finally:
            await self._close()

    def _open(self) -> Store:
        self._store = Store.open(self.owned.path)
        return self._store

    async def _close(self) -> None:
        if self._writer is not None:
            # Kept, with its store: a connection that is collected would checkpoint a file that
            # failed, see writer.py.
            await self._writer.close()
        elif self._store is not None:
            self._store.close(cleanly=True)

    # What `deliver` uses.

    @property
    def writer(self) -> Writer:
        assert self._writer is not None, "the queue is not open"
        return self._writer

    def drain_to(
        self, sink: Sink, uploads: Uploads, *, again: bool = False, only_bound: bool = False
    ) -> Drain:
        """A drain of all its rows to `sink`, see `Drain`."""
        drain = Drain(
            self.writer, sink, uploads, everything=True, again=again, only_bound=only_bound
        )
        self.drains.append(drain)
        return drain

    async def close_calls(self) -> list[bytes]:
        """Close the calls that the owner left open; returns the lines that this wrote."""
        lines = await self.writer.run(Store.close_open_calls)
        if lines:
            reach("open-calls-closed")
        return lines

    async def advance(self, drain: Drain, on_committed: Callable[[list[bytes]], None]) -> bool:
        """One pass; returns whether nothing is left that `drain` could do.

        `on_committed` gets the lines that close open calls. A full disk sets `waits_for_room`
        instead of raising; another pass may find some.
        """
        try:
            if lines := await self.close_calls():
                on_committed(lines)
            await drain.upload()
            # An empty queue's folder is removed next, which gives all of its room back at once.
            if not await self.writer.run(Store.is_empty):
                await self.shrink()
        except QueueFull as full:
            if not self.waits_for_room:
                log.error("Queue %s waits for room: %s", self.queue_id, full)
            self.waits_for_room = True
        else:
            self.waits_for_room = False
        is_empty = await self.writer.run(Store.is_empty)
        await self.refresh()
        foreign_rows = sum(batch.rows for batch in drain.foreign)
        is_foreign = 0 < foreign_rows == self.state.queued_rows and not self.state.open_calls
        return is_empty or is_foreign

    async def shrink(self) -> None:
        """Give the room of acknowledged rows back to the disk; for a file that stays."""
        await shrink(self.writer)

    async def refresh(self) -> None:
        """Look at the file again, if it is open."""
        if self._writer is not None:
            self._note(await self._writer.run(Store.state))

    def _note(self, state: StoreState) -> None:
        before = self._before
        self.state = replace(
            state,
            accepted_rows=before.accepted_rows + state.accepted_rows,
            uploaded_rows=before.uploaded_rows + state.uploaded_rows,
            damaged_rows=before.damaged_rows + state.damaged_rows,
        )


Deliver = Callable[[Orphan], Awaitable[str | None]]


async def _to_its_end(work: Callable[[], T]) -> T:
    """`work` on a thread. That cannot be stopped, so a cancellation waits for its end: what it
    does with the queue's files must not outlive the lock."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
