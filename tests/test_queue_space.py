"""Full disks: calls are refused before anything is lost, and served again by themselves."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_llm_proxy.queue import disk_space
from open_llm_proxy.queue.disk_space import (
    LAST_RESERVE_NAME,
    RESERVE_NAME,
    DiskSpace,
    allocate,
    give_up_reserve,
    make_reserves,
    queues_bytes,
)
from open_llm_proxy.queue.errors import QueueFolderUnusable, QueueFull
from open_llm_proxy.queue.log_queue import LoggedCall, LogQueue
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.sinks import SinkFailure
from queue_fixtures import (
    MemorySink,
    birth,
    dead_queue,
    entry,
    interrupted,
    names,
    numbers,
    opening,
    plain,
)
from waiting import wait_until

MIB = 1 << 20


def test_only_queues_count_and_their_reserves_do_not(tmp_path: Path) -> None:
    for name in ("0123456789abcdef", "0123456789abcdef.new", "0123456789abcde0.done"):
        (tmp_path / name / "b").mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x" * 1000)
        (tmp_path / name / "b" / "file").write_bytes(b"x" * 10)
        (tmp_path / name / RESERVE_NAME).write_bytes(b"x" * 5000)
        (tmp_path / name / LAST_RESERVE_NAME).write_bytes(b"x" * 5000)
        (tmp_path / name / "dangling").symlink_to(tmp_path / "nowhere")
    for other in ("2026-03-01", "quarantine"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert queues_bytes(tmp_path) == 3030


def test_new_calls_are_refused_at_the_limit_and_taken_below_it(tmp_path: Path) -> None:
    queue = tmp_path / "0123456789abcdef"
    queue.mkdir()
    watched = DiskSpace(tmp_path, queue, max_bytes=1000)
    watched.measure(0)
    assert watched.refusal is None
    watched.note_written(999)
    assert watched.refusal is None
    watched.note_written(1)
    assert isinstance(watched.refusal, QueueFull)
    watched.measure(0)
    assert watched.refusal is None
    (queue / "file").write_bytes(b"x" * 1500)
    watched.measure(0)
    assert isinstance(watched.refusal, QueueFull)
    watched.measure(free_bytes=600)
    assert watched.refusal is None, "pages that are free in the file are room"


def test_the_reserves_are_given_up_in_turn_and_renewed_when_there_is_room(tmp_path: Path) -> None:
    watched = DiskSpace(tmp_path, tmp_path, max_bytes=1 << 40)
    watched.measure(0)
    assert names(tmp_path) == [RESERVE_NAME, LAST_RESERVE_NAME]
    assert watched.exhausted()
    assert (names(tmp_path), watched.is_last) == ([LAST_RESERVE_NAME], False)
    assert watched.exhausted()
    assert (names(tmp_path), watched.is_last) == ([], True)
    assert not watched.exhausted()
    assert "disk" in str(watched.refusal)
    watched.measure(0)
    assert (watched.refusal, watched.is_last) == (None, False)
    assert names(tmp_path) == [RESERVE_NAME, LAST_RESERVE_NAME]


def test_reserves_are_made_altogether_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "LAST_RESERVE_BYTES", 1 << 60)
    assert not make_reserves(tmp_path)
    assert names(tmp_path) == []
    monkeypatch.undo()
    assert make_reserves(tmp_path)
    assert give_up_reserve(tmp_path)
    monkeypatch.setattr(disk_space, "RESERVE_BYTES", 1 << 60)
    assert not make_reserves(tmp_path)
    assert names(tmp_path) == [LAST_RESERVE_NAME], "what was there stays"


def test_texts_leave_the_drain_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = DiskSpace(tmp_path, tmp_path, max_bytes=1 << 40)
    watched.measure(0)
    assert watched.fits(1 << 60)
    while watched.exhausted():
        pass
    assert watched.fits(1000)
    assert watched.fits(10 * MIB)
    monkeypatch.setattr(disk_space, "LAST_RESERVE_BYTES", 1 << 60)
    assert watched.fits(1000)
    assert not watched.fits(10 * MIB)


def test_what_cannot_be_allocated_leaves_no_file(tmp_path: Path) -> None:
    assert not allocate(tmp_path / "file", 1 << 60)
    assert not allocate(tmp_path / "no" / "folder", 1)
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=64m", "none", str(path))
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(("umount", "--lazy", str(path)), check=True)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Let a foreign file take all the room but `leave_bytes`, whoever else takes some."""
    path = disk / "foreign"
    with open(path, "ab") as file:
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize) > leave_bytes:
            size = os.fstat(file.fileno()).st_size + free - leave_bytes
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
    return path


class FullDiskTest:
    """A log queue on a small disk, with some calls under way."""

    def __init__(self, disk: Path, calls: int = 4) -> None:
        self.disk = disk
        self.sink = MemorySink()
        self.failures: list[Exception] = []
        self.queue = self.start()
        self.calls: list[LoggedCall] = []

    def start(self, max_bytes: int = 1 << 40) -> LogQueue:
        return LogQueue.start(
            self.disk / "queues",
            birth(),
            self.sink,
            max_bytes,
            Adoption,
            on_committed=lambda lines: None,
            on_broken=self.failures.append,
        )

    async def open(self, calls: int) -> None:
        for number in range(calls):
            call = self.queue.open([entry(number)], interrupted(number))
            await call.stored
            self.calls.append(call)

    async def open_until_refused(self, size_bytes: int = 500_000) -> None:
        with pytest.raises(QueueFull):
            for number in range(1000, 2000):
                await self.queue.append([entry(number, kind="plain", size_bytes=size_bytes)])

    async def close(self, size_bytes: int, with_slim: bool = True) -> None:
        """Close all calls, with texts of that size."""
        closings = [
            call.close(
                entry(number, kind="response", size_bytes=size_bytes),
                entry(number, kind="slim") if with_slim else None,
            )
            for number, call in enumerate(self.calls)
        ]
        await asyncio.wait_for(asyncio.gather(*closings), 20)

    def kinds(self) -> list[str]:
        return [row["type"] for row in self.sink.rows() if row["type"] != "plain"]


@pytest.mark.root
async def test_on_a_full_disk_calls_are_refused_those_under_way_end_and_service_comes_back(
    small_disk: Path,
) -> None:
    test = FullDiskTest(small_disk)
    test.sink.answers = lambda batch: SinkFailure("connection refused")
    await test.open(4)
    foreign = fill(small_disk, leave_bytes=4 * MIB)
    await test.open_until_refused()
    await test.close(size_bytes=500_000)
    # Nothing but the drain makes room: it must be able to delete on the full disk.
    fill(small_disk)
    test.sink.answers = lambda batch: None
    await test.queue.flush()
    assert (await test.queue.status()).queued_rows == 0
    assert test.kinds() == ["request"] * 4 + ["response"] * 4
    foreign.unlink()
    await wait_until(lambda: test.queue.refusal is None, "calls are taken again")
    await test.queue.append([entry(1)])
    assert test.failures == []
    assert await test.queue.close(10)


@pytest.mark.root
async def test_at_the_very_end_of_the_room_closings_are_stored_without_their_texts(
    small_disk: Path,
) -> None:
    test = FullDiskTest(small_disk)
    test.sink.answers = lambda batch: SinkFailure("connection refused")
    await test.open(30)
    fill(small_disk, leave_bytes=2 * MIB)
    await test.open_until_refused()
    await test.close(size_bytes=1_500_000)
    test.sink.answers = lambda batch: None
    await test.queue.flush()
    kinds = test.kinds()[30:]
    assert len(kinds) == 30
    assert set(kinds) == {"response", "slim"}, "the reserve took all of them, or none"
    await test.queue.close(10)


@pytest.mark.root
async def test_texts_wait_when_there_is_room_for_the_drain_only_and_are_stored_later(
    small_disk: Path,
) -> None:
    test = FullDiskTest(small_disk)
    test.sink.answers = lambda batch: SinkFailure("connection refused")
    await test.open(4)
    foreign = fill(small_disk)
    await test.open_until_refused()
    fill(small_disk)
    closing = asyncio.ensure_future(test.close(size_bytes=2_000_000, with_slim=False))
    await asyncio.sleep(0)
    await test.queue.status()
    assert not closing.done()
    test.sink.answers = lambda batch: None
    await test.queue.flush()
    assert test.kinds() == ["request"] * 4, "the drain had no room"
    assert not closing.done()
    foreign.unlink()
    await closing
    await test.queue.flush()
    assert test.kinds() == ["request"] * 4 + ["response"] * 4
    assert await test.queue.close(10)


@pytest.mark.root
async def test_the_next_start_drains_a_disk_that_is_full_of_its_own_backlog(
    small_disk: Path,
) -> None:
    test = FullDiskTest(small_disk)
    test.sink.answers = lambda batch: SinkFailure("connection refused")
    await test.open(3)
    await test.open_until_refused()
    assert not await test.queue.close(1)
    fill(small_disk)
    test.sink.answers = lambda batch: None
    test.queue = test.start()
    queues = small_disk / "queues"
    await wait_until(lambda: len(names(queues)) == 1, "the backlog is drained")
    assert test.kinds() == ["request"] * 3 + ["interrupted"] * 3
    (small_disk / "foreign").unlink()
    await wait_until(lambda: test.queue.refusal is None, "calls are taken again")
    assert await test.queue.close(10)


@pytest.mark.root
async def test_a_start_on_a_full_disk_takes_a_dead_owners_reserve(small_disk: Path) -> None:
    test = FullDiskTest(small_disk)
    await test.queue.close(10)
    queues = small_disk / "queues"

    def calls(store: object) -> None:
        store.commit([opening(1)[0], plain(2, size_bytes=500_000)])  # type: ignore[attr-defined]

    queue = dead_queue(queues, calls)
    assert make_reserves(queue)
    fill(small_disk)
    test.queue = test.start()
    await wait_until(lambda: names(queues) == [test.queue.queue_id], "the dead queue is finished")
    assert numbers(test.sink.rows()) == [1, 2, 1]
    assert test.failures == []
    await test.queue.close(10)


@pytest.mark.root
async def test_a_start_on_a_full_disk_with_nothing_to_give_up_says_so(small_disk: Path) -> None:
    test = FullDiskTest(small_disk)
    await test.queue.close(10)
    fill(small_disk)
    with pytest.raises(QueueFolderUnusable, match=r"No space left|database or disk is full"):
        test.start()
    assert [name for name in names(small_disk / "queues") if not name.endswith(".new")] == []


@pytest.mark.root
async def test_a_start_with_hardly_any_room_works_or_says_why_it_cannot(small_disk: Path) -> None:
    test = FullDiskTest(small_disk)
    await test.queue.close(10)
    outcomes = []
    for leave_bytes in (4096, 20_000, 40_000, 80_000, 160_000, 9 * MIB):
        (small_disk / "foreign").unlink(missing_ok=True)
        fill(small_disk, leave_bytes)
        try:
            test.queue = test.start()
        except QueueFolderUnusable:
            outcomes.append("refused")
        else:
            outcomes.append("started")
            await test.queue.close(10)
        assert names(small_disk / "queues") == []
    assert outcomes == sorted(outcomes)
    assert {"refused", "started"} == set(outcomes)
