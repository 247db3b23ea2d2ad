"""The drain of one queue file: seal, put, ack.

    seal   one transaction stores a batch's range, name and MD5
    put    the object is written to the sink; only a 2xx confirms it
    ack    one transaction deletes the rows and keeps the range

A death between any two of them is repeated by whoever finishes the file: the stored name and
the same rows give the same bytes under the same key, so a repeated PUT changes nothing. No
answer of a store ever drops a row. Memory is bounded by the objects in flight, which all drains
of a process share: a slot is taken before an object's first row is read. Rows are read in
slices between the writer's commits.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from open_llm_proxy.queue.backoff import Backoff
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.objects import ObjectReader, digest
from open_llm_proxy.queue.sinks import Sink, SinkFailure, SinkRefused
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

VACUUM_PAGES = 500
# Free pages that stay in the file for the next window's rows: vacuuming them would be churn.
KEEP_FREE_PAGES = 1024

T = TypeVar("T")
_ReadObject = Callable[[], Awaitable[tuple[Batch, bytes] | None]]


@dataclass(slots=True)
class UploadCounts:
    """What a process's drains have done so far; shown in /health."""

    batches_sealed: int = 0
    batches_uploaded: int = 0
    uploaded_rows: int = 0
    uploaded_bytes: int = 0
    upload_failures: int = 0
    last_upload_at: float | None = None
    last_error: str | None = None


class Drain:
    """Moves the rows of one queue file to `sink`, as many objects at once as there are `slots`.

    `everything`: the file's owner has ended, so that its newest rows are finished too.
    `again`: a batch that was first tried on another sink may be put to this one, although its
    rows may then be in both. `only_bound`: only batches that were first tried on this very sink
    are put, and nothing is sealed; another drain has the rest. While `stopped` is set nothing
    new is begun; objects under way are finished.
    """

    def __init__(
        self,
        writer: Writer,
        sink: Sink,
        uploads: Executor,
        slots: asyncio.Semaphore,
        counts: UploadCounts,
        *,
        object_max_bytes: int,
        window_seconds: int,
        everything: bool = False,
        again: bool = False,
        only_bound: bool = False,
    ) -> None:
        self.everything = everything
        self.stopped = False
        self.backoff = Backoff()
        self.foreign: list[Batch] = []
        self._writer = writer
        self._sink = sink
        self._uploads = uploads
        self._slots = slots
        self._counts = counts
        self._objects = ObjectReader(writer, object_max_bytes, window_seconds)
        self._again = again
        self._only_bound = only_bound
        # Batches of which an earlier attempt may have reached the store without an answer.
        self._uncertain: set[int] = set()
        # Batches that the store has confirmed, while the disk was too full to acknowledge them.
        self._confirmed: set[int] = set()

    async def advance(self) -> None:
        """`upload`, and give freed pages back to the disk; for a file that stays."""
        await self.upload()
        await shrink(self._writer)

    async def upload(self) -> None:
        """Seal what is finished and upload what is due.

        Returns when nothing more can be done now; a failure of the store is counted and backed
        off from, not raised. Raises `QueueError` when the queue's own file is full or failed.
        """
        uploads: set[asyncio.Task[None]] = set()
        try:
            await self._start_uploads(uploads)
            await asyncio.gather(*uploads)
        finally:
            for upload in uploads:
                upload.cancel()
            await asyncio.gather(*uploads, return_exceptions=True)

    async def _start_uploads(self, uploads: set[asyncio.Task[None]]) -> None:
        """Start what can be uploaded now: batches that were sealed before, then new ones."""
        sealed = await self._writer.run(lambda store: store.sealed())
        self.foreign = [b for b in sealed if not self._is_ours(b)]
        for batch in sealed:
            if batch.first in self._confirmed:
                await self._acknowledge(batch)
            elif self._is_ours(batch) and self._is_due(batch.first):
                await self._start_upload(uploads, partial(self._read_sealed, batch))
        if self._only_bound:
            return
        while self._is_due(0) and await self._start_upload(uploads, self._seal_next):
            pass

    async def _start_upload(self, uploads: set[asyncio.Task[None]], read: _ReadObject) -> bool:
        """Read an object once there is a slot for it, and start to put it; False if none is."""
        for upload in [upload for upload in uploads if upload.done()]:
            uploads.remove(upload)
            upload.result()
        await self._slots.acquire()
        try:
            found = await read()
        except BaseException:
            self._slots.release()
            raise
        if found is None:
            self._slots.release()
            return False
        upload = asyncio.create_task(self._upload(*found))
        upload.add_done_callback(lambda _: self._slots.release())
        uploads.add(upload)
        return True

    def _is_ours(self, batch: Batch) -> bool:
        if self._only_bound:
            return batch.sink == self._sink.identity
        return batch.sink in (None, self._sink.identity) or self._again

    def _is_due(self, first: int) -> bool:
        return not self.stopped and self.backoff.is_due(first, time.monotonic())

    async def _seal_next(self) -> tuple[Batch, bytes] | None:
        """Seal the oldest finished range; None where none is finished or the store is away."""
        if not self._is_due(0):
            return None
        found = await self._objects.seal_next(self.everything, self._sink.identity)
        if found is not None:
            self._counts.batches_sealed += 1
        return found

    async def _read_sealed(self, batch: Batch) -> tuple[Batch, bytes] | None:
        """The bytes of a sealed batch; renamed first if damage has changed them since."""
        if not self._is_due(batch.first):
            return None  # the store went away while this waited for a slot
        if batch.sink is not None:
            self._uncertain.add(batch.first)
        body = await self._objects.read(batch)
        md5 = digest(body)
        if md5 == batch.md5:
            return batch, body
        if await self._in_thread(self._sink.holds, batch):
            log.error("%s was damaged here after it was stored whole", batch.name)
            await self._acknowledge(batch)
            return None
        log.error("%s holds damaged rows and gets a new name", batch.name)
        batch = await self._writer.run(lambda s: s.reseal(batch, md5, len(body)))
        return batch, body

    async def _upload(self, batch: Batch, body: bytes) -> None:
        """Put one object and acknowledge it; a failure leaves the batch for a later pass."""
        if batch.sink != self._sink.identity:
            batch = await self._writer.run(lambda s: s.bind(batch, self._sink.identity))
        reach("before-put")
        try:
            await self._in_thread(self._sink.put, batch, body)
        except SinkFailure as failure:
            await self._failed(batch, failure)
        except Exception as error:
            # Whatever a sink may raise, the rows stay and the drain goes on.
            log.exception("upload failed in an unforeseen way")
            await self._failed(batch, SinkFailure(type(error).__name__))
        else:
            reach("put")
            self._confirmed.add(batch.first)
            await self._acknowledge(batch)

    def _in_thread(self, work: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._uploads, work, *arguments)

    async def _acknowledge(self, batch: Batch) -> None:
        await self._writer.run(lambda store: store.ack(batch))
        reach("acked")
        self._confirmed.discard(batch.first)
        self._uncertain.discard(batch.first)
        self.backoff.succeeded(batch.first)
        counts = self._counts
        if counts.last_error is not None:
            log.warning("uploads to %s work again", self._sink.identity)
        counts.batches_uploaded += 1
        counts.uploaded_rows += batch.rows
        counts.uploaded_bytes += batch.bytes
        counts.last_upload_at = time.time()
        counts.last_error = None

    async def _failed(self, batch: Batch, failure: SinkFailure) -> None:
        self.backoff.failed(batch.first, time.monotonic())
        self._counts.upload_failures += 1
        if self._counts.last_error != str(failure):
            log.warning("upload failed, will be tried again: %s", failure)
        self._counts.last_error = str(failure)
        if not isinstance(failure, SinkRefused):
            self._uncertain.add(batch.first)
        elif batch.first not in self._uncertain:
            # Refused at the first attempt, so it is nowhere: another sink may still have it.
            await self._writer.run(lambda store: store.bind(batch, None))


async def shrink(writer: Writer) -> None:
    """Give the free pages of the writer's file back to the disk, in slices between commits."""
    while await writer.run(lambda store: store.vacuum(VACUUM_PAGES, KEEP_FREE_PAGES)):
        pass
