"""Adoption: a server finishes the queues of processes that have ended.

At start and every few minutes the folders below LOG_QUEUE_DIR are looked through; those that had a
living owner then are tried again every second, so that what a process leaves behind in a rollout is
finished at once by the one that took its place. A folder whose lock is free gets a new owner here:
its open calls are closed with the `interrupted` lines that were kept for them, its rows are sealed
and uploaded by the same drain as the process's own, and the folder is removed. All of it happens in
the background; a start never waits for it.

What cannot be read as a queue is moved to ``quarantine/`` whole and logged as an error. A file
from another release, or with batches that were first tried on another sink, is left as it is.
Where the disk is at fault and not the file, the next look or the next start tries again.
"""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.errors import OwnerAlive, QueueError
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.left_queue import LeftQueue
from open_llm_proxy.queue.log_queue import OnCommitted
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.orphans.left_queues import LeftQueues, may_be_elsewhere
from open_llm_proxy.queue.orphans.orphan import End, Ending, Orphan
from open_llm_proxy.queue.periodic import Periodic
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import StoreState
from open_llm_proxy.queue.uploads import Uploads

log = logging.getLogger(__name__)

LOOK_SECONDS = 120.0
NEIGHBOUR_SECONDS = 1.0
PASS_SECONDS = 1.0
# Queues in hand at once; each has a thread, a connection and objects in flight.
AT_ONCE = 4


class Adoption:
    """Looks for unfinished queues below `root` and finishes them, a few at a time.

    `on_committed` gets the `interrupted` lines that adoption wrote. A queue that needs another
    pass, as the store does not take it, gets one every `pass_seconds`. It is the `Recovery` that a
    `LogQueue` is started with.
    """

    def __init__(
        self,
        root: Path,
        own_id: str,
        sink: Sink,
        uploads: Uploads,
        on_committed: OnCommitted,
        *,
        pass_seconds: float = PASS_SECONDS,
    ) -> None:
        self.quarantined_files = 0
        self.orphans: dict[str, Orphan] = {}
        self._root = root
        self._own_id = own_id
        self._sink = sink
        self._uploads = uploads
        self._on_committed = on_committed
        self._pass_seconds = pass_seconds
        self._adopted: set[str] = set()
        self._settled = StoreState()  # of the queues that are finished or left
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Folders that had a living owner when they were last looked at.
        self._neighbours: set[Path] = set()
        # Folders that only a person can help; named once, not at every look.
        self._left_alone: set[str] = set()
        self._left = LeftQueues(root)
        # They keep the connection to a file that failed, which may not be collected, see writer.py.
        self._failed: list[Orphan] = []
        self._looking = asyncio.Lock()
        self._looks: set[asyncio.Future[None]] = set()
        self._repeated = (
            Periodic(self.look, LOOK_SECONDS),
            Periodic(self.try_neighbours, NEIGHBOUR_SECONDS),
        )
        self._stopped = False

    def start(self) -> None:
        """Look now and every few minutes, until `stop`."""
        self._look_soon()
        for periodic in self._repeated:
            periodic.start()

    async def look(self) -> None:
        """One look at the folders: take over those whose owner has ended."""
        async with self._looking:
            try:
                await asyncio.to_thread(folder.clear_rubbish, self._root)
                found = await asyncio.to_thread(folder.queue_folders, self._root)
            except OSError as error:
                log.error("Cannot look for unfinished queues: %s", error)
                return
            for path in found:
                if self._stopped or len(self._tasks) >= AT_ONCE:
                    return
                if path.name not in (self._own_id, *self._tasks, *self._left_alone):
                    await self._take(path)

    async def try_neighbours(self) -> None:
        """Take over those of the known neighbours whose owner has ended since."""
        async with self._looking:
            for path in sorted(self._neighbours):
                if self._stopped or len(self._tasks) >= AT_ONCE:
                    return
                await self._take(path)

    def hurry(self) -> None:
        """Try the store again now, whatever was being waited for."""
        for orphan in self.orphans.values():
            for drain in orphan.drains:
                drain.backoff.try_now()

    @property
    def adopted_files(self) -> int:
        """How many queues were opened so far."""
        return len(self._adopted)

    def states(self) -> list[StoreState]:
        """Of the queues in hand, and one for all that are finished or left."""
        return [self._settled, *(orphan.state for orphan in self.orphans.values())]

    def left(self) -> list[LeftQueue]:
        return self._left.all()

    async def refresh(self) -> None:
        """Look at the files in hand, for `states`, and at what is left, for `left`."""
        await asyncio.to_thread(self._left.look)
        for orphan in list(self.orphans.values()):
            try:
                await orphan.refresh()
            except QueueError as error:
                log.debug("No fresh state of queue %s: %s", orphan.queue_id, error)

    async def stop(self) -> None:
        """Leave unfinished files in order; whoever starts next resumes them."""
        self._stopped = True
        for periodic in self._repeated:
            periodic.stop()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._looks, return_exceptions=True)

    def _look_soon(self) -> None:
        look = asyncio.ensure_future(self.look())
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _take(self, path: Path) -> None:
        """Begin to finish the queue at `path`, unless its owner lives."""
        self._neighbours.discard(path)
        try:
            # On a disk that hangs even the opening of a lock does not return.
            owned = await asyncio.to_thread(folder.adopt, path)
        except OwnerAlive:
            if await asyncio.to_thread(path.exists):  # else its owner finished it
                self._neighbours.add(path)
            return
        except OSError as error:
            log.error("Cannot take over %s: %s", path, error)
            self._leave(
                path,
                f"{error.filename or path} cannot be opened ({error.strerror}); "
                "make it readable and restart",
            )
            return
        if self._stopped:
            owned.release()
            return
        self._left.forget(path)
        reach("adopted")
        task = asyncio.create_task(self._finish(owned))
        self._tasks[owned.queue_id] = task
        task.add_done_callback(partial(self._forget, owned.queue_id))

    def _forget(self, queue_id: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[queue_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Recovering queue %s failed", queue_id, exc_info=error)
            self._leave(self._root / queue_id, "its recovery failed, see stderr; restart")

    def _leave(self, path: Path, reason: str, state: StoreState | None = None) -> None:
        """Leave a queue alone from now on."""
        self._left_alone.add(path.name)
        self._note_left(path, reason, state or StoreState())

    def _note_left(self, path: Path, reason: str, state: StoreState) -> None:
        # A queue that could not be opened has shown no row, which does not mean that it has none.
        self._left.note(path, reason, state.queued_rows or None, state.oldest_timestamp_ms)

    async def _finish(self, owned: OwnedFolder) -> None:
        orphan = self.orphans[owned.queue_id] = Orphan(owned)
        try:
            ending = await orphan.finish(self._upload, quarantine=True)
        finally:
            del self.orphans[owned.queue_id]
            state = orphan.state
            self._settled = replace(
                self._settled,
                accepted_rows=self._settled.accepted_rows + state.uploaded_rows,
                uploaded_rows=self._settled.uploaded_rows + state.uploaded_rows,
                damaged_rows=self._settled.damaged_rows + state.damaged_rows,
                damaged_texts=self._settled.damaged_texts + state.damaged_texts,
            )
        self._note(orphan, ending)
        if ending.end is not End.LATER:
            self._look_soon()  # there is room for another one

    async def _upload(self, orphan: Orphan) -> str | None:
        """Upload everything, for as long as it takes; returns why batches are left, if any are."""
        self._adopted.add(orphan.queue_id)
        log.info(
            "Recovered queue %s of a previous process: uploading %s, marking %s interrupted",
            orphan.queue_id,
            counted(orphan.state.queued_rows, "row"),
            counted(orphan.state.open_calls, "call"),
        )
        drain = orphan.drain_to(self._sink, self._uploads)
        while True:
            if await orphan.advance(drain, self._on_committed):
                break
            await asyncio.sleep(self._pass_seconds)
        if not orphan.state.queued_rows:
            return None
        return may_be_elsewhere(orphan.owned.path, len(drain.foreign), drain.foreign[0].sink)

    def _note(self, orphan: Orphan, ending: Ending) -> None:
        match ending.end:
            case End.FINISHED:
                log.info("Queue %s fully uploaded and removed", orphan.queue_id)
            case End.UNREADABLE:
                log.error("Queue %s cannot be read: %s", orphan.queue_id, ending.reason)
                self.quarantined_files += 1
            case End.LATER:
                log.error("Queue %s is tried again later: %s", orphan.queue_id, ending.reason)
                self._note_left(orphan.owned.path, ending.reason, orphan.state)
            case End.LEFT | End.DISK_FAILED:
                log.error("Queue %s is not finished: %s", orphan.queue_id, ending.reason)
                self._leave(orphan.owned.path, ending.reason, orphan.state)
                if ending.end is End.DISK_FAILED:
                    self._failed.append(orphan)
