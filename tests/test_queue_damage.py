"""Damaged files: what is still good is uploaded, what is not is named, nothing is made up."""

import json
import random
import re
import sqlite3
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.damage.repair import is_sound
from open_llm_proxy.queue.store import Store
from queue_fill import Fill, MixedFill, sealed_by_hand, ten_rows
from queue_fixtures import (
    NOON_MS,
    MemorySink,
    adopted,
    alter,
    dead_queue,
    flip_bit,
    numbers,
    opening,
    plain,
    quarantined,
    row_lines,
    seqs,
)

HUGE_SEQ = 1 << 40


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
    assert adopter.settled.damaged_rows == 1
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
    assert adopter.settled.damaged_rows == 0


async def test_rows_that_stand_in_each_others_place_are_put_back(tmp_path: Path) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    moves = ((4, 99), (5, 4), (99, 5))
    alter(
        dead_queue(root, ten_rows),
        *(f"UPDATE rows SET seq = {b} WHERE seq = {a}" for a, b in moves),
    )
    await adopted(root, sink)
    (body,) = sink.objects.values()
    assert [json.loads(line)["seq"] for line in row_lines([body])] == list(range(1, 11))


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
    assert not is_sound(queue)
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
    assert adopter.settled.damaged_rows == 0
    assert not list(root.glob("[0-9a-f]*"))
    kept = [path.suffix for path in quarantined(root) if path.is_file()]
    assert kept == ([] if statement.startswith("DELETE") else [".batch"])


async def test_a_row_that_is_there_although_it_was_uploaded_is_not_uploaded_again(
    tmp_path: Path,
) -> None:
    root, sink = tmp_path / "queues", MemorySink()
    queue = dead_queue(root, Fill(sink), cleanly=True)
    line = next(line for line in all_lines(queue, sink) if b'"seq":2,' in line)
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    row = (2, NOON_MS, checksum(line, NOON_MS), line)
    connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    adopter = await adopted(root, sink)
    assert adopter.adoption.quarantined_files == 0
    assert seqs(sink.rows()) == list(range(1, 11))
    assert len(row_lines(sink.objects.values())) == 10
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


def test_open_calls_that_have_lost_their_keys_are_closed_once(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        for number in (1, 2):
            append, _ = opening(number)
            store.commit([append])

    queue = dead_queue(tmp_path / "queues", fill)
    # A flipped bit in a table's own description can make of its key a column like any other.
    alter(
        queue,
        "ALTER TABLE open_calls RENAME TO before",
        "CREATE TABLE open_calls (seq INTEGER, timestamp_ms INTEGER, crc32 INTEGER, head BLOB)",
        "INSERT INTO open_calls SELECT NULL, timestamp_ms, crc32, head FROM before",
        "DROP TABLE before",
    )
    store = Store.open(queue)
    closing = [json.loads(line) for line in store.close_open_calls()]
    assert [(row["seq"], row["type"]) for row in closing] == [(3, "damaged"), (4, "damaged")]
    assert store.close_open_calls() == []
    store.close(cleanly=True)


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
    return [*lines, *row_lines(sink.objects.values())]


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
