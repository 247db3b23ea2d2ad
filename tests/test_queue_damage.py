"""Damaged files: what is still good is uploaded, what is not is named, nothing is made up."""

import hashlib
import json
import os
import random
import re
import sqlite3
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.errors import NeedsMending, QueueBroken
from open_llm_proxy.queue.integrity import checksum
from open_llm_proxy.queue.store import Sealable, Store
from open_llm_proxy.queue.writer import Writer
from queue_fixtures import (
    NOON_MS,
    MemorySink,
    adopted,
    alter,
    birth,
    closing,
    dead_queue,
    flip_bit,
    numbers,
    opening,
    plain,
    quarantined,
    seqs,
)

LONG = 9_000  # bytes, more than two pages
HUGE_SEQ = 1 << 40


def ten_rows(store: Store) -> None:
    store.commit([plain(*range(1, 11))])


def sealed_by_hand(store: Store, first: int, last: int, sink: str) -> tuple[Batch, bytes]:
    """Seal rows as a drain does; returns the batch and its bytes."""
    body = b"".join(row.line for row in store.read(first, last, 1 << 30))
    return store.seal(first, last, hashlib.md5(body).digest(), len(body), sink), body


class Fill:
    """Ten rows in three batches: 1-3 uploaded, 4-6 sealed and put without an answer, 7-9 put
    and refused; row 10 is not sealed."""

    def __init__(self, sink: MemorySink) -> None:
        self.sink = sink

    def __call__(self, store: Store) -> None:
        ten_rows(store)
        first, body = sealed_by_hand(store, 1, 3, self.sink.identity)
        self.sink.put(first, body)
        store.ack(first)
        second, body = sealed_by_hand(store, 4, 6, self.sink.identity)
        self.sink.put(second, body)
        third, _ = sealed_by_hand(store, 7, 9, self.sink.identity)
        store.bind(third, None)


async def test_a_flipped_bit_in_a_line_costs_that_row_only(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, ten_rows)
    changed = """CAST(replace(line, '"number":4', '"number":5') AS BLOB)"""
    alter(queue, f"UPDATE rows SET line = {changed} WHERE seq = 4")
    sink = MemorySink()
    adopter = await adopted(root, sink)
    assert numbers(sink.rows()) == [1, 2, 3, None, 5, 6, 7, 8, 9, 10]
    damaged = sink.rows()[3]
    assert damaged["type"] == "damaged"
    assert damaged["seq"] == 4
    assert damaged["error"] == "row 4 of this queue is damaged: its CRC-32 does not match"
    assert damaged["timestamp"] == "2023-11-15T12:00:00.000Z"
    assert adopter.adoption.settled_damaged_rows == 1
    (kept,) = quarantined(root)
    assert kept.name == f"{queue.name}-0000000004.row"
    assert b'"number":5' in kept.read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rows SET crc32 = crc32 + 1 WHERE seq = 4",
        "UPDATE rows SET timestamp_ms = timestamp_ms << 20 WHERE seq = 4",
        "UPDATE rows SET timestamp_ms = 'noon' WHERE seq = 4",
        "UPDATE rows SET line = CAST(line AS TEXT) WHERE seq = 4",
        "UPDATE rows SET line = CAST(X'FFFE41' AS TEXT) WHERE seq = 4",
        "UPDATE rows SET line = 7.5 WHERE seq = 4",
    ],
)
async def test_a_column_that_is_not_what_was_written_costs_that_row_only(
    tmp_path: Path, statement: str
) -> None:
    root = tmp_path / "queues"
    alter(dead_queue(root, ten_rows), statement)
    sink = MemorySink()
    await adopted(root, sink)
    assert numbers(sink.rows()) == [1, 2, 3, None, 5, 6, 7, 8, 9, 10]
    assert len(sink.objects) == 1, "the damaged row got a window of its own"
    assert len(quarantined(root)) == 1


@pytest.mark.parametrize("seq", [1, 4])
async def test_a_missing_row_is_named(tmp_path: Path, seq: int) -> None:
    root = tmp_path / "queues"
    alter(dead_queue(root, ten_rows), f"DELETE FROM rows WHERE seq = {seq}")
    sink = MemorySink()
    await adopted(root, sink)
    rows = sink.rows()
    assert seqs(rows) == list(range(1, 11))
    assert numbers(rows) == [None if number == seq else number for number in range(1, 11)]
    assert rows[seq - 1]["error"].endswith("it is missing")


@pytest.mark.parametrize("moved_to", [HUGE_SEQ, 10 + HUGE_SEQ, 0, -5])
@pytest.mark.parametrize("seq", [1, 4, 10])
async def test_a_row_under_a_wrong_key_is_put_back_in_its_place(
    tmp_path: Path, seq: int, moved_to: int
) -> None:
    root = tmp_path / "queues"
    alter(dead_queue(root, ten_rows), f"UPDATE rows SET seq = {moved_to} WHERE seq = {seq}")
    sink = MemorySink()
    adopter = await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, 11))
    assert seqs(sink.rows()) == list(range(1, 11))
    assert adopter.adoption.settled_damaged_rows == 0


async def test_rows_that_stand_in_each_others_place_are_put_back(tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    moves = ((4, 99), (5, 4), (99, 5))
    alter(
        dead_queue(root, ten_rows),
        *(f"UPDATE rows SET seq = {b} WHERE seq = {a}" for a, b in moves),
    )
    await adopted(root, sink)
    (body,) = sink.objects.values()
    assert [json.loads(line)["seq"] for line in body.splitlines()] == list(range(1, 11))


async def test_a_row_with_a_wrong_key_and_a_wrong_line_makes_no_billion_rows(
    tmp_path: Path,
) -> None:
    root = tmp_path / "queues"
    alter(
        dead_queue(root, ten_rows),
        f"UPDATE rows SET seq = {HUGE_SEQ}, crc32 = 0 WHERE seq = 10",
    )
    sink = MemorySink()
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, 10))
    assert quarantined(root)[0].name.endswith(f"-{HUGE_SEQ}.row")


async def test_a_key_flipped_on_the_page_hides_none_of_its_neighbours(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, lambda store: store.commit([plain(*range(1, 41))]), cleanly=True)
    path = queue / schema.DATABASE_NAME
    # The record of row 20: its seq as a varint, then the header's size and serial types.
    for found in re.finditer(re.escape(bytes((20, 6, 0, 5))), path.read_bytes()):
        flip_bit(path, found.start(), bit=6)
    connection = sqlite3.connect(path)
    assert [seq for (seq,) in connection.execute("SELECT seq FROM rows")][18:21] == [19, 84, 21]
    connection.close()
    sink = MemorySink()
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, 41))


async def test_rows_that_were_lost_from_a_sealed_batch_are_named_and_it_gets_a_new_name(
    tmp_path: Path,
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    alter(dead_queue(root, Fill(sink)), "DELETE FROM rows WHERE seq = 8")
    await adopted(root, sink)
    assert numbers(sink.rows()) == [1, 2, 3, 4, 5, 6, 7, None, 9, 10]
    (name,) = (name for name in sink.objects if "-0000000007-" in name)
    assert name.startswith("2023-11-15/12-00-00-")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batches SET md5 = X'00' WHERE first = {first}",
        "UPDATE batches SET name = 'elsewhere.jsonl' WHERE first = {first}",
        "UPDATE batches SET sink = 'memory' WHERE first = {first}",
        "UPDATE batches SET uploaded = 1 - uploaded WHERE first = {first}",
        "UPDATE batches SET last = last + 1 WHERE first = {first}",
        "UPDATE batches SET last = last - 1 WHERE first = {first}",
        "UPDATE batches SET first = first + 4096 WHERE first = {first}",
        "UPDATE batches SET name = CAST(X'FF' AS TEXT) WHERE first = {first}",
        "DELETE FROM batches WHERE first = {first}",
    ],
)
@pytest.mark.parametrize("first", [1, 4, 7])
async def test_a_damaged_record_of_a_batch_costs_no_row_and_doubles_none(
    tmp_path: Path, statement: str, first: int
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    alter(dead_queue(root, Fill(sink)), statement.format(first=first))
    adopter = await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, 11))
    assert seqs(sink.rows()) == list(range(1, 11))
    assert adopter.adoption.settled_damaged_rows == 0
    assert not list(root.glob("[0-9a-f]*"))


async def test_the_last_record_may_be_damaged_when_no_row_is_left(tmp_path: Path) -> None:
    sink = MemorySink()

    def fill(store: Store) -> None:
        ten_rows(store)
        batch, body = sealed_by_hand(store, 1, 10, sink.identity)
        sink.put(batch, body)
        append, _ = opening(11)
        store.commit([append])
        store.ack(batch)

    root = tmp_path / "queues"
    alter(dead_queue(root, fill), "UPDATE batches SET uploaded = 0")
    await adopted(root, sink)
    assert numbers(sink.rows()) == [*range(1, 12), 11]


async def test_the_kept_end_of_a_call_that_is_damaged_is_named(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        for number in (1, 2, 3):
            append, _ = opening(number, NOON_MS + number)
            store.commit([append])

    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, fill)
    alter(queue, f"UPDATE open_calls SET seq = {HUGE_SEQ}, timestamp_ms = 1 WHERE seq = 2")
    await adopted(root, sink)
    rows = sink.rows()
    assert [row["type"] for row in rows[3:]] == ["interrupted", "interrupted", "damaged"]
    assert numbers(rows) == [1, 2, 3, 1, 3, None]
    assert f"the end of call {HUGE_SEQ} is damaged" in rows[5]["error"]
    assert [path.suffix for path in quarantined(root)] == [".call"]


async def test_an_open_call_shows_that_its_request_row_was_there(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        append, _ = opening(11)
        store.commit([append])

    root, sink = tmp_path / "queues", MemorySink()
    alter(dead_queue(root, fill), "DELETE FROM rows WHERE seq = 11")
    await adopted(root, sink)
    assert [row["type"] for row in sink.rows()[-2:]] == ["damaged", "interrupted"]
    assert seqs(sink.rows()) == list(range(1, 13))


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


def test_a_file_is_mended_only_when_it_is_asked_for_and_only_once(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", Fill(MemorySink()))
    alter(queue, "DELETE FROM batches WHERE first = 4")
    with pytest.raises(NeedsMending):
        Store.open(queue)
    store = Store.open(queue, mend_first=True)
    assert store.sealable(everything=True) == Sealable(4, 6, only_full=False)
    sealed_by_hand(store, 4, 6, "memory:")
    assert store.sealable(everything=True) == Sealable(10, 10, only_full=False)
    store.close(cleanly=True)
    assert Store.open(queue).state().damaged_rows == 0


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


class MixedFill:
    """Long and short rows, open calls, batches in every state, over several commits."""

    def __init__(self, sink: MemorySink) -> None:
        self.sink = sink
        self.rows = 0

    def __call__(self, store: Store) -> None:
        for number in range(12):
            append, record = opening(number, size_bytes=LONG if number % 5 == 0 else 300)
            store.commit([append, plain(*range(100, 104), size_bytes=500)])
            if number % 3:
                store.commit([closing(number, record, size_bytes=700)])
        for first, last, uploaded in ((1, 12, True), (13, 20, False), (21, 30, False)):
            batch, body = sealed_by_hand(store, first, last, self.sink.identity)
            if uploaded or first == 13:
                self.sink.put(batch, body)
            if uploaded:
                store.ack(batch)
        self.rows = store.last_seq


async def check_flip(tmp_path: Path, seed: int) -> str:
    """Flip one random bit of a queue's file and adopt it; returns what became of it."""
    chance = random.Random(seed)
    root, sink = tmp_path / f"queues-{seed}", MemorySink()
    fill = MixedFill(sink)
    queue = dead_queue(root, fill, cleanly=True)
    whole = {json.loads(line)["seq"]: line for line in all_lines(queue, sink)}
    path = queue / schema.DATABASE_NAME
    flip_bit(path, chance.randrange(path.stat().st_size), chance.randrange(8))
    adopter = await adopted(root, sink)
    rows = {row["seq"]: row for row in sink.rows()}
    for seq, row in rows.items():
        if row["type"] != "damaged" and seq in whole:
            assert row == json.loads(whole[seq]), f"seed {seed}: row {seq} was changed"
    if adopter.adoption.quarantined_files:
        return "quarantined"
    missing = [seq for seq in whole if seq not in rows]
    assert not missing, f"seed {seed}: rows {missing} are gone without a word"
    assert max(rows) == max(whole) + 4, f"seed {seed}: other rows than the four closings came"
    damaged = sum(row["type"] == "damaged" for row in rows.values())
    assert damaged <= 2, f"seed {seed}: {damaged} rows were given up for one bit"
    return "damaged" if damaged else "whole"


def all_lines(queue: Path, sink: MemorySink) -> list[bytes]:
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    lines = [line for (line,) in connection.execute("SELECT line FROM rows")]
    connection.close()
    return [*lines, *(line for body in sink.objects.values() for line in body.splitlines())]


@pytest.mark.parametrize("seeds", [range(0, 10), range(10, 20)])
async def test_any_flipped_bit_is_noticed_and_costs_little(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        await check_flip(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(n, n + 25) for n in range(1000, 1500, 25)])
async def test_many_flipped_bits_one_by_one(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        await check_flip(tmp_path, seed)


def test_the_checksum_covers_text_time_and_place() -> None:
    assert checksum(b"line", 5) != checksum(b"line", 4)
    assert checksum(b"line", 5) != checksum(b"lind", 5)
    assert checksum("line", 5) == -1
