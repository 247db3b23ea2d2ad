"""Files that are damaged as a whole: quarantined with all they hold, or copied and repaired."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.damage.repair import is_sound, repair_folder, repair_log
from open_llm_proxy.queue.damage.wal_frames import FRAME_BYTES, HEADER
from open_llm_proxy.queue.errors import NotAQueue, OtherSchema, QueueBroken
from open_llm_proxy.queue.orphans.orphan import End, Ending, Orphan
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.writer import Writer
from queue_fill import LONG, Fill, sealed_by_hand, ten_rows
from queue_fixtures import (
    MemorySink,
    adopted,
    alter,
    birth,
    dead_queue,
    flip_bit,
    plain,
    quarantined,
)
from test_queue_salvage import contents


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = 7 WHERE name = 'created_at_ms'",
        "UPDATE meta SET value = 0 WHERE name = 'window_seconds'",
        "UPDATE meta SET value = NULL WHERE name = 'queue_id'",
        "DELETE FROM meta WHERE name = 'object_max_bytes'",
        "DROP TABLE open_calls",
    ],
)
async def test_a_file_whose_description_is_damaged_is_quarantined_whole(
    tmp_path: Path, statement: str
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, ten_rows)
    alter(queue, statement)
    adopter = await adopted(root, sink)
    assert sink.objects == {}
    assert adopter.adoption.quarantined_files == 1
    (kept,) = quarantined(root)
    assert kept.name.startswith(queue.name)
    connection = sqlite3.connect(kept / schema.DATABASE_NAME)
    assert connection.execute("SELECT count(*) FROM rows").fetchone() == (10,)
    connection.close()


async def test_a_file_cut_short_is_quarantined_whole(tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, lambda s: s.commit([plain(*range(50), size_bytes=LONG)]), cleanly=True)
    path = queue / schema.DATABASE_NAME
    half = path.stat().st_size // 2 // 4096 * 4096
    os.truncate(path, half)
    adopter = await adopted(root, sink)
    (kept,) = quarantined(root)
    assert (kept / schema.DATABASE_NAME).stat().st_size >= half
    assert adopter.adoption.quarantined_files == 1


async def test_a_part_of_the_rows_is_not_taken_for_all_of_them(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(*range(1, 101))])

    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, fill, cleanly=True)
    # The table is made to begin at its first leaf: the rows on the others are out of reach.
    data, size = (queue / schema.DATABASE_NAME).read_bytes(), schema.PAGE_BYTES
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    leaf = next(n for n, page in enumerate(pages, 1) if page[0] == 13 and b'"seq":7,' in page)
    alter(
        queue,
        "PRAGMA writable_schema=ON",
        f"UPDATE sqlite_master SET rootpage = {leaf} WHERE name = 'rows'",
    )
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    assert connection.execute("SELECT count(*) FROM rows").fetchone()[0] < 100
    connection.close()
    with pytest.raises(NotAQueue):
        repair_folder(queue)
    adopter = await adopted(root, sink)
    assert adopter.adoption.quarantined_files == 1
    assert sink.objects == {}


async def test_a_table_that_points_to_another_ones_pages_is_not_believed(tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, Fill(sink))
    other = "(SELECT rootpage FROM sqlite_master WHERE name = 'open_calls')"
    alter(
        queue,
        "PRAGMA writable_schema=ON",
        f"UPDATE sqlite_master SET rootpage = {other} WHERE name = 'rows'",
    )
    stored = dict(sink.objects)
    adopter = await adopted(root, sink)
    assert adopter.adoption.quarantined_files == 1
    assert sink.objects == stored


async def test_a_copy_of_the_file_is_kept_before_it_is_repaired(tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, ten_rows)
    alter(queue, "DELETE FROM rows WHERE seq = 3")
    await adopted(root, sink)
    (kept,) = quarantined(root)
    assert kept.name.startswith(queue.name)
    connection = sqlite3.connect(kept / schema.DATABASE_NAME)
    assert connection.execute("SELECT count(*) FROM rows").fetchone() == (9,)
    connection.close()


async def test_rows_whose_batch_was_lost_are_sealed_again_before_those_behind_them(
    tmp_path: Path,
) -> None:
    queue = dead_queue(tmp_path / "queues", Fill(MemorySink()))
    alter(queue, "DELETE FROM batches WHERE first = 4")
    sealable: list[tuple[int, int]] = []

    async def look(orphan: Orphan) -> str:
        sealable.append(await orphan.writer.run(lambda store: store.sealable(everything=True)))
        await orphan.writer.run(lambda store: sealed_by_hand(store, 4, 6, "memory:"))
        sealable.append(await orphan.writer.run(lambda store: store.sealable(everything=True)))
        return "looked at"

    orphan = Orphan(folder.adopt(queue))
    assert await orphan.finish(look) == Ending(End.LEFT, "looked at")
    assert sealable == [(4, 6), (10, 10)]
    assert orphan.state.damaged_rows == 0


def test_a_repair_tells_how_many_rows_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    alter(queue, "DELETE FROM rows WHERE seq IN (1, 2)", "UPDATE rows SET crc32 = 0 WHERE seq = 9")
    assert not is_sound(queue)
    assert repair_folder(queue) == 3
    assert is_sound(queue)
    assert "0 damaged batch records, 3 rows lost" in caplog.text
    caplog.clear()
    store = Store.open(queue)  # what the log held is in the file now, so it may be gone
    assert store.queued_rows == 10
    store.close(cleanly=True)
    assert caplog.text == ""


def test_a_repair_leaves_rows_to_be_sealed_again(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", Fill(MemorySink()))
    alter(queue, "DELETE FROM batches WHERE first = 4", "DELETE FROM rows WHERE seq = 5")
    assert not is_sound(queue)
    assert repair_folder(queue) == 1
    assert is_sound(queue)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rows WHERE seq = 4",
        "UPDATE rows SET crc32 = 0 WHERE seq = 10",
        "UPDATE rows SET seq = -5 WHERE seq = 5",
        "UPDATE batches SET uploaded = 1 WHERE first = 7",
        "DELETE FROM batches WHERE first = 1",
    ],
)
def test_a_look_before_the_opening_finds_damage_and_changes_nothing(
    tmp_path: Path, statement: str
) -> None:
    queue = dead_queue(tmp_path / "queues", Fill(MemorySink()))
    assert is_sound(queue)
    alter(queue, statement)
    before = contents(queue)
    assert not is_sound(queue)
    assert contents(queue) == before


@pytest.mark.parametrize("repaired", [repair_log, repair_folder])
def test_the_log_is_repaired_first(tmp_path: Path, repaired: Callable[[Path], object]) -> None:
    queue = dead_queue(tmp_path / "queues", lambda s: [s.commit([plain(n)]) for n in range(1, 21)])
    log = queue / schema.WAL_NAME
    flip_bit(log, HEADER.size + wal.condition(log).frames // 2 * FRAME_BYTES + 500)
    assert inspect(queue).rows != 20
    repaired(queue)
    assert (inspect(queue).rows, inspect(queue).faults) == (20, ())
    assert is_sound(queue)


def test_a_log_that_is_missing_is_told_before_the_opening(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    repair_log(queue)
    assert caplog.text == ""
    (queue / schema.WAL_NAME).unlink()
    repair_log(queue)
    assert "queue.db-wal is missing" in caplog.text
    assert "rows from seq 1 on may be missing" in caplog.text


@pytest.mark.parametrize("look", [repair_log, is_sound, repair_folder])
def test_a_newer_release_s_queue_is_not_touched(
    tmp_path: Path, look: Callable[[Path], object]
) -> None:
    queue = dead_queue(tmp_path / "queues", lambda s: [s.commit([plain(n)]) for n in range(1, 21)])
    log = queue / schema.WAL_NAME
    flip_bit(log, HEADER.size + wal.condition(log).frames // 2 * FRAME_BYTES + 500)
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.seek(60)  # user_version
        file.write((99).to_bytes(4, "big"))
    before = contents(queue)
    with pytest.raises(OtherSchema):
        look(queue)
    assert contents(queue) == before


@pytest.mark.parametrize("look", [repair_log, is_sound, repair_folder])
def test_what_is_no_queue_is_not_repaired(tmp_path: Path, look: Callable[[Path], object]) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows, cleanly=True)
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.seek(100)
        file.write(bytes(2000))
    before = (queue / schema.DATABASE_NAME).read_bytes()
    with pytest.raises(NotAQueue):
        look(queue)
    assert (queue / schema.DATABASE_NAME).read_bytes() == before


async def test_a_living_queue_that_finds_a_row_missing_ends_instead_of_repairing(
    tmp_path: Path,
) -> None:
    owned = folder.give_birth(tmp_path, birth())
    store = Store.open(owned.path)
    broken: list[QueueBroken] = []
    writer = Writer(store, on_broken=broken.append)
    await writer.append(plain(*range(1, 11)))
    await writer.run(lambda store: store._database.execute("DELETE FROM rows WHERE seq = 5"))
    with pytest.raises(QueueBroken) as raised:
        await writer.run(lambda store: store.read(1, 10, 1 << 20))
    assert raised.value.is_damage
    assert broken == [raised.value]
    await writer.close()
