"""Which sink a batch belongs to: found by what each attempt has proved, kept until it is done."""

import asyncio
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_elsewhere
from queue_fixtures import (
    MemorySink,
    OpenQueue,
    away,
    dead_queue,
    lost,
    new_queue,
    numbers,
    plain,
    refuse,
)


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


async def sealed_sink(queue: OpenQueue) -> list[str | None]:
    return [batch.sink for batch in await queue.writer.run(Store.sealed)]


async def test_a_batch_that_was_refused_at_first_belongs_to_no_sink(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1))
    sink.answers = refuse(1)
    await queue.advance()
    assert await sealed_sink(queue) == [None]
    await queue.advance()
    assert await sealed_sink(queue) == [None]
    await queue.close()


async def test_a_batch_that_may_have_arrived_belongs_to_its_sink_for_good(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1))
    sink.answers = away
    await queue.advance()
    sink.answers = refuse(1)
    await queue.advance()
    assert await sealed_sink(queue) == ["memory:"]
    await queue.close()


async def test_another_sinks_batches_are_left_alone(tmp_path: Path, sink: MemorySink) -> None:
    queue = OpenQueue(folder.adopt(dead_queue(tmp_path / "queues", sealed_elsewhere)), sink)
    assert (await queue.advance()).queued_rows == 2
    assert numbers(sink.rows()) == [3, 4]
    assert [batch.first for batch in queue.drain.foreign] == [1]
    assert await sealed_sink(queue) == ["elsewhere:"]
    await queue.close()


async def test_another_sinks_batches_are_sent_again_when_that_is_asked_for(
    tmp_path: Path, sink: MemorySink
) -> None:
    owned = folder.adopt(dead_queue(tmp_path / "queues", sealed_elsewhere))
    queue = OpenQueue(owned, sink, again=True)
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == [1, 2, 3, 4]
    await queue.close()


async def test_a_batch_is_bound_to_its_sink_before_it_is_put(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = OpenQueue(folder.adopt(dead_queue(tmp_path / "queues", sealed_elsewhere)), sink)
    bound: list[list[str | None]] = []
    loop = asyncio.get_running_loop()

    def look(batch: Batch) -> None:
        future = asyncio.run_coroutine_threadsafe(sealed_sink(queue), loop)
        bound.append(future.result(20))

    sink.answers = look
    await queue.advance()
    assert bound[0][:2] == ["elsewhere:", "memory:"]
    await queue.close()


async def test_a_damaged_batch_that_may_be_stored_is_not_doubled_where_one_can_look(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1, 2, 3))
    sink.answers = lambda batch: lost()
    await queue.advance()
    await queue.writer.run(lambda s: s._database.execute("UPDATE rows SET crc32 = 0 WHERE seq = 2"))
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == [1, 2, 3]
    await queue.close()


async def test_a_batch_that_is_damaged_before_it_is_stored_gets_another_name(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1, 2, 3))
    sink.answers = away
    await queue.advance()
    await queue.writer.run(lambda s: s._database.execute("UPDATE rows SET crc32 = 0 WHERE seq = 2"))
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == [1, None, 3]
    first, second = sink.attempts
    assert first[:58] == second[:58]
    assert first != second
    await queue.close()
