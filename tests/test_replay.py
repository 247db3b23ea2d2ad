"""Replay: the same objects as the server's, whatever the folder's state, and the rest is kept."""

import asyncio
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.delivery import TRIES, SinkUnavailable, ToSinks, ToStdout
from open_llm_proxy.queue.inspection import inspect
from open_llm_proxy.queue.replay import FRUITLESS, Replay, Replayed
from open_llm_proxy.queue.sinks import Sink, SinkFailure, SinkRefused
from open_llm_proxy.queue.store import Store
from queue_fixtures import (
    NOON_MS,
    MemorySink,
    adopted,
    alter,
    birth,
    closing,
    dead_queue,
    flip_bit,
    lost,
    numbers,
    opening,
    plain,
    quarantined,
    seqs,
)
from test_queue_damage import Fill, sealed_by_hand, ten_rows
from test_queue_inspection import snapshot
from waiting import wait_until

WINDOW_MS = 300_000


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queues"


def nowhere(identity: str) -> Sink:
    raise SinkUnavailable("it is not here")


def delivery(
    sink: MemorySink, open_sink: Callable[[str], Sink] = nowhere, **options: Any
) -> ToSinks:
    return ToSinks(sink, open_sink, retry_seconds=0.001, **options)


async def replayed(
    path: Path, sink: MemorySink, open_sink: Callable[[str], Sink] = nowhere, **options: Any
) -> Replayed:
    again = options.pop("again", False)
    replay = Replay(delivery(sink, open_sink, again=again), **options)
    (result,) = await replay.run([path])
    return result


async def printed(*paths: Path) -> bytes:
    out = io.BytesIO()
    results = await Replay(ToStdout(out)).run(paths)
    assert [result.left for result in results] == [None] * len(paths)
    return out.getvalue()


def three_windows(store: Store) -> None:
    """Thirty rows of 10 kB in three windows and a call that nobody closed; small objects."""
    for window in range(3):
        at_ms = NOON_MS + window * WINDOW_MS
        store.commit([plain(*range(10), at_ms=at_ms, size_bytes=10_000)])
    closed, record = opening(31, NOON_MS + 2 * WINDOW_MS)
    left, _ = opening(32, NOON_MS + 2 * WINDOW_MS)
    store.commit([closed, left])
    store.commit([closing(31, record, NOON_MS + 3 * WINDOW_MS)])


def small_objects_queue(root: Path) -> Path:
    return dead_queue(root, three_windows, birth(object_max_bytes=35_000))


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


# Sinks that were tried before.


def tried_elsewhere(store: Store) -> None:
    """Rows 1-4 tried on another sink, 5-8 sealed for none, 9-10 not sealed."""
    ten_rows(store)
    sealed_by_hand(store, 1, 4, "elsewhere:")
    second, _ = sealed_by_hand(store, 5, 8, "elsewhere:")
    store.bind(second, None)


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
        "4 rows are left: they were first tried on elsewhere: (it is not here); "
        "--again sends them to memory:, and they may then be in both"
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


# Stores that fail.


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


# Being stopped.


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
    assert result.left == "stopped with 10 rows left; another run goes on"


async def test_an_output_that_nobody_reads_any_more_ends_the_run(root: Path) -> None:
    class Closed(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    queues = [dead_queue(root, ten_rows), dead_queue(root, ten_rows)]
    first, second = await Replay(ToStdout(Closed())).run(queues)
    assert first.left == "stdout: Broken pipe"
    assert second.left == "not tried: stopped before"


# Damage.


async def test_a_damaged_row_costs_that_row_only_and_a_mended_queue_is_finished(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, ten_rows)
    alter(queue, "UPDATE rows SET crc32 = 0 WHERE seq = 4", "DELETE FROM rows WHERE seq = 6")
    result = await replayed(queue, sink)
    assert result.left is None
    assert numbers(sink.rows()) == [1, 2, 3, None, 5, None, 7, 8, 9, 10]
    assert any(path.name.endswith("-copy") for path in quarantined(root))


async def test_a_copy_from_before_the_mending_is_not_uploaded_by_mistake(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, ten_rows)
    alter(queue, "DELETE FROM rows WHERE seq = 6")
    await replayed(queue, sink)
    (copy,) = [path for path in quarantined(root) if path.name.endswith("-copy")]
    result = await replayed(copy, sink)
    assert result.left is not None and "--again" in result.left
    assert len(sink.objects) == 1
    assert (await replayed(copy, sink, allow_copies=True)).left is None


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
async def test_what_cannot_be_read_stays_where_it_is_and_is_pointed_at(
    root: Path, sink: MemorySink, content: bytes
) -> None:
    queue = dead_queue(root, ten_rows)
    (queue / schema.DATABASE_NAME).write_bytes(content)
    before = snapshot(queue)
    result = await replayed(queue, sink)
    assert result.left is not None
    assert "is no SQLite database" in result.left
    assert f"open-llm-proxy queue salvage {queue} --to DIR" in result.left
    assert snapshot(queue) == before


async def test_a_schema_from_the_future_stays_where_it_is(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, ten_rows, cleanly=True)
    alter(queue, "PRAGMA user_version=99")
    before = snapshot(queue)
    result = await replayed(queue, sink)
    assert result.left is not None and "newer release" in result.left
    assert "salvage" not in result.left
    assert snapshot(queue) == before


async def test_a_missing_log_is_named(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(root, ten_rows)
    (queue / schema.WAL_NAME).unlink()
    await replayed(queue, sink)
    assert "did not end cleanly and its queue.db-wal is missing" in caplog.text


async def test_a_damaged_log_is_mended_before_anything_is_uploaded(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, lambda s: [s.commit([plain(n)]) for n in range(1, 21)])
    path = queue / schema.WAL_NAME
    flip_bit(path, path.stat().st_size // 2)
    result = await replayed(queue, sink)
    assert result.left is None
    assert len(sink.rows()) == 20


# Folders that cannot be written.


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a folder a second time, mounted read-only; needs root."""
    mounted: list[Path] = []

    def mount(path: Path) -> Path:
        mountpoint = tmp_path / f"read-only-{len(mounted)}"
        mountpoint.mkdir()
        command = f"mount --bind '{path}' '{mountpoint}' && mount -o remount,ro,bind '{mountpoint}'"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no bind mounts here: {done.stderr.strip()}")
        mounted.append(mountpoint)
        return mountpoint

    yield mount
    for mountpoint in mounted:
        subprocess.run(["umount", str(mountpoint)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("cleanly", [False, True])
async def test_read_only_media_are_replayed_from_a_copy_and_stay_as_they_are(
    root: Path,
    sink: MemorySink,
    read_only: Callable[[Path], Path],
    caplog: pytest.LogCaptureFixture,
    cleanly: bool,
) -> None:
    queue = dead_queue(root, three_windows, birth(object_max_bytes=35_000), cleanly)
    before = snapshot(root)
    seen = read_only(root) / queue.name
    for _ in range(2):
        result = await replayed(seen, sink)
        assert result == Replayed(seen, rows=34, objects=len(sink.objects), from_copy=True)
    assert "nothing is acknowledged" in caplog.text
    assert snapshot(root) == before
    assert seqs(sink.rows()) == list(range(1, 35))
    on_copy = dict(sink.objects)
    await replayed(queue, sink)
    assert sink.objects == on_copy


@pytest.mark.root
async def test_a_living_owner_is_refused_also_where_its_folder_is_read_only(
    root: Path, sink: MemorySink, read_only: Callable[[Path], Path]
) -> None:
    folder.prepare_root(root)
    owned = folder.give_birth(root, birth())
    result = await replayed(read_only(root) / owned.queue_id, sink)
    assert result.left is not None and "still running" in result.left
    owned.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_of_another_user_is_replayed_from_a_copy(
    root: Path, sink: MemorySink
) -> None:
    queue = small_objects_queue(root)
    (queue / folder.LOCK_NAME).chmod(0o400)
    queue.chmod(0o500)
    result = await replayed(queue, sink)
    queue.chmod(0o700)
    assert result.from_copy
    assert len(sink.rows()) == 34
