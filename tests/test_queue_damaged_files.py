"""Files that are damaged as a whole: quarantined with all they hold, or copied and then mended."""

import os
import sqlite3
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.errors import QueueBroken
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
    plain,
    quarantined,
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = 'abc' WHERE name = 'damaged_body'",
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


async def test_a_copy_of_the_file_is_kept_before_it_is_mended(tmp_path: Path) -> None:
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


async def test_a_living_queue_that_finds_a_row_missing_ends_instead_of_mending(
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
