"""How much of a backlog is in memory at once, and what is left of the file behind it."""

import hashlib
import threading
import tracemalloc
from pathlib import Path

import pytest

from open_llm_proxy.queue import drain, schema
from open_llm_proxy.queue.batches import Batch
from queue_fixtures import (
    NOON_MS,
    WINDOW_SECONDS,
    MemorySink,
    new_queue,
    plain,
)

WINDOW_MS = WINDOW_SECONDS * 1000


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


async def test_a_backlog_is_drained_in_bounded_memory_and_the_file_shrinks(
    tmp_path: Path,
) -> None:
    class Nowhere(MemorySink):
        def put(self, batch: Batch, body: bytes) -> None:
            assert hashlib.md5(body).digest() == batch.md5

    queue = new_queue(tmp_path, Nowhere(), size=1 << 20)
    for start in range(0, 600, 60):
        await queue.writer.append(plain(*range(start, start + 60), size_bytes=100_000))
    path = queue.owned.path
    assert (path / schema.DATABASE_NAME).stat().st_size > 50_000_000
    tracemalloc.start()
    await queue.advance()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Four objects in flight, one more being joined, and a slice.
    assert peak < 10 * (1 << 20), f"{peak >> 20} MiB at the peak"
    assert (path / schema.DATABASE_NAME).stat().st_size < 6_000_000
    assert (path / schema.WAL_NAME).stat().st_size == 0
    await queue.close()


async def test_rows_are_read_in_slices_of_a_mebibyte(
    tmp_path: Path, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = new_queue(tmp_path, sink, size=8 << 20)
    await queue.writer.append(plain(*range(60), size_bytes=100_000))
    read, sizes = queue.store.read, []

    def noted(first: int, limit: int, max_bytes: int) -> object:
        rows = read(first, limit, max_bytes)
        sizes.append(sum(len(row.line) for row in rows))
        return rows

    monkeypatch.setattr(queue.store, "read", noted)
    await queue.advance()
    assert len(sizes) == 6
    assert max(sizes) <= drain.SLICE_BYTES + 101_000
    await queue.close()


async def test_no_more_objects_are_in_flight_than_there_are_slots(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    for number in range(1, 21):
        await queue.writer.append(plain(number, at_ms=NOON_MS + number * WINDOW_MS))
    flying: set[int] = set()
    four, more = threading.Event(), threading.Event()
    put = sink.put

    def counted(batch: Batch, body: bytes) -> None:
        flying.add(batch.first)
        if len(flying) == 4:
            four.set()
        if len(flying) > 4:
            more.set()
        assert four.wait(20)
        more.wait(0.1)
        put(batch, body)
        flying.remove(batch.first)

    sink.put = counted  # type: ignore[method-assign]
    await queue.advance()
    assert not more.is_set()
    assert len(sink.objects) == 20
    await queue.close()
