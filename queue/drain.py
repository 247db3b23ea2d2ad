"""The drain of one queue file: seal, put, ack.

    seal   one transaction stores a batch's range, name and MD5
    put    the object is written to the sink; only a 2xx confirms it
    ack    one transaction deletes the rows and keeps the range

A death between any two of them is repeated by whoever finishes the file: the stored name and
the same rows give the same bytes under the same key, so a repeated PUT changes nothing. No
answer of a store ever drops a row. Memory is bounded by the objects in flight: rows are read
in slices between the writer's commits, one object at a time.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass

from open_llm_proxy.queue.backoff import Backoff
from open_llm_proxy.queue.batches import Batch, window_start
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.sinks import Sink, SinkFailure, SinkRefused
from open_llm_proxy.queue.store import StoredRow
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

SLICE_BYTES = 1024 * 1024
VACUUM_PAGES = 500
# Free pages that stay in the file for the next window's rows: vacuuming them would be churn.
KEEP_FREE_PAGES = 1024


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
    """Moves the rows of one queue file to `sink`, at most `parallel` objects at a time.

    `everything`: the file's owner has ended, so that its newest rows are finished too.
    `again`: a batch that was first tried on another sink may be put to this one, although its
    rows may then be in both.
    """

    def __init__(
        self,
        writer: Writer,
        sink: Sink,
        uploads: Executor,
        counts: UploadCounts,
        *,
        object_max_bytes: int,
        window_seconds: int,
        everything: bool = False,
        again: bool = False,
        parallel: int = 2,
    ) -> None:
        self.everything = everything
        self.backoff = Backoff()
        self.foreign: list[Batch] = []
        self._writer = writer
        self._sink = sink
        self._uploads = uploads
        self._counts = counts
        self._object_max_bytes = object_max_bytes
        self._window_seconds = window_seconds
        self._again = again
        self._parallel = parallel
        # Batches of which an earlier attempt may have reached the store without an answer.
        self._uncertain: set[int] = set()

    async def advance(self) -> None:
        """Seal what is finished, upload what is due, and give freed pages back.

        Returns when nothing more can be done now; a failure of the store is counted and backed
        off from, not raised. Raises `QueueError` when the queue's own file failed.
        """
        in_flight: set[asyncio.Task[None]] = set()
        try:
            async for batch, body in self._due():
                in_flight.add(asyncio.create_task(self._upload(batch, body)))
                del body
                if len(in_flight) >= self._parallel:
                    done, in_flight = await asyncio.wait(
                        in_flight, return_when=asyncio.FIRST_COMPLETED
                    )
                    for upload in done:
                        upload.result()
            await asyncio.gather(*in_flight)
        finally:
            for upload in in_flight:
                upload.cancel()
        while await self._writer.run(lambda s: s.vacuum(VACUUM_PAGES, KEEP_FREE_PAGES)):
            pass

    async def _due(self) -> AsyncIterator[tuple[Batch, bytes]]:
        """Batches to upload now, with their bytes: sealed ones first, then newly sealed ones."""
        sealed = await self._writer.run(lambda store: store.sealed())
        self.foreign = [b for b in sealed if not self._is_ours(b)]
        for batch in sealed:
            if self._is_ours(batch) and self._is_due(batch.first):
                if batch.sink is not None:
                    self._uncertain.add(batch.first)
                yield await self._read_sealed(batch)
        while self._is_due(0) and (fresh := await self._seal_next()):
            yield fresh

    def _is_ours(self, batch: Batch) -> bool:
        return batch.sink in (None, self._sink.identity) or self._again

    def _is_due(self, first: int) -> bool:
        return self.backoff.is_due(first, time.monotonic())

    async def _seal_next(self) -> tuple[Batch, bytes] | None:
        """Seal the oldest finished range; None where no range is finished."""
        writer, sink = self._writer, self._sink.identity
        todo = await writer.run(lambda store: store.sealable(self.everything))
        rows = _ObjectRows(self._object_max_bytes, self._window_seconds)
        seq = todo.first
        while seq <= todo.last and not rows.complete:
            for row in await writer.run(lambda s, at=seq: s.read(at, todo.last, SLICE_BYTES)):  # type: ignore[misc]
                if not rows.add(row):
                    break
                seq = row.seq + 1
        if not rows.lines or (todo.only_full and not rows.complete):
            return None
        body = b"".join(rows.lines)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        batch = await writer.run(lambda s: s.seal(todo.first, seq - 1, md5, len(body), sink))
        reach("sealed")
        self._counts.batches_sealed += 1
        return batch, body

    async def _read_sealed(self, batch: Batch) -> tuple[Batch, bytes]:
        """The bytes of a sealed batch; renamed first if damage has changed them since."""
        lines: list[bytes] = []
        seq = batch.first
        while seq <= batch.last:
            at = seq
            rows = await self._writer.run(lambda s: s.read(at, batch.last, SLICE_BYTES))  # noqa: B023
            lines.extend(row.line for row in rows)
            seq = rows[-1].seq + 1
        body = b"".join(lines)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        if md5 != batch.md5:
            log.error("%s holds damaged rows and gets a new name", batch.name)
            batch = await self._writer.run(lambda s: s.reseal(batch, md5, len(body)))
        return batch, body

    async def _upload(self, batch: Batch, body: bytes) -> None:
        """Put one object and acknowledge it; a failure leaves the batch for a later pass."""
        if batch.sink != self._sink.identity:
            batch = await self._writer.run(lambda s: s.bind(batch, self._sink.identity))
        reach("before-put")
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._uploads, self._sink.put, batch, body
            )
        except SinkFailure as failure:
            await self._failed(batch, failure)
            return
        reach("put")
        await self._writer.run(lambda store: store.ack(batch))
        reach("acked")
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


class _ObjectRows:
    """Gathers rows of one window up to an object's size; `complete` once a row did not fit."""

    def __init__(self, max_bytes: int, window_seconds: int) -> None:
        self.lines: list[bytes] = []
        self.complete = False
        self._max_bytes = max_bytes
        self._window_seconds = window_seconds
        self._size = 0
        self._start = 0

    def add(self, row: StoredRow) -> bool:
        """Take `row` if it belongs to the same object; at least one row always does."""
        start = window_start(row.timestamp_ms, self._window_seconds)
        too_big = self._size + len(row.line) > self._max_bytes
        if self.lines and (start != self._start or too_big):
            self.complete = True
            return False
        self._start = start
        self._size += len(row.line)
        self.lines.append(row.line)
        return True
