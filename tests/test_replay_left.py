"""A replay whose store fails, or that is stopped: what is left is told, kept, and gone on with."""

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.orphans.replay import FRUITLESS, Replay
from open_llm_proxy.queue.orphans.replay_target import TRIES, ToSinks, ToStdout
from open_llm_proxy.queue.sinks import SinkFailure, SinkRefused
from queue_fixtures import MemorySink, dead_queue, lost, numbers, seqs
from replay_fixtures import delivery, nowhere, replayed, root, sink, small_objects_queue
from test_queue_damage import ten_rows
from waiting import wait_until

__all__ = ["root", "sink"]


async def test_a_store_that_refuses_is_tried_a_few_times_and_everything_is_kept(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, ten_rows)
    sink.answers = lambda batch: SinkRefused("memory: answered 403 AccessDenied")
    result = await replayed(queue, sink)
    assert result.left == "10 rows are left: memory: answered 403 AccessDenied"
    assert len(sink.attempts) == TRIES
    assert inspect(queue).rows == 10
    sink.answers = lambda batch: None
    assert (await replayed(queue, sink)).left is None
    assert numbers(sink.rows()) == list(range(1, 11))


async def test_a_store_that_recovers_gets_everything(root: Path, sink: MemorySink) -> None:
    queue = small_objects_queue(root)
    failures = iter([SinkFailure("away"), SinkFailure("away"), lost(), SinkFailure("away")])
    sink.answers = lambda batch: next(failures, None)
    assert (await replayed(queue, sink)).left is None
    assert seqs(sink.rows()) == list(range(1, 35))


async def test_one_refused_object_does_not_stop_the_others(root: Path, sink: MemorySink) -> None:
    queue = small_objects_queue(root)
    refusal = SinkRefused("memory: answered 413")
    sink.answers = lambda batch: refusal if batch.first == 4 else None
    result = await replayed(queue, sink)
    assert result.left == "3 rows are left: memory: answered 413"
    assert seqs(sink.rows()) == [1, 2, 3, *range(7, 35)]


async def test_queues_behind_a_store_that_is_away_are_not_all_waited_for(
    root: Path, sink: MemorySink
) -> None:
    queues = [dead_queue(root, ten_rows) for _ in range(FRUITLESS + 2)]
    sink.answers = lambda batch: SinkFailure("connection refused")
    results = await Replay(delivery(sink)).run(queues)
    assert all(result.left for result in results)
    assert len(sink.attempts) == TRIES + FRUITLESS - 1
    assert results[-1].left == "not tried: the store took nothing of the 3 queues before"
    assert sum(inspect(queue).rows or 0 for queue in queues) == 10 * len(queues)


async def test_stopping_finishes_the_objects_under_way_and_begins_no_other(
    root: Path, sink: MemorySink
) -> None:
    queues = [small_objects_queue(root), small_objects_queue(root)]
    begun, release = threading.Event(), threading.Event()

    def hang(batch: Batch) -> None:
        begun.set()
        assert release.wait(20)

    sink.answers = hang
    replay = Replay(delivery(sink))
    running = asyncio.ensure_future(replay.run(queues))
    await wait_until(begun.is_set, "an object is under way")
    replay.stop()
    release.set()
    first, second = await running
    under_way = len(sink.objects)
    assert 1 <= under_way <= 4
    assert first.objects == under_way
    assert first.left is not None and first.left.startswith("stopped with ")
    assert second.left == "not tried: stopped before"
    left = inspect(queues[0])
    assert left.ended_cleanly
    assert left.uploaded_batches == under_way
    sink.answers = lambda batch: None
    results = await Replay(delivery(sink)).run(queues)
    assert [result.left for result in results] == [None, None]
    assert len(sink.rows()) == 2 * 34


async def test_stopping_ends_the_wait_for_a_store(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, ten_rows)
    sink.answers = lambda batch: SinkFailure("away")
    replay = Replay(ToSinks(sink, nowhere, retry_seconds=3600))
    running = asyncio.ensure_future(replay.run([queue]))
    await wait_until(lambda: sink.attempts, "the store was tried")
    replay.stop()
    (result,) = await running
    assert result.left == "stopped with 10 rows left; run it again to resume"


async def test_an_output_that_nobody_reads_any_more_ends_the_run(root: Path) -> None:
    class Closed(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    queues = [dead_queue(root, ten_rows), dead_queue(root, ten_rows)]
    first, second = await Replay(ToStdout(Closed())).run(queues)
    assert first.left == "stdout: Broken pipe"
    assert second.left == "not tried: stopped before"
