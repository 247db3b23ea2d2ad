"""Seal, put, ack: what goes into which object, and what happens when a store fails."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.backoff import STORE_FAILURES, Backoff, Delay
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.entry import Append, finished_line
from open_llm_proxy.queue.errors import NeedsRepair, QueueFull
from open_llm_proxy.queue.sinks import SinkFailure
from open_llm_proxy.queue.store import Store
from queue_fixtures import (
    LOG_FORMAT,
    NOON_MS,
    WINDOW_SECONDS,
    MemorySink,
    OpenQueue,
    alter,
    away,
    birth,
    dead_queue,
    entry,
    lost,
    new_queue,
    numbers,
    plain,
    refuse,
    row_lines,
    seqs,
)
from waiting import wait_until

WINDOW_MS = WINDOW_SECONDS * 1000
HOUR_MS = 3_600_000


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


def names_of(sink: MemorySink) -> list[str]:
    """Window and range of the objects, in the order in which they were put."""
    return [f"{name[11:19]} {int(name[37:47])}-{int(name[48:58])}" for name in sink.attempts]


# What goes into an object.


async def test_each_window_gets_an_object_named_by_its_own_time(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    times = (0, 299_999, 300_000, 600_000, 600_001, 86_400_000)
    for number, offset in enumerate(times, 1):
        await queue.writer.append(plain(number, at_ms=NOON_MS + offset))
    await queue.advance()
    assert names_of(sink) == ["12-00-00 1-2", "12-05-00 3-3", "12-10-00 4-5", "12-00-00 6-6"]
    assert sorted(name[:10] for name in sink.objects)[-1] == "2023-11-16"
    for name, body in sink.objects.items():
        assert name.endswith(f"-{hashlib.md5(body).hexdigest()[:12]}.jsonl")
    await queue.close()


async def test_a_clock_that_jumps_makes_many_objects_and_loses_no_order(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    offsets = (0, WINDOW_MS, 0, -2 * 86_400_000, 365 * 86_400_000, -50 * HOUR_MS, 0, 0)
    for number, offset in enumerate(offsets, 1):
        await queue.writer.append(plain(number, at_ms=NOON_MS + offset))
    await queue.advance()
    assert numbers(sink.rows()) == list(range(1, 9))
    assert len(sink.objects) == 7
    await queue.close()


@pytest.mark.parametrize("timestamp_ms", [-(2**62), -1, 0, 253_402_300_799_999, 2**62])
async def test_an_impossible_time_stops_no_drain(
    tmp_path: Path, sink: MemorySink, timestamp_ms: int
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1, at_ms=timestamp_ms))
    await queue.writer.append(plain(2))
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == [1, 2]
    await queue.close()


async def test_objects_are_cut_at_their_size_and_hold_a_row_at_least(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink, size=3500)
    for number in range(1, 8):
        await queue.writer.append(plain(number, size_bytes=9000 if number == 4 else 1000))
    await queue.advance()
    assert names_of(sink) == [f"12-00-00 {r}" for r in ("1-3", "4-4", "5-7")]
    assert max(len(body) for body in sink.objects.values() if len(row_lines([body])) > 1) <= 3500
    heads = [json.loads(body.splitlines()[0]) for body in sink.objects.values()]
    assert heads == 3 * [
        {
            "queue_id": queue.owned.queue_id,
            "seq": None,
            "timestamp": "2023-11-15T12:00:00.000Z",
            **json.loads(LOG_FORMAT.head),
        }
    ]
    await queue.close()


async def test_a_run_that_still_grows_waits_for_its_window_or_for_a_full_object(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink, size=3500, everything=False)
    await queue.writer.append(plain(1, 2, size_bytes=1000))
    assert (await queue.advance()).queued_rows == 2
    await queue.writer.append(plain(3, 4, 5, size_bytes=1000))
    assert (await queue.advance()).queued_rows == 2
    await queue.writer.append(plain(6, at_ms=NOON_MS + WINDOW_MS))
    assert (await queue.advance()).queued_rows == 1
    queue.drain.everything = True
    assert (await queue.advance()).queued_rows == 0
    assert names_of(sink) == ["12-00-00 1-3", "12-00-00 4-5", "12-05-00 6-6"]
    await queue.close()


async def test_a_short_window_ends_by_itself(tmp_path: Path, sink: MemorySink) -> None:
    queue = OpenQueue(folder.give_birth(tmp_path, birth(1)), sink, everything=False)
    await queue.writer.append(plain(1))

    async def is_drained() -> bool:
        return (await queue.advance()).queued_rows == 0

    await wait_until(is_drained, "the window of a second ends")
    assert numbers(sink.rows()) == [1]
    await queue.close()


def test_a_run_of_exactly_one_objects_size_is_not_read_again_and_again(tmp_path: Path) -> None:
    size = len(finished_line("0" * 16, 1, entry(1, size_bytes=100).body))

    def fill(store: Store) -> None:
        store.commit([Append((entry(1, size_bytes=100),))])
        assert store.sealable(everything=False) == (1, 0)
        store.commit([plain(2)])
        assert store.sealable(everything=False) == (1, 1)

    dead_queue(tmp_path / "queues", fill, birth(object_max_bytes=size))


# Stores that fail.


async def test_one_refused_batch_does_not_stop_the_others(tmp_path: Path, sink: MemorySink) -> None:
    queue = new_queue(tmp_path, sink)
    sink.answers = refuse(3)
    for number in range(1, 8):
        await queue.writer.append(plain(number, at_ms=NOON_MS + number * WINDOW_MS))
    state = await queue.advance()
    assert state.queued_rows == 1
    assert numbers(sink.rows()) == [1, 2, 4, 5, 6, 7]
    assert queue.counts.upload_failures == 1
    for number in range(8, 12):
        await queue.writer.append(plain(number, at_ms=NOON_MS + number * WINDOW_MS))
    await queue.drain.advance()
    assert sink.attempts.count(sink.attempts[2]) == 1, "it was tried again without a delay"
    assert seqs(sink.rows())[-1] == 11
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == list(range(1, 12))
    await queue.close()


async def test_a_store_that_is_away_costs_few_attempts_and_seals_little(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    sink.answers = away
    for number in range(1, 101):
        await queue.writer.append(plain(number, at_ms=NOON_MS + number * WINDOW_MS))
    for _ in range(20):
        await queue.drain.advance()
    assert len(sink.attempts) <= 4
    assert queue.counts.batches_sealed <= 4
    assert queue.counts.last_error == "connection refused"
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    assert numbers(sink.rows()) == list(range(1, 101))
    assert queue.counts.last_error is None
    assert [name for name in sink.attempts[4:]] == sorted(sink.attempts[4:]), "not oldest first"
    await queue.close()


async def test_a_lost_answer_is_followed_by_the_same_name_and_bytes(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1, 2))
    sink.answers = lambda batch: lost()
    assert (await queue.advance()).queued_rows == 2
    await queue.writer.append(plain(3))
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    assert names_of(sink) == ["12-00-00 1-2", "12-00-00 1-2", "12-00-00 3-3"]
    await queue.close()


async def test_whatever_a_sink_raises_the_rows_stay(tmp_path: Path, sink: MemorySink) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1))

    def defect(batch: Batch) -> SinkFailure:
        raise KeyError("a defect of the sink")

    sink.answers = defect
    assert (await queue.advance()).queued_rows == 1
    assert queue.counts.last_error == "KeyError"
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    await queue.close()


async def test_a_pass_that_is_cancelled_during_a_put_is_made_up_for(
    tmp_path: Path, sink: MemorySink
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1))
    begun, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(batch: Batch) -> None:
        loop.call_soon_threadsafe(begun.set)
        release.wait(20)

    sink.answers = hang
    advancing = asyncio.ensure_future(queue.drain.advance())
    await begun.wait()
    advancing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await advancing
    sink.answers = lambda batch: None
    assert (await queue.advance()).queued_rows == 0
    release.set()
    await queue.close()
    assert numbers(sink.rows()) == [1]


async def test_a_confirmed_batch_is_not_put_again_because_the_disk_was_full(
    tmp_path: Path, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = new_queue(tmp_path, sink)
    await queue.writer.append(plain(1))
    ack = queue.store.ack
    tries: list[int] = []

    def full(batch: Batch) -> None:
        tries.append(batch.first)
        queue.store._database.set_cap(1)
        with queue.store._database.transaction(is_capped=True) as execute_many:
            execute_many("CREATE TABLE too_much (x)", [()])

    monkeypatch.setattr(queue.store, "ack", full)
    with pytest.raises(QueueFull):
        await queue.advance()
    assert tries == [1, 1, 1], "it is tried again after each reserve that is given up"
    monkeypatch.setattr(queue.store, "ack", ack)
    assert (await queue.advance()).queued_rows == 0
    assert names_of(sink) == ["12-00-00 1-1"]
    await queue.close()


# When to try again.


def delays(failures: int) -> Iterator[float]:
    delay = Delay(cap_seconds=60)
    for _ in range(failures):
        delay.failed(1000.0)
        yield delay.due - 1000.0


def test_a_delay_doubles_up_to_its_cap_with_jitter() -> None:
    for number, seconds in enumerate(delays(12)):
        whole = min(60.0, 2.0**number)
        assert whole / 2 <= seconds <= whole
    assert max(delays(200)) <= 60


def test_a_batch_waits_alone_until_several_in_a_row_have_failed() -> None:
    backoff = Backoff()
    backoff.failed(1, 0.0)
    assert not backoff.is_due(1, 0.1)
    assert backoff.is_due(2, 0.1)
    for _ in range(3):
        backoff.failed(1, 0.0)
    assert backoff.is_due(2, 0.1), "one batch alone does not mean that the store is away"
    for first in range(2, STORE_FAILURES + 1):
        backoff.failed(first, 0.0)
    assert not backoff.is_due(99, 0.1)
    backoff.succeeded(2)
    assert backoff.is_due(99, 0.1)
    assert not backoff.is_due(1, 0.1)
    backoff.try_now()
    assert backoff.is_due(1, 0.1)


async def test_a_row_left_over_keeps_the_queue_from_being_called_empty(
    tmp_path: Path,
) -> None:
    queue = dead_queue(tmp_path / "queues", lambda store: store.commit([plain(1, 2)]))
    store = Store.open(queue)
    store.ack(store.seal(1, 2, bytes(16), 0, "memory:"))
    assert store.is_empty()
    store.close(cleanly=True)
    alter(queue, "INSERT INTO rows VALUES (1, 0, 0, X'00')")
    with pytest.raises(NeedsRepair):
        Store.open(queue).is_empty()
