"""Finishing dead processes' queues: everything is uploaded once, nothing is destroyed."""

import asyncio
import json
import resource
import threading
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.errors import OwnerAlive
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.orphans import adoption
from open_llm_proxy.queue.sinks import SinkFailure
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_elsewhere
from queue_fixtures import (
    NOON_MS,
    WINDOW_SECONDS,
    Adopter,
    MemorySink,
    adopted,
    alter,
    as_killed,
    closing,
    dead_queue,
    names,
    numbers,
    opening,
    plain,
    quarantined,
    seqs,
)
from waiting import wait_until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queues"


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


def calls(store: Store) -> None:
    """Calls 1 and 2 open, call 3 closed, over two windows."""
    for number in (1, 2, 3):
        append, record = opening(number, NOON_MS + number * WINDOW_SECONDS * 500)
        store.commit([append])
    store.commit([closing(3, record, NOON_MS + 2 * WINDOW_SECONDS * 1000)])


async def test_a_dead_queue_is_finished_and_its_folder_removed(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, calls)
    adopter = await adopted(root, sink)
    rows = sink.rows()
    assert seqs(rows) == [1, 2, 3, 4, 5, 6]
    assert numbers(rows) == [1, 2, 3, 3, 1, 2]
    kinds = ["request", "request", "request", "response", "interrupted", "interrupted"]
    assert [row["type"] for row in rows] == kinds
    assert [json.loads(line)["seq"] for line in adopter.lines] == [5, 6]
    assert not queue.exists()
    assert names(root) == []
    assert (adopter.adoption.adopted_files, adopter.settled.uploaded_rows) == (1, 6)


async def test_a_queue_finished_from_two_copies_gives_the_same_objects(
    root: Path, sink: MemorySink, tmp_path: Path
) -> None:
    dead_queue(root, calls)
    other = as_killed(root, tmp_path / "copy")
    await adopted(root, sink)
    again = MemorySink()
    await adopted(other, again)
    assert again.objects == sink.objects


async def test_an_empty_queue_is_removed_without_an_object(root: Path, sink: MemorySink) -> None:
    dead_queue(root, lambda store: None)
    await adopted(root, sink)
    assert sink.objects == {}
    assert names(root) == []


async def test_a_living_owners_queue_is_left_to_it(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, calls)
    owned = folder.adopt(queue)
    adopter = await adopted(root, sink)
    assert sink.attempts == []
    assert adopter.adoption.adopted_files == 0
    owned.release()
    await adopted(root, sink)
    assert len(sink.rows()) == 6


async def test_a_neighbours_queue_is_taken_as_soon_as_its_owner_has_ended(
    root: Path, sink: MemorySink
) -> None:
    ended, finished = (folder.adopt(dead_queue(root, calls)) for _ in range(2))
    adopter = Adopter(root, sink)
    adopter.adoption.start()
    # The next look comes minutes later.
    await wait_until(lambda: len(adopter.adoption._neighbours) == 2, "both owners are seen")
    assert sink.attempts == []
    finished.remove()
    ended.release()
    await wait_until(lambda: names(root) == [], "the neighbour's queue is finished", 20)
    assert len(sink.rows()) == 6
    assert not adopter.adoption._neighbours
    await adopter.stop()


async def test_one_look_finishes_more_queues_than_are_taken_at_once(
    root: Path, sink: MemorySink
) -> None:
    for number in range(adoption.AT_ONCE + 3):
        dead_queue(root, lambda store, n=number: store.commit([plain(n)]))  # type: ignore[misc]
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    assert len(adopter.adoption._tasks) == adoption.AT_ONCE
    await wait_until(lambda: len(sink.objects) == adoption.AT_ONCE + 3, "all queues are finished")
    await adopter.stop()


async def test_what_cannot_be_read_is_moved_away_whole_with_its_log(
    root: Path, sink: MemorySink
) -> None:
    good = dead_queue(root, calls)
    bad = dead_queue(root, calls)
    (bad / schema.DATABASE_NAME).write_bytes(b"garbage" * 1000)
    log = (bad / schema.WAL_NAME).read_bytes()
    adopter = await adopted(root, sink)
    assert {row["queue_id"] for row in sink.rows()} == {good.name}
    (kept,) = quarantined(root)
    assert kept.name.startswith(bad.name)
    assert (kept / schema.DATABASE_NAME).read_bytes() == b"garbage" * 1000
    assert (kept / schema.WAL_NAME).read_bytes() == log
    assert adopter.adoption.quarantined_files == 1
    assert (await adopted(root, sink)).adoption.quarantined_files == 0


async def test_a_queue_from_a_newer_release_stays_where_it_is(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(root, calls)
    alter(queue, f"PRAGMA user_version={schema.SCHEMA_VERSION + 1}")
    before = (queue / schema.DATABASE_NAME).read_bytes()
    adopter = await adopted(root, sink)
    assert (queue / schema.DATABASE_NAME).read_bytes() == before
    assert sum("newer release" in message for message in caplog.messages) == 1
    assert adopter.adoption.quarantined_files == 0
    folder.adopt(queue).release()


async def test_batches_of_another_sink_stay_and_all_the_rest_is_uploaded(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(root, sealed_elsewhere)
    adopter = await adopted(root, sink)
    assert numbers(sink.rows()) == [3, 4]
    assert sum("--again" in message for message in caplog.messages) == 1
    assert "elsewhere:" in caplog.text
    assert adopter.settled.uploaded_rows == 2
    folder.adopt(queue).release()
    elsewhere = MemorySink("elsewhere:")
    await adopted(root, elsewhere)
    assert numbers(elsewhere.rows()) == [1, 2]
    assert names(root) == []


async def test_unsealed_rows_are_not_left_with_a_foreign_batch_because_the_store_was_away(
    root: Path, sink: MemorySink
) -> None:
    dead_queue(root, sealed_elsewhere)
    sink.answers = lambda batch: SinkFailure("connection refused")
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    await wait_until(lambda: len(sink.attempts) >= 2, "the store was tried")
    sink.answers = lambda batch: None
    adopter.adoption.hurry()
    await wait_until(lambda: not adopter.adoption.orphans, "the queue is left")
    assert numbers(sink.rows()) == [3, 4]
    await adopter.stop()


async def test_stopping_leaves_an_unfinished_queue_in_order_for_the_next(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, calls)
    begun, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(batch: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        release.wait(20)

    sink.answers = hang
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    await begun.wait()
    await adopter.adoption.stop()
    sink.answers = lambda batch: None
    store = Store.open(queue)
    assert store.was_closed_cleanly
    store.close(cleanly=False)
    release.set()
    await adopter.stop()
    await adopted(root, sink)
    assert seqs(sink.rows()) == [1, 2, 3, 4, 5, 6]


async def test_stopping_while_a_queue_is_opened_gives_its_folder_back(
    root: Path, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = dead_queue(root, calls)
    begun, release = threading.Event(), threading.Event()
    open_store = Store.open

    def slow(path: Path) -> Store:
        begun.set()
        release.wait(20)
        return open_store(path)

    monkeypatch.setattr(Store, "open", slow)
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    await asyncio.to_thread(begun.wait, 20)
    stopping = asyncio.ensure_future(adopter.stop())
    await asyncio.sleep(0)
    release.set()
    await stopping
    monkeypatch.undo()
    await adopted(root, sink)
    assert len(sink.rows()) == 6
    assert not queue.exists()


async def test_a_folder_that_may_not_be_touched_does_not_stop_the_others(
    root: Path, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, ours = dead_queue(root, calls), dead_queue(root, calls)
    adopt = folder.adopt

    def refuse(path: Path) -> OwnedFolder:
        if path == foreign:
            raise PermissionError(13, "Permission denied", str(path))
        return adopt(path)

    monkeypatch.setattr(folder, "adopt", refuse)
    await adopted(root, sink)
    assert {row["queue_id"] for row in sink.rows()} == {ours.name}
    assert foreign.exists()


async def test_a_disk_that_fails_during_adoption_leaves_the_file_to_the_next_start(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, lambda store: store.commit([plain(1, size_bytes=300_000)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail_from_now_on(batch: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    sink.answers = fail_from_now_on
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    await wait_until(lambda: not adopter.adoption._tasks, "the adoption ends")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert adopter.adoption.quarantined_files == 0
    with pytest.raises(OwnerAlive):
        folder.adopt(queue)
    await adopter.stop()
    copied = as_killed(root, root.with_name("next"))
    sink.answers = lambda batch: None
    await adopted(copied, sink)
    assert numbers(sink.rows()) == [1]


async def test_a_disk_that_fails_at_opening_is_tried_again(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, calls)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    adopter = Adopter(root, sink)
    await adopter.adoption.look()
    await wait_until(lambda: not adopter.adoption._tasks, "the adoption ends")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert queue.exists()
    assert quarantined(root) == []
    await adopter.finish()
    assert len(sink.rows()) == 6


async def test_rows_and_uploads_balance_at_every_moment_of_an_adoption(
    root: Path, sink: MemorySink
) -> None:
    for _ in range(2):
        dead_queue(root, calls)
    adopter = Adopter(root, sink)
    seen: set[tuple[int, int, int]] = set()

    def look() -> bool:
        states = adopter.adoption.states()
        accepted = sum(state.accepted_rows for state in states)
        uploaded = sum(state.uploaded_rows for state in states)
        queued = sum(state.queued_rows for state in states)
        assert accepted == uploaded + queued
        seen.add((accepted, uploaded, queued))
        return accepted == uploaded == 12

    await adopter.adoption.look()
    await wait_until(look, "both queues are finished", poll_seconds=0)
    assert (12, 12, 0) in seen
    await adopter.stop()


async def test_rubbish_of_births_and_removals_is_swept_by_the_way(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, calls)
    queue.rename(queue.with_suffix(".done"))
    (root / "00000000000000a1.new").mkdir()
    await adopted(root, sink)
    assert sink.objects == {}
    assert names(root) == []


async def test_a_root_that_is_gone_is_reported_and_looked_for_again(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    await adopted(root, sink)
    assert "Cannot look for unfinished queues" in caplog.text


async def test_a_missing_log_is_reported_unless_the_owner_ended_in_order(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    ended = dead_queue(root, calls, cleanly=True)
    assert not (ended / schema.WAL_NAME).exists()
    await adopted(root, sink)
    assert "is missing" not in caplog.text
    killed = dead_queue(root, calls)
    (killed / schema.WAL_NAME).unlink()
    await adopted(root, sink)
    assert f"Queue {killed.name}: " in caplog.text
    assert "queue.db-wal is missing: either somebody opened queue.db with sqlite3" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
