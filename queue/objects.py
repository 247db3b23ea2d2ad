"""The objects of one queue: the next range of rows that forms one, and the bytes of each.

Which rows go together is decided from the file alone: one window of the entries' own time, at
most the object size that the queue was born with. Whoever seals a range, the server or an
operator's replay, therefore makes the same object of it. Rows are read in slices between the
writer's commits, and never more than one object at a time.
"""

import asyncio
import hashlib

from open_llm_proxy.queue.batches import Batch, window_start
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.row_reader import StoredRow
from open_llm_proxy.queue.writer import Writer

SLICE_BYTES = 1024 * 1024


class ObjectReader:
    """Seals and reads the objects of the queue that `writer` owns."""

    def __init__(self, writer: Writer, object_max_bytes: int, window_seconds: int) -> None:
        self._writer = writer
        self._object_max_bytes = object_max_bytes
        self._window_seconds = window_seconds

    async def seal_next(self, everything: bool, sink: str | None) -> tuple[Batch, bytes] | None:
        """Seal the oldest finished range, about to be tried on `sink`; None where none is.

        `everything`: the queue's owner has ended, so that its newest rows are finished too.
        """
        writer = self._writer
        todo = await writer.run(lambda store: store.sealable(everything))
        rows = ObjectRows(self._object_max_bytes, self._window_seconds)
        lines: list[bytes] = []
        seq = todo.first
        while seq <= todo.last and not rows.complete:
            for row in await self._read(seq, todo.last):
                if not rows.add(row.timestamp_ms, len(row.line)):
                    break
                lines.append(row.line)
                seq = row.seq + 1
        if not lines or (todo.only_full and not rows.complete):
            return None
        body = b"".join(lines)
        md5 = digest(body)
        batch = await writer.run(lambda s: s.seal(todo.first, seq - 1, md5, len(body), sink))
        reach("sealed")
        return batch, body

    async def read(self, batch: Batch) -> bytes:
        """The bytes of a sealed batch as they are now; damage may have changed them since."""
        lines: list[bytes] = []
        seq = batch.first
        while seq <= batch.last:
            rows = await self._read(seq, batch.last)
            lines.extend(row.line for row in rows)
            seq = rows[-1].seq + 1
        return b"".join(lines)

    def _read(self, first: int, limit: int) -> "asyncio.Future[list[StoredRow]]":
        return self._writer.run(lambda store: store.read(first, limit, SLICE_BYTES))


class ObjectRows:
    """Counts rows of one window up to an object's size; `complete` once a row did not fit."""

    def __init__(self, max_bytes: int, window_seconds: int) -> None:
        self.complete = False
        self._max_bytes = max_bytes
        self._window_seconds = window_seconds
        self._rows = 0
        self._size = 0
        self._start = 0

    def add(self, timestamp_ms: int, size_bytes: int) -> bool:
        """Take the next row if it belongs to the same object; at least one row always does."""
        start = window_start(timestamp_ms, self._window_seconds)
        too_big = self._size + size_bytes > self._max_bytes
        if self._rows and (start != self._start or too_big):
            self.complete = True
            return False
        self._start = start
        self._size += size_bytes
        self._rows += 1
        return True


def digest(body: bytes) -> bytes:
    """The MD5 by which an object is named and its PUT is checked."""
    return hashlib.md5(body, usedforsecurity=False).digest()
