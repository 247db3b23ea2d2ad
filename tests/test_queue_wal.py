"""A damaged write-ahead log: commits behind a flipped bit are read, torn ones are not made up."""

import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage.wal import WalCondition, repair_wal
from open_llm_proxy.queue.damage.wal_frames import FRAME_BYTES, HEADER
from open_llm_proxy.queue.store import Store
from queue_fixtures import (
    MemorySink,
    adopted,
    dead_queue,
    flip_bit,
    numbers,
    plain,
    quarantined,
)

COMMITS = 30


def thirty_commits(store: Store) -> None:
    for number in range(1, COMMITS + 1):
        store.commit([plain(number, size_bytes=900)])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue of thirty commits whose owner was killed."""
    return dead_queue(tmp_path_factory.mktemp("template") / "queues", thirty_commits)


def untried(pages: Mapping[int, bytes], size: int) -> bool | None:
    """A queue's file that is too large to be tried in memory."""
    return None


def copied(template: Path, root: Path) -> Path:
    """A copy of the template below `root`."""
    return Path(shutil.copytree(template, root / template.name))


def commit_frames(wal: Path) -> list[int]:
    """The frames that end a transaction."""
    data = wal.read_bytes()
    frames = range((len(data) - HEADER.size) // FRAME_BYTES)
    marks = [struct.unpack_from(">I", data, HEADER.size + i * FRAME_BYTES + 4) for i in frames]
    return [i for i, (pages,) in enumerate(marks) if pages]


def rows_without_mending(queue: Path) -> int:
    """How many rows SQLite alone makes of the file and its log."""
    copy = queue.with_name("as-sqlite-sees-it")
    shutil.copytree(queue, copy)
    connection = sqlite3.connect(copy / schema.DATABASE_NAME)
    (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.close()
    shutil.rmtree(copy)
    return int(count)


async def test_commits_behind_a_flipped_bit_are_not_dropped(template: Path, tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = copied(template, root)
    wal = queue / schema.WAL_NAME
    whole = wal.read_bytes()
    flip_bit(wal, HEADER.size + commit_frames(wal)[9] * FRAME_BYTES + 3000)
    assert rows_without_mending(queue) == 9
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, COMMITS + 1))
    (kept,) = quarantined(root)
    assert kept.suffix == ".wal"
    assert len(kept.read_bytes()) == len(whole)


async def test_a_flipped_bit_in_the_logs_header_drops_nothing(
    template: Path, tmp_path: Path
) -> None:
    for at in range(0, HEADER.size, 3):
        root, sink = tmp_path / f"queues-{at}", MemorySink()
        queue = copied(template, root)
        flip_bit(queue / schema.WAL_NAME, at, bit=at % 8)
        await adopted(root, sink)
        assert numbers(sink.rows()) == list(range(1, COMMITS + 1)), f"byte {at}"


@pytest.mark.parametrize("byte", range(24))
async def test_a_flipped_bit_in_a_frames_header_is_set_right(
    template: Path, tmp_path: Path, byte: int
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = copied(template, root)
    wal = queue / schema.WAL_NAME
    # Page number, commit mark, salts and checksum of a commit's last frame.
    flip_bit(wal, HEADER.size + commit_frames(wal)[14] * FRAME_BYTES + byte, bit=byte % 8)
    assert rows_without_mending(queue) == 14
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, COMMITS + 1))


@pytest.mark.parametrize("from_end", [0, 1])
async def test_a_bad_frame_in_the_last_commits_may_be_a_torn_write(
    template: Path, tmp_path: Path, from_end: int
) -> None:
    queue = copied(template, tmp_path / "queues")
    wal = queue / schema.WAL_NAME
    flip_bit(wal, HEADER.size + commit_frames(wal)[-1 - from_end] * FRAME_BYTES + 3000)
    damaged = wal.read_bytes()
    repaired = repair_wal(wal, queue.parent, untried).repaired
    assert (repaired, wal.read_bytes() == damaged) == ((0, True) if from_end == 0 else (1, False))


def test_a_sound_log_is_left_alone(template: Path, tmp_path: Path) -> None:
    queue = copied(template, tmp_path / "queues")
    wal = queue / schema.WAL_NAME
    before = wal.read_bytes()
    found = repair_wal(wal, queue.parent, untried)
    assert (found.damaged, found.doubtful, found.repaired) == (0, 0, 0)
    assert found.readable == found.frames == len(before) // FRAME_BYTES
    assert repair_wal(queue / "no-such-log", queue.parent, untried) == WalCondition()
    assert wal.read_bytes() == before
    assert quarantined(queue.parent) == []


def test_a_transaction_that_was_never_committed_is_no_damage(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", lambda store: store.commit([plain(1, size_bytes=9000)]))
    wal = queue / schema.WAL_NAME
    assert commit_frames(wal)[0] > 0
    os.truncate(wal, HEADER.size + FRAME_BYTES)
    before = wal.read_bytes()
    assert repair_wal(wal, queue.parent, untried) == WalCondition(frames=1)
    assert wal.read_bytes() == before


def test_frames_of_an_earlier_turn_of_the_log_are_not_revived(tmp_path: Path) -> None:
    def two_turns(store: Store) -> None:
        thirty_commits(store)
        store._database._checkpoint("PASSIVE")
        for number in range(31, 41):
            store.commit([plain(number, size_bytes=900)])

    queue = dead_queue(tmp_path / "queues", two_turns)
    wal = queue / schema.WAL_NAME
    assert len(commit_frames(wal)) > 10, "the first turn's frames are gone"
    assert repair_wal(wal, queue.parent, untried).repaired == 0
    assert Store.open(queue).last_seq == 40


@pytest.mark.parametrize("kept_bytes", [0, 10, 32, 40, HEADER.size + 5 * FRAME_BYTES + 99])
async def test_a_log_cut_short_gives_the_commits_that_are_left(
    template: Path, tmp_path: Path, kept_bytes: int
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = copied(template, root)
    os.truncate(queue / schema.WAL_NAME, kept_bytes)
    expected = rows_without_mending(queue)
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, expected + 1))


async def test_garbage_instead_of_a_log_stops_nothing(template: Path, tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = copied(template, root)
    (queue / schema.WAL_NAME).write_bytes(random.Random(1).randbytes(50_000))
    adopter = await adopted(root, sink)
    assert sink.rows() == []
    assert adopter.adoption.quarantined_files == 0


async def check_flip(template: Path, tmp_path: Path, seed: int) -> None:
    """One random bit of the log: at most the last two commits, and rows that say so, are lost."""
    chance = random.Random(seed)
    root, sink = tmp_path / f"queues-{seed}", MemorySink()
    queue = copied(template, root)
    wal = queue / schema.WAL_NAME
    flip_bit(wal, chance.randrange(wal.stat().st_size), chance.randrange(8))
    adopter = await adopted(root, sink)
    assert adopter.adoption.quarantined_files == 0, f"seed {seed}"
    found = numbers(sink.rows())
    whole = list(range(1, COMMITS + 1))
    assert len(found) >= COMMITS - 1, f"seed {seed}: {COMMITS - len(found)} rows are gone"
    wrong = [n for n, m in zip(found, whole, strict=False) if n != m]
    assert wrong in ([], [None]), f"seed {seed}"


@pytest.mark.parametrize("seeds", [range(0, 10), range(10, 20)])
async def test_any_flipped_bit_in_the_log_costs_little(
    template: Path, tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        await check_flip(template, tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(n, n + 25) for n in range(1000, 1200, 25)])
async def test_many_flipped_bits_in_the_log(template: Path, tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        await check_flip(template, tmp_path, seed)
