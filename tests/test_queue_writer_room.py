"""The writer without room: openings are refused, closings stored whole, slim, or held."""

import asyncio
import json
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.disk_space import DiskSpace
from open_llm_proxy.queue.entry import Append, Entry
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.writer import Writer
from queue_fixtures import birth, closing, opening, plain
from test_queue_writer import WriterOfTest, held_up
from waiting import wait_until


class FullDisk:
    """Stands for a full disk below a store: commits above `fits_bytes` fail as SQLite's do.

    Real full disks are in test_queue_space.py; here the bytes that fit are exact.
    """

    def __init__(self, store: Store) -> None:
        self.fits_bytes = 1 << 30
        self.tried: list[list[str]] = []
        self._store = store
        self._commit = store.commit
        store.commit = self.commit  # type: ignore[method-assign]

    def commit(self, group: list[Append]) -> list[tuple[bytes, ...]]:
        kinds = [json.loads(a.entries[0].body)["type"] for a in group]
        self.tried.append(kinds)
        if sum(append.size_bytes for append in group) > self.fits_bytes:
            self._store._database.set_cap(1)
            with self._store._database.transaction(is_capped=True) as execute_many:
                execute_many("CREATE TABLE too_much (x)", [()])
        return self._commit(group)


async def test_without_room_openings_are_refused_and_closings_stored(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    append, record = opening(1)
    await writer.append(append)
    disk = FullDisk(writer._store)
    disk.fits_bytes = 10_000
    with held_up(writer):
        refused = writer.append(opening(2, size_bytes=20_000)[0])
        closed = writer.append(closing(1, record))
    with pytest.raises(QueueFull):
        await refused
    assert len(await closed) == 1
    assert writer.failures == []
    await writer.close()


async def test_a_closing_that_does_not_fit_is_stored_without_its_texts(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    calls = [opening(number) for number in range(3)]
    for append, _ in calls:
        await writer.append(append)
    disk = FullDisk(writer._store)
    disk.fits_bytes = 10_000
    with held_up(writer):
        futures = [
            writer.append(
                Append(
                    closing(number, record, size_bytes=20_000 * (number % 2)).entries,
                    closes=record,
                    slim=Entry(b'{"type":"slim","number":%d}' % number, 0),
                )
            )
            for number, (_, record) in enumerate(calls)
        ]
    kinds = [json.loads(line)["type"] for (line,) in await asyncio.gather(*futures)]
    assert kinds == ["response", "slim", "response"]
    await writer.close()


async def test_a_closing_without_room_is_held_until_there_is_some(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    append, record = opening(1)
    await writer.append(append)
    disk = FullDisk(writer._store)
    disk.fits_bytes = 0
    with held_up(writer):
        held = writer.append(closing(1, record, size_bytes=5000))
        looked = writer.run(lambda store: None)
    await looked
    assert not held.done()
    assert len(disk.tried) == 2, "tried once, held, and tried again with the next work"
    disk.fits_bytes = 10_000
    (line,) = await asyncio.wait_for(held, 10)
    assert json.loads(line)["type"] == "response"
    await writer.close()


async def test_a_closing_that_is_held_does_not_hold_up_others(tmp_path: Path) -> None:
    writer = WriterOfTest(tmp_path)
    calls = [opening(number) for number in range(2)]
    for append, _ in calls:
        await writer.append(append)
    disk = FullDisk(writer._store)
    disk.fits_bytes = 10_000
    held = writer.append(closing(0, calls[0][1], size_bytes=20_000))
    await wait_until(lambda: disk.tried.count(["response"]) > 1, "it was tried and held")
    assert len(await asyncio.wait_for(writer.append(closing(1, calls[1][1])), 10)) == 1
    assert not held.done()
    disk.fits_bytes = 30_000
    assert len(await held) == 1
    await writer.close()


async def test_a_closing_that_is_still_held_at_the_end_is_left_to_the_next_owner(
    tmp_path: Path,
) -> None:
    writer = WriterOfTest(tmp_path)
    append, record = opening(1)
    await writer.append(append)
    FullDisk(writer._store).fits_bytes = 0
    held = writer.append(closing(1, record))
    await writer.close()
    with pytest.raises(QueueFull):
        await held
    assert writer.failures == []
    store = Store.open(writer.owned.path)
    assert [json.loads(line)["type"] for line in store.close_open_calls()] == ["interrupted"]


async def test_the_reserve_is_given_up_before_a_closing_is_held(tmp_path: Path) -> None:
    owned = folder.give_birth(tmp_path, birth())
    space = DiskSpace(tmp_path, owned.path, 1 << 30)
    writer = Writer(Store.open(owned.path), space)
    append, record = opening(1)
    await writer.append(append)
    disk = FullDisk(writer._store)
    disk.fits_bytes = 0
    with held_up(writer):
        held = writer.append(closing(1, record))
        later = writer.append(plain(5))
    with pytest.raises(QueueFull):
        await later
    assert not (owned.path / "reserve").exists()
    assert isinstance(writer.refusal, QueueFull)
    disk.fits_bytes = 10_000
    assert await held
    await writer.run(lambda store: space.measure(store.free_bytes))
    assert writer.refusal is None
    assert (owned.path / "reserve").exists()
    await writer.close()


async def test_openings_that_wait_when_the_disk_fills_do_not_eat_the_reserve(
    tmp_path: Path,
) -> None:
    owned = folder.give_birth(tmp_path, birth())
    space = DiskSpace(tmp_path, owned.path, 1 << 30)
    writer = Writer(Store.open(owned.path), space)
    disk = FullDisk(writer._store)
    with held_up(writer):
        first = writer.append(plain(1, size_bytes=5 << 20))
        waiting = [writer.append(opening(number)[0]) for number in range(2, 10)]
        disk.fits_bytes = 1 << 20
    for refused in (first, *waiting):
        with pytest.raises(QueueFull):
            await refused
    assert len(disk.tried) == 1
    await writer.close()
