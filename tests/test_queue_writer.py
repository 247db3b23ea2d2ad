"""The writer's thread: group commit, what an answer means, and what happens when the disk fails."""

import asyncio
import json
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.queue import folder, schema, stall_clock
from open_llm_proxy.queue.entry import Append, CallMark, Entry
from open_llm_proxy.queue.errors import QueueBroken, QueueClosed, QueueFull, QueueStalled
from open_llm_proxy.queue.log_queue import LoggedCall
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.writer import Writer
from queue_fixtures import as_killed, birth, closing, entry, opening, plain
from waiting import wait_until


class WriterOfTest(Writer):
    """A writer of a new queue that notes what it reports."""

    def __init__(self, root: Path, **options: Any) -> None:
        root.mkdir(exist_ok=True)
        self.owned = folder.give_birth(root, birth())
        self.groups: list[list[bytes]] = []
        self.failures: list[QueueBroken] = []
        super().__init__(
            Store.open(self.owned.path),
            on_committed=self.groups.append,
            on_broken=self.failures.append,
            **options,
        )


@contextmanager
def held_up(writer: Writer) -> Iterator[None]:
    """The writer's thread stands still; what is handed over meanwhile waits in the mailbox."""
    release = threading.Event()
    begun = threading.Event()

    def stand(store: Store) -> None:
        begun.set()
        release.wait(20)

    writer.run(stand)
    assert begun.wait(20)
    try:
        yield
    finally:
        release.set()


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `size_bytes`: SQLite sees an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def numbers_in(folder_of_queue: Path) -> list[int]:
    """The numbers of the rows in the file, as a process that starts now would read them."""
    connection = sqlite3.connect(folder_of_queue / schema.DATABASE_NAME)
    rows = connection.execute("SELECT line FROM rows ORDER BY seq").fetchall()
    connection.close()
    return [json.loads(line)["number"] for (line,) in rows]


async def test_an_answer_means_that_a_kill_cannot_take_the_row_away(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path / "queues")
    for number in range(5):
        await writer.append(plain(number))
        copied = as_killed(tmp_path / "queues", tmp_path / f"killed-{number}")
        assert numbers_in(copied / writer.owned.queue_id) == list(range(number + 1))
    await writer.close()


async def test_what_arrives_during_a_commit_goes_into_the_next_one_in_order(
    tmp_path: Path,
) -> None:
    writer = WriterOfTest(tmp_path)
    with held_up(writer):
        futures = [writer.append(plain(number)) for number in range(100)]
    results = await asyncio.gather(*futures)
    assert len(writer.groups) == 1
    assert [json.loads(line)["number"] for line in writer.groups[0]] == list(range(100))
    assert [json.loads(line)["seq"] for (line,) in results] == list(range(1, 101))
    await writer.close()


async def test_a_group_is_bounded_in_bytes(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    with held_up(writer):
        futures = [writer.append(plain(number, size_bytes=1 << 20)) for number in range(12)]
    await asyncio.gather(*futures)
    assert [len(group) for group in writer.groups] == [4, 4, 4]
    await writer.close()


async def test_what_is_handed_over_while_the_thread_is_at_work_is_one_group(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    futures = []
    for number in range(5):
        futures.append(writer.append(plain(number)))
        threading.Event().wait(0.01)  # the turn is long: a thread that was woken would commit
    await asyncio.gather(*futures)
    await asyncio.gather(*[writer.append(plain(number)) for number in range(90)])
    assert [len(group) for group in writer.groups] == [1, 4, 90]
    assert await writer.run(lambda store: store.last_seq) == 95
    await writer.close()


async def test_a_close_in_the_same_turn_carries_out_what_was_handed_over(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    future = writer.append(plain(1))
    await writer.close()
    assert len(await future) == 1


async def test_a_cancelled_wait_leaves_the_call_stored_and_open(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    append, record = opening(1)
    with held_up(writer):
        handler = asyncio.ensure_future(writer.append(append))
        await asyncio.sleep(0)
        handler.cancel()
        closed = writer.append(closing(1, record))
        await asyncio.sleep(0)  # what a turn of the loop hands over goes to the writer at its end
    assert len(await closed) == 1
    assert handler.cancelled()
    assert [json.loads(line)["type"] for line in writer.groups[0]] == ["request", "response"]
    await writer.close()


async def test_appends_and_jobs_are_done_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    with held_up(writer):
        writer.append(plain(1))
        first = writer.run(lambda store: store.last_seq)
        writer.append(plain(2, 3))
        second = writer.run(lambda store: store.last_seq)
    assert (await first, await second) == (1, 3)
    await writer.close()


async def test_a_jobs_exception_is_the_jobs_alone(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda store: 1 // 0)
    await writer.append(plain(1))
    assert writer.failures == []
    await writer.close()


async def test_new_calls_are_refused_while_too_much_waits_for_the_disk(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path, pending_max_bytes=100_000)
    append, record = opening(1)
    await writer.append(append)
    with held_up(writer):
        writer.append(plain(2, size_bytes=100_000))
        with pytest.raises(QueueFull, match="cannot keep up"):
            writer.append(plain(3))
        assert isinstance(writer.refusal, QueueFull)
        closed = writer.append(closing(1, record))
    assert await closed
    await writer.run(lambda store: None)
    assert writer.refusal is None
    await writer.close()


async def test_a_failed_write_acknowledges_nothing_and_ends_the_writer(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path / "queues")
    append, record = opening(1)
    await writer.append(append)
    with files_limited_to(200_000):
        with held_up(writer):
            lost = writer.append(plain(2, size_bytes=1 << 20))
            closed = writer.append(closing(1, record))
        with pytest.raises(QueueBroken, match="SQLITE_IOERR_WRITE"):
            await lost
        with pytest.raises(QueueBroken):
            await closed
    assert not writer.failures[0].is_damage
    with pytest.raises(QueueBroken):
        writer.append(plain(3))
    with pytest.raises(QueueBroken):
        writer.append(closing(1, record))
    with pytest.raises(QueueBroken):
        await writer.run(lambda store: store.last_seq)
    await writer.close()
    assert len(writer.failures) == 1
    killed = as_killed(tmp_path / "queues", tmp_path / "killed")
    assert numbers_in(killed / writer.owned.queue_id) == [1]


async def test_a_failed_file_is_not_checkpointed_when_the_writer_is_closed(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    await writer.append(plain(1))
    path = writer.owned.path / schema.DATABASE_NAME
    before = path.read_bytes()
    with files_limited_to(200_000), pytest.raises(QueueBroken):
        await writer.append(plain(2, size_bytes=1 << 20))
    await writer.close()
    assert path.read_bytes() == before
    assert (writer.owned.path / schema.WAL_NAME).stat().st_size > 0


async def test_a_checkpoint_that_fails_is_not_hidden(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    # The log stays below the limit for files; the file itself passes it at a checkpoint.
    limit = schema.WAL_LIMIT_BYTES * 2
    with files_limited_to(limit), pytest.raises(QueueBroken):
        for _ in range(1000):
            await writer.append(plain(*range(100), size_bytes=1000))
    assert len(writer.failures) == 1
    assert (writer.owned.path / schema.WAL_NAME).stat().st_size < schema.WAL_LIMIT_BYTES * 3 // 2
    await writer.close()


async def test_a_defect_leaves_nobody_waiting(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    with held_up(writer):
        good = writer.append(plain(1))
        bad = writer.append(Append((Entry(b"{}", "no time"),)))  # type: ignore[arg-type]
    for future in (good, bad):
        with pytest.raises(QueueBroken):
            await asyncio.wait_for(future, 10)
    assert len(writer.failures) == 1
    await writer.close()


async def test_closing_stores_what_was_handed_over_before(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    futures = [writer.append(plain(number)) for number in range(10)]
    await writer.close()
    assert [len(future.result()) for future in futures] == [1] * 10
    assert numbers_in(writer.owned.path) == list(range(10))
    with pytest.raises(QueueClosed):
        writer.append(plain(11))
    with pytest.raises(QueueClosed):
        await writer.run(lambda store: None)
    await writer.close()
    assert writer.failures == []


async def test_a_record_never_stored_closes_to_nothing(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    assert await writer.append(closing(1, CallMark())) == ()
    assert writer.groups == []
    await writer.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers take a disk for hanging after a moment."""
    monkeypatch.setattr(stall_clock, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(stall_clock, "LOOK_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_an_opening_that_waits_too_long_is_given_up_and_closed_behind(
    tmp_path: Path,
) -> None:
    writer = WriterOfTest(tmp_path)
    append, mark = opening(1)
    with held_up(writer):
        call = LoggedCall(writer, mark, writer.append(append))
        with pytest.raises(QueueStalled):
            await call.stored
        assert isinstance(writer.refusal, QueueStalled)
        assert writer.pace.oldest_waiting_seconds >= 0.05
        with pytest.raises(QueueStalled):
            writer.append(plain(2))
        with pytest.raises(QueueStalled):
            await call.close(entry(1, kind="rejected"))
    await wait_until(lambda: writer.refusal is None, "nothing waits any more")
    await writer.close()
    lines = [json.loads(line) for group in writer.groups for line in group]
    assert [(line["type"], line["number"]) for line in lines] == [("request", 1), ("rejected", 1)]


@pytest.mark.usefixtures("impatient")
async def test_a_call_under_way_waits_for_a_disk_that_hangs(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    append, mark = opening(1)
    call = LoggedCall(writer, mark, writer.append(append))
    await call.stored
    with held_up(writer):
        closed = call.close(entry(1, kind="response"))
        await wait_until(lambda: writer.refusal is not None, "the disk is taken for hanging")
        later = call.close(entry(2, kind="response"))
        await asyncio.sleep(0)
        assert not closed.done() and not later.done()
    assert len(await closed) == 1
    assert await later == ()
    await writer.close()
    assert writer.pace.last_appends >= 1
    assert writer.pace.oldest_waiting_seconds == 0.0
