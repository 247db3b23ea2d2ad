"""Adoption: finishing the queues of processes that have ended.

At start and every few minutes the folders below LOG_QUEUE_DIR are looked through. One whose
lock is free gets a new owner here: its open calls are closed with the `interrupted` lines that
were kept for them, its rows are sealed and uploaded by the same drain as the process's own, and
the folder is removed. All of it happens in the background; a start never waits for it.

What cannot be read as a queue is moved to ``quarantine/`` whole and shouted about. A file from
a newer version, or with batches that were first tried on another sink, is left as it is. Where
the disk is at fault and not the file, the next look or the next start tries again.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.drain import Drain, UploadCounts
from open_llm_proxy.queue.errors import (
    NotAQueue,
    OwnerAlive,
    QueueBroken,
    QueueError,
    SchemaFromFuture,
)
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.orphans.orphan import DeadQueue, mended_if_damaged
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

# Files under adoption at once; each has a thread, a connection and objects in flight.
AT_ONCE = 4


class Adoption:
    """Looks for unfinished queues below `root` and finishes them, a few at a time.

    `on_committed` gets the `interrupted` lines that adoption wrote. `settled_rows` counts rows
    of files that are finished and gone, so that the process's balance stays whole.
    """

    def __init__(
        self,
        root: Path,
        own_id: str,
        sink: Sink,
        uploads: Executor,
        slots: asyncio.Semaphore,
        counts: UploadCounts,
        *,
        on_committed: Callable[[list[bytes]], None],
        poll_seconds: float,
    ) -> None:
        self.files: dict[str, DeadQueue] = {}
        self.adopted_files = 0
        self.quarantined_files = 0
        self.settled_rows = 0
        self.settled_damaged_rows = 0
        self._root = root
        self._own_id = own_id
        self._sink = sink
        self._uploads = uploads
        self._slots = slots
        self._counts = counts
        self._on_committed = on_committed
        self._poll_seconds = poll_seconds
        self._drains: dict[str, Drain] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Folders that only a person can help; named once, not at every look.
        self._left_alone: set[str] = set()
        # Were a failed file's connection collected, SQLite would checkpoint it, see writer.py.
        self._given_up: list[Writer] = []
        self._looking = asyncio.Lock()
        self._next_look: asyncio.Future[None] | None = None
        self._stopped = False

    async def look(self) -> None:
        """One look at the folders: take over those whose owner has ended."""
        async with self._looking:
            try:
                await asyncio.to_thread(folder.clear_rubbish, self._root)
                found = await asyncio.to_thread(folder.queue_folders, self._root)
            except OSError as error:
                log.error("cannot look for unfinished queues: %s", error)
                return
            for path in found:
                if self._stopped or len(self._tasks) >= AT_ONCE:
                    return
                if path.name not in (self._own_id, *self._tasks, *self._left_alone):
                    self._take(path)

    def _take(self, path: Path) -> None:
        """Begin to finish the queue at `path`, unless its owner lives."""
        try:
            owned = folder.adopt(path)
        except OwnerAlive:
            return
        except OSError as error:
            log.error("cannot take over %s: %s", path, error)
            self._left_alone.add(path.name)
            return
        reach("adopted")
        task = asyncio.create_task(self._finish(owned))
        self._tasks[owned.queue_id] = task
        task.add_done_callback(partial(self._forget, owned.queue_id))

    def hurry(self) -> None:
        """Try the store again now, whatever was being waited for."""
        for drain in self._drains.values():
            drain.backoff.try_now()

    async def stop(self) -> None:
        """Leave unfinished files in order; whoever starts next goes on with them."""
        self._stopped = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        looks = [self._next_look] if self._next_look is not None else []
        await asyncio.gather(*tasks, *looks, return_exceptions=True)

    def _forget(self, queue_id: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[queue_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("adoption of queue %s failed", queue_id, exc_info=error)
            self._left_alone.add(queue_id)

    async def _finish(self, owned: OwnedFolder) -> None:
        """Own the folder to the end of its queue, or until this process cannot go on with it."""
        try:
            await mended_if_damaged(owned, partial(self._own, owned))
        except (NotAQueue, OSError) as error:
            await self._quarantine(owned, error)
        except QueueBroken as broken:
            if broken.is_damage:
                await self._quarantine(owned, broken)
            else:
                # The lock is kept: what the disk has made of the file is for the next start.
                self._left_alone.add(owned.queue_id)
        except QueueError as error:
            log.error("%s", error)
            if isinstance(error, SchemaFromFuture):
                self._left_alone.add(owned.queue_id)
            owned.release()
        except asyncio.CancelledError:
            owned.release()
            raise

    async def _own(self, owned: OwnedFolder, mend_first: bool) -> None:
        """Open the queue and finish it, or leave it closed and raise why that cannot be."""
        file = await DeadQueue.open(owned, mend_first)
        self.files[owned.queue_id] = file
        self.adopted_files += 1
        log.warning(
            "adopted queue %s: %d rows to upload, %d calls to close",
            owned.queue_id,
            file.state.queued_rows,
            file.state.open_calls,
        )
        try:
            await self._drain(file)
        except BaseException:
            await file.writer.close()
            self._given_up.append(file.writer)
            raise
        finally:
            del self.files[owned.queue_id]
            self._drains.pop(owned.queue_id, None)
            self.settled_rows += file.state.uploaded_rows
            self.settled_damaged_rows += file.state.damaged_rows

    async def _drain(self, file: DeadQueue) -> None:
        """Close the open calls, upload everything and remove the folder."""
        drain = file.drain_to(self._sink, self._uploads, self._slots, self._counts)
        self._drains[file.owned.queue_id] = drain
        while True:
            if await file.advance(drain, self._on_committed):
                break
            await asyncio.sleep(self._poll_seconds)
        await file.writer.close()
        if file.state.queued_rows == 0:
            await asyncio.to_thread(file.owned.remove)
            reach("removed")
            log.warning("queue %s is finished", file.owned.queue_id)
            self._next_look = asyncio.ensure_future(self.look())
        else:
            self._leave_foreign(file.owned, drain.foreign)

    def _leave_foreign(self, owned: OwnedFolder, foreign: list[Batch]) -> None:
        log.error(
            "queue %s has %d batches that were first tried on %s: set the sink back, "
            "or send them elsewhere with `open-llm-proxy replay --again %s`",
            owned.queue_id,
            len(foreign),
            foreign[0].sink,
            owned.path,
        )
        self._left_alone.add(owned.queue_id)
        owned.release()

    async def _quarantine(self, owned: OwnedFolder, reason: Exception) -> None:
        target = await asyncio.to_thread(owned.quarantine)
        self.quarantined_files += 1
        log.error("queue %s was moved to %s: %s", owned.queue_id, target, reason)
