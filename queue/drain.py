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
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import takewhile

from open_llm_proxy.queue.backoff import Backoff
from open_llm_proxy.queue.batches import Batch, Run, window_of
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.row_reader import StoredRow
from open_llm_proxy.queue.sinks import Sink, SinkFailure, SinkRefused
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.uploads import Uploads
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

# What the writer's thread reads between two commits, so that no call waits for an object.
SLICE_BYTES = 1024 * 1024
VACUUM_PAGES = 500
# Free pages that stay in the file for the next window's rows: vacuuming them would be churn.
KEEP_FREE_PAGES = 1024

_ReadObject = Callable[[], Awaitable[tuple[Batch, bytes] | None]]


class Drain:
    """Moves the rows of one queue file to `sink`, as many objects at once as `uploads` lets it.

    `everything`: the file's owner has ended, so that its newest rows are finished too.
    `again`: a batch that was first tried on another sink may be put to this one, although its
    rows may then be in both. `only_bound`: only batches that were first tried on this very sink
    are put, and nothing is sealed; another drain has the rest. While `stopped` is set nothing
    new is begun; objects in progress are finished.
    """

    def __init__(
        self,
        writer: Writer,
        sink: Sink,
        uploads: Uploads,
        *,
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
        self._counts = uploads.counts
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
        await self._uploads.slots.acquire()
        try:
            found = await read()
        except BaseException:
            self._uploads.slots.release()
            raise
        if found is None:
            self._uploads.slots.release()
            return False
        upload = asyncio.create_task(self._upload(*found))
        upload.add_done_callback(lambda _: self._uploads.slots.release())
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
        found = await seal_next(self._writer, self.everything, self._sink.identity)
        if found is not None:
            self._counts.batches_sealed += 1
        return found

    async def _read_sealed(self, batch: Batch) -> tuple[Batch, bytes] | None:
        """The bytes of a sealed batch; renamed first if damage has changed them since."""
        if not self._is_due(batch.first):
            return None  # the store went away while this waited for a slot
        if batch.sink is not None:
            self._uncertain.add(batch.first)
        body, md5 = await read_object(self._writer, batch)
        if md5 == batch.md5:
            return batch, body
        if await self._uploads.run(self._sink.holds, batch):
            log.error("%s was damaged here after it had been uploaded whole", batch.name)
            await self._acknowledge(batch)
            return None
        log.error("%s holds damaged rows and is uploaded under a new name", batch.name)
        batch = await self._writer.run(lambda s: s.reseal(batch, md5, len(body)))
        return batch, body

    async def _upload(self, batch: Batch, body: bytes) -> None:
        """Put one object and acknowledge it; a failure leaves the batch for a later pass."""
        if batch.sink != self._sink.identity:
            batch = await self._writer.run(lambda s: s.bind(batch, self._sink.identity))
        reach("before-put")
        try:
            await self._uploads.run(self._sink.put, batch, body)
        except SinkFailure as failure:
            await self._failed(batch, failure)
        except Exception as error:
            # Whatever a sink may raise, the rows stay and the drain continues.
            log.exception("Upload failed in an unforeseen way")
            await self._failed(batch, SinkFailure(type(error).__name__))
        else:
            reach("put")
            self._confirmed.add(batch.first)
            await self._acknowledge(batch)

    async def _acknowledge(self, batch: Batch) -> None:
        await self._writer.run(lambda store: store.ack(batch))
        reach("acked")
        self._confirmed.discard(batch.first)
        self._uncertain.discard(batch.first)
        self.backoff.succeeded(batch.first)
        self._counts.succeeded(self._sink.identity, batch.rows, batch.bytes)

    async def _failed(self, batch: Batch, failure: SinkFailure) -> None:
        now = time.monotonic()
        self.backoff.failed(batch.first, now)
        self._counts.failed(str(failure), now)
        if not isinstance(failure, SinkRefused):
            self._uncertain.add(batch.first)
        elif batch.first not in self._uncertain:
            # Refused at the first attempt, so it is nowhere: another sink may still have it.
            await self._writer.run(lambda store: store.bind(batch, None))


async def seal_next(
    writer: Writer, everything: bool, sink: str | None
) -> tuple[Batch, bytes] | None:
    """Seal the oldest finished run of rows, about to be tried on `sink`; None where none is.

    The run is cut by what the file alone says, so the server and an operator's replay make the
    same object of it. `everything`: the newest rows are finished too.
    """
    first, last = await writer.run(lambda store: store.sealable(everything))
    if last < first:
        return None
    run = writer.meta.run()
    body, md5 = await _read(writer, first, last, lambda: run.start, run)
    last = first + run.rows - 1
    batch = await writer.run(lambda store: store.seal(first, last, md5, len(body), sink))
    reach("sealed")
    return batch, body


async def read_object(writer: Writer, batch: Batch) -> tuple[bytes, bytes]:
    """Bytes and MD5 of a sealed batch as they are now; damage may have changed them since."""
    return await _read(writer, batch.first, batch.last, lambda: window_of(batch.name) or 0)


async def _read(
    writer: Writer, first: int, last: int, start: Callable[[], int], run: Run | None = None
) -> tuple[bytes, bytes]:
    """The head of an object, whose window's `start` the first rows may tell, and its rows: `first`
    to `last`, or as far as `run` goes. Returns bytes and MD5.

    In slices, and hashed slice by slice: neither the writer's thread nor the event loop is kept
    from the calls by a large object.
    """
    parts: list[bytes] = []
    digest = hashlib.md5(usedforsecurity=False)
    while first <= last:
        rows = await writer.run(partial(_slice, first, last))
        taken = [row.line for row in _of_run(run, rows)]
        first += len(taken)
        if len(taken) < len(rows):
            last = first - 1
        head = [] if parts else [writer.meta.object_head(start())]
        parts.append(b"".join(head + taken))
        digest.update(parts[-1])
    return b"".join(parts), digest.digest()


def _slice(first: int, last: int, store: Store) -> list[StoredRow]:
    return store.read(first, last, SLICE_BYTES)


def _of_run(run: Run | None, rows: list[StoredRow]) -> Iterable[StoredRow]:
    if run is None:
        return rows
    return takewhile(lambda row: run.add(row.timestamp_ms, len(row.line)), rows)


async def shrink(writer: Writer) -> None:
    """Give the free pages of the writer's file back to the disk, in slices between commits."""
    while await writer.run(lambda store: store.vacuum(VACUUM_PAGES, KEEP_FREE_PAGES)):
        pass
