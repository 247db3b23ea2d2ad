"""Adoption: finishing the queues of processes that have ended.

At start and every few minutes the folders below LOG_QUEUE_DIR are looked through. One whose
lock is free gets a new owner here: its open calls are closed with the `interrupted` lines that
were kept for them, its rows are sealed and uploaded by the same drain as the process's own, and
the folder is removed. All of it happens in the background; a start never waits for it.

What cannot be read as a queue is moved to ``quarantine/`` whole and shouted about. A file from
a newer version, or with batches that were first tried on another sink, is left as it is.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.drain import Drain, UploadCounts
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, QueueBroken, QueueError
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

# Files under adoption at once; each has a thread, a connection and objects in flight.
AT_ONCE = 4


@dataclass(slots=True)
class AdoptedFile:
    """A dead owner's file in this process's hands."""

    owned: OwnedFolder
    writer: Writer
    drain: Drain
    state: StoreState


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
        counts: UploadCounts,
        *,
        on_committed: Callable[[list[bytes]], None],
        poll_seconds: float,
    ) -> None:
        self.files: dict[str, AdoptedFile] = {}
        self.adopted_files = 0
        self.quarantined_files = 0
        self.settled_rows = 0
        self.settled_damaged_rows = 0
        self._root = root
        self._own_id = own_id
        self._sink = sink
        self._uploads = uploads
        self._counts = counts
        self._on_committed = on_committed
        self._poll_seconds = poll_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Folders that only a person can help; named once, not at every look.
        self._left_alone: set[str] = set()

    async def look(self) -> None:
        """One look at the folders: take over those whose owner has ended."""
        folder.clear_rubbish(self._root)
        for path in folder.queue_folders(self._root):
            known = path.name == self._own_id or path.name in self._tasks
            if known or path.name in self._left_alone:
                continue
            if len(self._tasks) >= AT_ONCE:
                return
            try:
                owned = folder.adopt(path)
            except OwnerAlive:
                continue
            reach("adopted")
            task = asyncio.create_task(self._finish(owned))
            self._tasks[owned.queue_id] = task
            task.add_done_callback(partial(self._forget, owned.queue_id))

    def hurry(self) -> None:
        """Try the store again now, whatever was being waited for."""
        for file in self.files.values():
            file.drain.backoff.try_now()

    async def stop(self) -> None:
        """Leave unfinished files in order; whoever starts next goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, queue_id: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[queue_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("adoption of queue %s failed", queue_id, exc_info=error)
            self._left_alone.add(queue_id)

    async def _finish(self, owned: OwnedFolder) -> None:
        try:
            store = await asyncio.to_thread(self._open, owned)
        except NotAQueue as error:
            self._quarantine(owned, error)
            return
        except QueueError as error:
            log.error("%s", error)
            self._left_alone.add(owned.queue_id)
            owned.release()
            return
        file = self._adopted(owned, store)
        try:
            await self._drain(file)
        except QueueBroken as broken:
            await file.writer.close(cleanly=False)
            if broken.is_damage:
                self._quarantine(owned, broken)
            else:
                log.error("%s", broken)
                owned.release()
        except asyncio.CancelledError:
            await file.writer.close()
            owned.release()
            raise
        finally:
            self.files.pop(owned.queue_id, None)
            self.settled_rows += file.state.uploaded_rows
            self.settled_damaged_rows += file.state.damaged_rows

    def _open(self, owned: OwnedFolder) -> Store:
        wal = owned.path / f"{schema.DATABASE_NAME}-wal"
        has_wal = wal.exists()
        store = Store.open(owned.path)
        if not store.was_closed_cleanly and not has_wal:
            log.error(
                "queue %s did not end cleanly and its %s is missing: "
                "the rows that were only in there are lost",
                owned.queue_id,
                wal.name,
            )
        return store

    def _adopted(self, owned: OwnedFolder, store: Store) -> AdoptedFile:
        writer = Writer(store)
        drain = Drain(
            writer,
            self._sink,
            self._uploads,
            self._counts,
            object_max_bytes=store.object_max_bytes,
            window_seconds=store.window_seconds,
            everything=True,
        )
        file = AdoptedFile(owned, writer, drain, store.state())
        self.files[owned.queue_id] = file
        self.adopted_files += 1
        log.warning(
            "adopted queue %s: %d rows to upload, %d calls to close",
            owned.queue_id,
            file.state.queued_rows,
            file.state.open_calls,
        )
        return file

    async def _drain(self, file: AdoptedFile) -> None:
        """Close the open calls, upload everything and remove the folder."""
        lines = await file.writer.run(lambda store: store.close_open_calls())
        reach("open-calls-closed")
        if lines:
            self._on_committed(lines)
        while True:
            await file.drain.advance()
            file.state = await file.writer.run(lambda store: store.state())
            if file.state.queued_rows == 0:
                await file.writer.close()
                file.owned.remove()
                reach("removed")
                log.warning("queue %s is finished", file.owned.queue_id)
                return
            if len(file.drain.foreign) == file.state.sealed_batches and file.drain.foreign:
                await self._leave_foreign(file)
                return
            await asyncio.sleep(self._poll_seconds)

    async def _leave_foreign(self, file: AdoptedFile) -> None:
        batch = file.drain.foreign[0]
        log.error(
            "queue %s has %d batches that were first tried on %s: set the sink back, "
            "or send them elsewhere with `open-llm-proxy replay --again %s`",
            file.owned.queue_id,
            len(file.drain.foreign),
            batch.sink,
            file.owned.path,
        )
        self._left_alone.add(file.owned.queue_id)
        await file.writer.close()
        file.owned.release()

    def _quarantine(self, owned: OwnedFolder, reason: Exception) -> None:
        target = owned.quarantine()
        self.quarantined_files += 1
        log.error("queue %s was moved to %s: %s", owned.queue_id, target, reason)
