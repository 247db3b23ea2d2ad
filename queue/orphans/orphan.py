"""A dead owner's queue in this process's hands, and how it is finished.

A starting server (adoption.py) and an operator (replay.py) finish a queue by the same steps:
close its open calls with the lines that were kept for them, seal every row, upload, acknowledge.
They differ in the folders that they look at and in when they give up. So two of them, one after
the other, leave the same objects as one alone.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TypeVar

from open_llm_proxy.queue.disk_space import Space
from open_llm_proxy.queue.drain import Drain, UploadCounts, shrink
from open_llm_proxy.queue.errors import NeedsMending, QueueBroken, QueueError, QueueFull
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.objects import ObjectReader
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")


class DeadQueue:
    """Made by `open`, and its `writer` is to be closed; `state` is that of the last look."""

    def __init__(self, owned: OwnedFolder, store: Store) -> None:
        self.owned = owned
        self.queue_id = store.queue_id
        self.state: StoreState = store.state()
        self.waits_for_room = False
        self.writer = Writer(store, Space(owned.path.parent, owned.path, max_bytes=0))
        self.objects = ObjectReader(self.writer, store.object_max_bytes, store.window_seconds)
        self._object_max_bytes = store.object_max_bytes
        self._window_seconds = store.window_seconds

    @classmethod
    async def open(cls, owned: OwnedFolder, mend_first: bool = False) -> "DeadQueue":
        """Open the queue in a folder whose lock this process holds; raises what `Store.open` does.

        On a full disk its own reserve is given up: that is what lets it be finished there.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(open_store, owned, mend_first))
        try:
            store = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread cannot be stopped: wait for what it opened, and leave that in order.
            with contextlib.suppress(QueueError):
                await asyncio.to_thread((await opening).close, True)
            raise
        return cls(owned, store)

    def drain_to(
        self,
        sink: Sink,
        uploads: Executor,
        slots: asyncio.Semaphore,
        counts: UploadCounts,
        *,
        again: bool = False,
        only_bound: bool = False,
    ) -> Drain:
        """A drain of all its rows to `sink`, see `Drain`."""
        return Drain(
            self.writer,
            sink,
            uploads,
            slots,
            counts,
            object_max_bytes=self._object_max_bytes,
            window_seconds=self._window_seconds,
            everything=True,
            again=again,
            only_bound=only_bound,
        )

    async def close_calls(self) -> list[bytes]:
        """Close the calls that the owner left open; returns the lines that this wrote."""
        lines = await self.writer.run(Store.close_open_calls)
        if lines:
            reach("open-calls-closed")
        return lines

    async def advance(self, drain: Drain, on_committed: Callable[[list[bytes]], None]) -> bool:
        """One pass; returns whether nothing is left that `drain` could do.

        `on_committed` gets the lines that close open calls. Want of room is not raised but
        noted in `waits_for_room`; another pass may find some.
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
                log.error("queue %s waits for room: %s", self.queue_id, full)
            self.waits_for_room = True
        else:
            self.waits_for_room = False
        is_empty = await self.writer.run(Store.is_empty)
        self.state = await self.writer.run(Store.state)
        foreign_rows = sum(batch.rows for batch in drain.foreign)
        is_foreign = 0 < foreign_rows == self.state.queued_rows and not self.state.open_calls
        return is_empty or is_foreign

    async def shrink(self) -> None:
        """Give the room of acknowledged rows back to the disk; for a file that stays."""
        await shrink(self.writer)


async def mended_if_damaged(owned: OwnedFolder, attempt: Callable[[bool], Awaitable[T]]) -> T:
    """Make the `attempt` to finish a queue, and where it is damaged another one that mends first.

    A copy of the file as it was found is kept before. The queue must be closed after an attempt.
    """
    try:
        return await attempt(False)
    except (NeedsMending, QueueBroken) as error:
        if isinstance(error, QueueBroken) and not error.is_damage:
            raise
        kept = await asyncio.to_thread(owned.keep_copy)
        log.error("queue %s is damaged (%s); a copy is in %s", owned.queue_id, error, kept)
        return await attempt(True)


def open_store(owned: OwnedFolder, mend_first: bool = False) -> Store:
    """`Store.open`, which on a full disk may take the room of the queue's own reserves."""
    while True:
        try:
            return Store.open(owned.path, mend_first)
        except QueueFull:
            if not owned.give_up_reserve():
                raise
