"""Replay: the same objects as the server's, each in the sink that it belongs to."""

import io
import shutil
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.orphans.replay import Replay, Replayed
from open_llm_proxy.queue.orphans.replay_target import TRIES, ToStdout
from open_llm_proxy.queue.sinks import SinkRefused
from open_llm_proxy.queue.store import Store
from queue_fixtures import MemorySink, adopted, birth, dead_queue, numbers, plain, seqs
from replay_fixtures import (
    delivery,
    replayed,
    root,
    sink,
    small_objects_queue,
    tried_elsewhere,
)
from test_queue_damage import Fill, ten_rows

__all__ = ["root", "sink"]


async def printed(*paths: Path) -> bytes:
    out = io.BytesIO()
    results = await Replay(ToStdout(out)).run(paths)
    assert [result.left for result in results] == [None] * len(paths)
    return out.getvalue()


def bodies(sink: MemorySink) -> bytes:
    """The objects in the order of their rows."""
    by_first = sorted(sink.objects.items(), key=lambda item: item[0].split("-")[-3])
    return b"".join(body for _, body in by_first)


async def test_a_replay_makes_the_objects_that_a_server_makes(
    root: Path, tmp_path: Path, sink: MemorySink
) -> None:
    queue = small_objects_queue(root)
    shutil.copytree(root, tmp_path / "for-the-server")
    result = await replayed(queue, sink)
    assert result == Replayed(queue, rows=34, objects=len(sink.objects))
    assert not queue.exists()
    server = MemorySink()
    await adopted(tmp_path / "for-the-server", server)
    assert server.objects == sink.objects
    assert len(sink.objects) > 9
    assert [row["type"] for row in sink.rows()[-2:]] == ["response", "interrupted"]


async def test_replaying_copies_again_changes_nothing(
    root: Path, tmp_path: Path, sink: MemorySink
) -> None:
    queue = small_objects_queue(root)
    for name in ("first", "second"):
        shutil.copytree(root, tmp_path / name)
        await replayed(tmp_path / name / queue.name, sink)
    first = dict(sink.objects)
    await replayed(queue, sink)
    assert sink.objects == first
    assert seqs(sink.rows()) == list(range(1, 35))


async def test_stdout_gets_the_objects_bytes_and_the_queue_keeps_its_rows(
    root: Path, sink: MemorySink
) -> None:
    queue = small_objects_queue(root)
    once = await printed(queue)
    assert await printed(queue) == once
    assert inspect(queue).rows == 34
    assert inspect(queue).tried_batches == {}
    result = await replayed(queue, sink)
    assert result.left is None
    assert bodies(sink) == once


async def test_what_was_uploaded_before_is_not_uploaded_again(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, Fill(sink))
    before = list(sink.attempts)
    await replayed(queue, sink)
    assert numbers(sink.rows()) == list(range(1, 11))
    again = [name for name in sink.attempts[len(before) :] if name in before]
    assert len(again) == 1, "the batch without an answer is put again, under its own name"


async def test_keep_leaves_the_folder_with_the_records_only(root: Path, sink: MemorySink) -> None:
    queue = small_objects_queue(root)
    result = await replayed(queue, sink, keep=True)
    assert result.left is None
    look = inspect(queue)
    assert (look.rows, look.uploaded_rows, look.ended_cleanly) == (0, 34, True)
    assert (await replayed(queue, sink)).rows == 0
    assert not queue.exists()


async def test_a_kept_folder_gives_the_room_of_its_rows_back(root: Path, sink: MemorySink) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(*range(80), size_bytes=100_000)])

    queue = dead_queue(root, fill, cleanly=True)
    assert inspect(queue).disk_bytes > 8_000_000
    await replayed(queue, sink, keep=True)
    assert inspect(queue).disk_bytes < 5_000_000


async def test_a_living_owner_s_folder_is_refused_by_name(tmp_path: Path, sink: MemorySink) -> None:
    owned = folder.give_birth(tmp_path, birth())
    store = Store.open(owned.path)
    ten_rows(store)
    result = await replayed(owned.path, sink)
    assert result.left == f"{owned.path} belongs to a process that is still running"
    assert sink.attempts == []
    store.close(cleanly=True)
    owned.release()


async def test_a_folder_that_its_owner_removes_meanwhile_is_no_failure(
    root: Path, sink: MemorySink
) -> None:
    assert await replayed(root / ("a" * 16), sink) == Replayed(root / ("a" * 16))


async def test_several_queues_are_finished_and_one_that_cannot_be_stops_no_other(
    root: Path, sink: MemorySink
) -> None:
    queues = [dead_queue(root, ten_rows) for _ in range(3)]
    (queues[1] / schema.DATABASE_NAME).write_bytes(b"garbage")
    results = await Replay(delivery(sink)).run(queues)
    assert [result.left is None for result in results] == [True, False, True]
    assert len(sink.rows()) == 20


async def test_a_batch_that_was_tried_elsewhere_is_finished_there(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, tried_elsewhere)
    other = MemorySink("elsewhere:")
    result = await replayed(queue, sink, {"elsewhere:": other}.__getitem__)
    assert result == Replayed(queue, rows=10, objects=3)
    assert seqs(other.rows()) == [1, 2, 3, 4]
    assert seqs(sink.rows()) == [5, 6, 7, 8, 9, 10]
    assert not queue.exists()


async def test_a_batch_whose_sink_is_not_here_is_left_and_the_rest_is_finished(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, tried_elsewhere)
    result = await replayed(queue, sink)
    assert seqs(sink.rows()) == [5, 6, 7, 8, 9, 10]
    assert result.left == (
        "4 rows are left that may already be on elsewhere: (it is not here); "
        "--again uploads what is left to memory:, and it may then be in both"
    )
    assert inspect(queue).rows == 4
    assert inspect(queue).tried_batches == {"elsewhere:": 1}


async def test_the_other_sink_gets_nothing_but_what_was_tried_there(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, tried_elsewhere)
    other = MemorySink("elsewhere:")
    sink.answers = lambda batch: SinkRefused("memory: answered 403")
    result = await replayed(queue, sink, lambda identity: other)
    assert result.left == "6 rows are left: memory: answered 403"
    assert seqs(other.rows()) == [1, 2, 3, 4]


async def test_again_sends_everything_to_the_chosen_sink(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, tried_elsewhere)
    result = await replayed(queue, sink, again=True)
    assert result.left is None
    assert seqs(sink.rows()) == list(range(1, 11))


async def test_a_refusal_by_the_other_sink_keeps_the_batch_bound_to_it(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, tried_elsewhere)
    other = MemorySink("elsewhere:")
    other.answers = lambda batch: SinkRefused("elsewhere: answered 403")
    result = await replayed(queue, sink, lambda identity: other)
    assert result.left == "4 rows are left: elsewhere: answered 403"
    assert len(other.attempts) == 1 + TRIES  # in the first pass the other objects got through
    assert inspect(queue).tried_batches == {"elsewhere:": 1}
