"""The queue as the request path sees it: open, close, flush, status, start and end."""

import asyncio
import json
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.queue.errors import QueueBroken, QueueClosed, QueueFolderUnusable, QueueFull
from open_llm_proxy.queue.log_queue import LogQueue, QueueStatus
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.sinks import SinkFailure, SinkRefused
from queue_fixtures import (
    NOON_MS,
    MemorySink,
    as_killed,
    birth,
    dead_queue,
    entry,
    interrupted,
    names,
    numbers,
    plain,
    seqs,
)
from waiting import wait_until


class LogQueueOfTest:
    """Starts log queues below one root and notes what they report."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sink = MemorySink()
        self.lines: list[bytes] = []
        self.failures: list[QueueBroken] = []

    def start(self, root: Path | None = None, **options: Any) -> LogQueue:
        return LogQueue.start(
            root or self.root,
            birth(options.get("window_seconds", 300)),
            options.get("sink", self.sink),
            options.get("max_bytes", 1 << 30),
            Adoption,
            on_committed=self.lines.extend,
            on_broken=self.failures.append,
        )


@pytest.fixture
def log(tmp_path: Path) -> LogQueueOfTest:
    return LogQueueOfTest(tmp_path / "queues")


@pytest.fixture
def unlimited_files() -> Iterator[Callable[[int], None]]:
    """Sets the size that no file of this process may exceed; afterwards there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def balances(status: QueueStatus) -> bool:
    return status.accepted_rows == status.uploaded_rows + status.queued_rows


async def test_a_call_has_two_rows_in_the_store_when_the_queue_is_closed(
    log: LogQueueOfTest,
) -> None:
    queue = log.start()
    call = queue.open([entry(1)], interrupted(1))
    await call.stored
    await call.close(entry(1, kind="response"))
    assert len(log.lines) == 2
    assert await queue.close(10)
    assert [row["type"] for row in log.sink.rows()] == ["request", "response"]
    assert names(log.root) == []


async def test_entries_that_open_nothing_are_stored_together(log: LogQueueOfTest) -> None:
    queue = log.start()
    lines = await queue.append([entry(1, kind="request"), entry(1, kind="rejected")])
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]
    await queue.close(10)


async def test_a_call_may_be_opened_with_entries_ahead_of_its_request(
    log: LogQueueOfTest, tmp_path: Path
) -> None:
    queue = log.start()
    call = queue.open([entry(0, kind="system_prompt"), entry(1)], interrupted(1))
    await call.stored
    as_killed(log.root, tmp_path / "killed")
    await call.close(entry(1, kind="response"))
    await queue.close(10)
    other = LogQueueOfTest(tmp_path / "killed")
    queue = other.start()
    await wait_until(lambda: other.sink.objects, "the copy is adopted")
    await queue.close(10)
    kinds = [row["type"] for row in other.sink.rows()]
    assert kinds == ["system_prompt", "request", "interrupted"]


async def test_what_the_store_does_not_take_in_time_is_left_to_the_next_start(
    log: LogQueueOfTest,
) -> None:
    log.sink.answers = lambda batch: SinkFailure("connection refused")
    queue = log.start()
    await queue.append([entry(1)])
    assert not await queue.close(5)
    assert names(log.root) == [queue.queue_id]
    log.sink.answers = lambda batch: None
    queue = log.start()
    await wait_until(lambda: names(log.root) == [queue.queue_id], "the queue is adopted")
    assert await queue.close(5)
    assert numbers(log.sink.rows()) == [1]


async def test_a_call_that_is_open_at_the_end_is_closed_by_the_next_start(
    log: LogQueueOfTest,
) -> None:
    queue = log.start()
    await queue.open([entry(1)], interrupted(1)).stored
    assert not await queue.close(5)
    queue = log.start()
    await wait_until(lambda: len(log.sink.rows()) == 2, "the queue is adopted")
    await queue.close(5)
    assert [row["type"] for row in log.sink.rows()] == ["request", "interrupted"]


async def test_closing_does_not_wait_for_a_store_that_hangs(log: LogQueueOfTest) -> None:
    release = threading.Event()
    log.sink.answers = lambda batch: release.wait(20) and None
    queue = log.start()
    await queue.append([entry(1)])
    assert not await asyncio.wait_for(queue.close(0.1), 10)
    release.set()


async def test_starting_does_not_wait_for_a_backlog(log: LogQueueOfTest) -> None:
    for number in range(3):
        dead_queue(log.root, lambda store, n=number: store.commit([plain(n)]))  # type: ignore[misc]
    release = threading.Event()
    log.sink.answers = lambda batch: release.wait(20) and None
    queue = log.start()
    await asyncio.wait_for(queue.append([entry(9)]), 5)
    release.set()
    await wait_until(lambda: len(log.sink.objects) == 3, "the backlog is drained")
    await queue.close(10)


async def test_flush_uploads_now_and_calls_go_on(log: LogQueueOfTest) -> None:
    queue = log.start()
    call = queue.open([entry(1)], interrupted(1))
    await call.stored
    await queue.flush()
    assert numbers(log.sink.rows()) == [1]
    await call.close(entry(1, kind="response"))
    await queue.flush()
    assert seqs(log.sink.rows()) == [1, 2]
    assert await queue.close(5)


async def test_flush_forgets_the_delays_of_a_store_that_was_away(log: LogQueueOfTest) -> None:
    log.sink.answers = lambda batch: SinkFailure("connection refused")
    queue = log.start()
    await queue.append([entry(1)])
    await queue.flush()
    await queue.flush()
    assert len(log.sink.attempts) == 2
    log.sink.answers = lambda batch: None
    await queue.flush()
    assert (await queue.status()).queued_rows == 0
    await queue.close(5)


async def test_finished_windows_are_uploaded_by_themselves(log: LogQueueOfTest) -> None:
    queue = log.start(window_seconds=1)
    await queue.append([entry(1)])
    await wait_until(lambda: log.sink.objects, "the window of a second ends")
    await queue.close(5)


async def test_status_says_what_is_queued_and_what_went_wrong(log: LogQueueOfTest) -> None:
    log.sink.answers = lambda batch: SinkRefused("answered 403 AccessDenied")
    queue = log.start()
    await queue.append([entry(1), entry(2)])
    await queue.open([entry(3)], interrupted(3)).stored
    await queue.flush()
    status = await queue.status()
    assert (status.queue_id, status.sink) == (queue.queue_id, "memory:")
    assert (status.accepted_rows, status.queued_rows, status.uploaded_rows) == (3, 3, 0)
    assert (status.open_calls, status.batches_sealed, status.batches_uploaded) == (1, 1, 0)
    assert (status.upload_failures, status.last_error) == (1, "answered 403 AccessDenied")
    assert status.queued_bytes > 0
    assert status.oldest_age_seconds is not None
    assert status.oldest_age_seconds > 86_400
    log.sink.answers = lambda batch: None
    await queue.flush()
    status = await queue.status()
    assert (status.accepted_rows, status.queued_rows, status.uploaded_rows) == (3, 0, 3)
    assert (status.oldest_age_seconds, status.last_error) == (None, None)
    assert status.last_upload_at is not None
    await queue.close(5)


async def test_a_clock_behind_the_entries_shows_no_negative_age(log: LogQueueOfTest) -> None:
    queue = log.start()
    await queue.append([entry(1, at_ms=NOON_MS * 2)])
    assert (await queue.status()).oldest_age_seconds == 0.0
    await queue.close(5)


async def test_rows_balance_in_every_status_while_everything_moves(log: LogQueueOfTest) -> None:
    def calls(store: Any) -> None:
        store.commit([plain(*range(20))])

    for _ in range(3):
        dead_queue(log.root, calls)
    queue = log.start(window_seconds=1)
    seen: list[QueueStatus] = []

    async def watch() -> None:
        while not seen or seen[-1].uploaded_rows < 80:
            seen.append(await queue.status())
            assert balances(seen[-1]), seen[-1]

    watching = asyncio.ensure_future(watch())
    for number in range(20):
        await queue.append([entry(number)])
    await asyncio.wait_for(watching, 20)
    assert seen[-1].adopted_files == 3
    assert seen[-1].accepted_rows == 80
    await queue.close(5)


async def test_status_answers_while_the_disk_hangs(log: LogQueueOfTest) -> None:
    queue = log.start()
    await queue.append([entry(1)])
    await queue.status()
    release = threading.Event()
    queue._writer.run(lambda store: release.wait(20))
    status = await asyncio.wait_for(queue.status(), 5)
    assert status.queued_rows == 1
    release.set()
    await queue.close(5)


async def test_at_the_limit_calls_are_refused_and_served_again_after_the_drain(
    log: LogQueueOfTest,
) -> None:
    log.sink.answers = lambda batch: SinkFailure("connection refused")
    queue = log.start(max_bytes=6 << 20)
    call = queue.open([entry(0)], interrupted(0))
    await call.stored

    async def fill() -> None:
        for number in range(1, 1000):
            await queue.append([entry(number, size_bytes=100_000)])

    with pytest.raises(QueueFull, match="its limit of 6291456 bytes"):
        await fill()
    assert isinstance(queue.refusal, QueueFull)
    assert await call.close(entry(0, kind="response", size_bytes=5_000_000))
    log.sink.answers = lambda batch: None
    await queue.flush()
    await wait_until(lambda: queue.refusal is None, "there is room again")
    await queue.append([entry(1)])
    assert log.failures == []
    await queue.close(5)


async def test_a_file_that_fails_refuses_everything_and_says_so_once(
    log: LogQueueOfTest, unlimited_files: Callable[[int], None], tmp_path: Path
) -> None:
    queue = log.start()
    call = queue.open([entry(1)], interrupted(1))
    await call.stored
    unlimited_files(300_000)
    with pytest.raises(QueueBroken):
        await queue.append([entry(2, size_bytes=1 << 20)])
    unlimited_files(resource.RLIM_INFINITY)
    with pytest.raises(QueueBroken):
        await call.close(entry(1, kind="response"))
    assert isinstance(queue.refusal, QueueBroken)
    assert not await queue.close(5)
    assert len(log.failures) == 1
    other = LogQueueOfTest(as_killed(log.root, tmp_path / "next"))
    queue = other.start()
    await wait_until(lambda: other.sink.objects, "the next start adopts")
    await queue.close(5)
    assert [row["type"] for row in other.sink.rows()] == ["request", "interrupted"]


async def test_after_its_end_the_queue_takes_nothing(log: LogQueueOfTest) -> None:
    queue = log.start()
    call = queue.open([entry(1)], interrupted(1))
    await call.stored
    await queue.close(5)
    for late in (lambda: queue.append([entry(2)]), lambda: call.close(entry(1))):
        with pytest.raises(QueueClosed):
            late()


async def test_a_root_that_cannot_hold_a_queue_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "queues").write_bytes(b"a file")
    with pytest.raises(QueueFolderUnusable):
        LogQueueOfTest(tmp_path / "queues").start()


@pytest.mark.parametrize("outcome", ["stored", "cancelled", "refused"])
async def test_a_handlers_finally_closes_its_call_whatever_became_of_the_opening(
    log: LogQueueOfTest, outcome: str
) -> None:
    queue = log.start(max_bytes=1 if outcome == "refused" else 1 << 30)

    async def handle() -> None:
        call = queue.open([entry(1)], interrupted(1))
        try:
            await call.stored
        finally:
            await call.close(entry(1, kind="response"))

    handler = asyncio.ensure_future(handle())
    if outcome == "cancelled":
        await asyncio.sleep(0)
        handler.cancel()
    results: list[Any] = await asyncio.gather(handler, return_exceptions=True)
    await queue.close(5)
    kinds = [row["type"] for row in log.sink.rows()]
    assert kinds == ([] if outcome == "refused" else ["request", "response"])
    assert isinstance(results[0], {"stored": type(None), "cancelled": asyncio.CancelledError,
                                   "refused": QueueFull}[outcome])  # fmt: skip


async def test_two_queues_share_a_root_and_leave_each_other_alone(log: LogQueueOfTest) -> None:
    first, second = log.start(), log.start()
    await first.append([entry(1)])
    await second.append([entry(2)])
    await asyncio.gather(*(Adoption.look(q._recovery) for q in (first, second)))
    assert (await first.status()).adopted_files == 0
    assert await first.close(5)
    assert await second.close(5)
    assert {row["queue_id"] for row in log.sink.rows()} == {first.queue_id, second.queue_id}
