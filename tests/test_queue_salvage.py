"""Salvage: what can be read is got out, what cannot is named, and nothing is guessed."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage import wal_frames
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.damage.repair import repair_folder
from open_llm_proxy.queue.damage.salvage import NO_RECORD, NOT_CONFIRMED, Salvage, salvage, spelled
from open_llm_proxy.queue.damage.salvage_files import FileInTheWay
from open_llm_proxy.queue.entry import Append, CallMark, Entry
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, MemorySink, alter, birth, dead_queue, flip_bit, plain
from test_queue_damage import HUGE_SEQ, MixedFill, sealed_by_hand

NOON = "2023-11-15T12:00:00.000Z"
SECOND_MS = 1000


def salvaged(queue: Path) -> Salvage:
    (result,) = salvage(queue, queue.parent.parent / "salvaged", "call")
    return result


def rows_of(queue: Path, result: Salvage) -> list[dict[str, Any]]:
    text = (queue.parent.parent / "salvaged" / result.file).read_text()
    return [json.loads(line) for line in text.splitlines()]


def seqs_of(queue: Path, result: Salvage) -> list[int]:
    return [row["seq"] for row in rows_of(queue, result)]


def ranges(told: list[Any]) -> list[tuple[int, int, str]]:
    return [(rows.first, rows.last, rows.why) for rows in told]


def rows_a_second_apart(count: int) -> Callable[[Store], None]:
    def fill(store: Store) -> None:
        for number in range(1, count + 1):
            store.commit([plain(number, at_ms=NOON_MS + number * SECOND_MS, size_bytes=300)])

    return fill


def with_batches(store: Store) -> None:
    """Rows 1-10 uploaded, 11-15 tried, 16-20 sealed for no sink, 21-25 not sealed."""
    for number in range(1, 26):
        store.commit([plain(number, at_ms=NOON_MS + number * SECOND_MS, size_bytes=300)])
    first, _ = sealed_by_hand(store, 1, 10, "s3://logs/")
    sealed_by_hand(store, 11, 15, "s3://logs/")
    third, _ = sealed_by_hand(store, 16, 20, "s3://logs/")
    store.bind(third, None)
    store.ack(first)


def contents(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_an_intact_queue_is_salvaged_whole_without_what_was_uploaded(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    before = contents(queue)
    result = salvaged(queue)
    assert seqs_of(queue, result) == list(range(11, 26))
    assert (result.rows, result.uploaded_rows, result.missing) == (15, 10, [])
    assert (result.oldest, result.newest) == (
        "2023-11-15T12:00:11.000Z",
        "2023-11-15T12:00:25.000Z",
    )
    tried = "an upload to s3://logs/ was tried, and its outcome is not recorded"
    assert ranges(result.undecided) == [(11, 15, tried)]
    assert contents(queue) == before


def test_lines_are_those_that_the_server_would_have_uploaded(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(3))
    store = Store.open(queue)
    lines = b"".join(row.line for row in store.read(1, 3, 1 << 20))
    store.close(cleanly=False)
    result = salvaged(queue)
    assert (tmp_path / "salvaged" / result.file).read_bytes() == lines
    assert result.bytes == len(lines)


def test_the_same_file_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    salvaged(queue)
    first = contents(tmp_path / "salvaged")
    salvaged(queue)
    assert contents(tmp_path / "salvaged") == first
    assert sorted(first) == [f"{queue.name}-report.json", f"{queue.name}-salvaged.jsonl"]


def test_the_report_says_what_the_result_says(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    alter(queue, "DELETE FROM rows WHERE seq = 22", "VACUUM")
    result = salvaged(queue)
    report = json.loads((tmp_path / "salvaged" / f"{queue.name}-report.json").read_text())
    assert report["queue_id"] == queue.name
    assert report["rows"] == result.rows == 14
    assert report["missing"] == [
        {
            "first": 22,
            "last": 22,
            "after": "2023-11-15T12:00:21.000Z",
            "before": "2023-11-15T12:00:23.000Z",
            "why": NO_RECORD,
        }
    ]
    assert spelled(result.missing[0]) == (
        "row 22 (after 2023-11-15T12:00:21.000Z, before 2023-11-15T12:00:23.000Z): " + NO_RECORD
    )


def test_a_file_with_another_content_is_not_overwritten(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    (tmp_path / "salvaged").mkdir()
    there = tmp_path / "salvaged" / f"{queue.name}-salvaged.jsonl"
    there.write_text("something else\n")
    with pytest.raises(FileInTheWay):
        salvaged(queue)
    assert contents(tmp_path / "salvaged").keys() == {there.name}
    assert there.read_text() == "something else\n"


def test_lost_rows_of_a_sealed_batch_are_told_from_those_without_a_record(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    alter(queue, "DELETE FROM rows WHERE seq IN (15, 16, 20, 21)", "VACUUM")
    assert ranges(salvaged(queue).missing) == [
        (15, 15, NOT_CONFIRMED),
        (16, 16, NOT_CONFIRMED),
        (20, 20, NOT_CONFIRMED),
        (21, 21, NO_RECORD),
    ]


def test_rows_whose_record_was_lost_are_salvaged_and_called_undecided(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    alter(queue, "DELETE FROM batches WHERE first = 11", "VACUUM")
    result = salvaged(queue)
    assert seqs_of(queue, result) == list(range(11, 26))
    assert ranges(result.undecided) == [(11, 15, NO_RECORD)]


def test_without_any_record_missing_rows_cast_doubt_on_the_others(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    alter(queue, "DELETE FROM batches", "VACUUM")
    result = salvaged(queue)
    assert seqs_of(queue, result) == list(range(11, 26))
    assert ranges(result.missing) == [(1, 10, NO_RECORD)]
    assert ranges(result.undecided) == [(11, 25, NO_RECORD)]
    assert not result.is_whole


def test_a_row_under_a_wrong_key_is_salvaged_under_its_own(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(10))
    alter(queue, f"UPDATE rows SET seq = {HUGE_SEQ} WHERE seq = 4", "VACUUM")
    result = salvaged(queue)
    assert seqs_of(queue, result) == list(range(1, 11))
    assert result.is_whole


def call_entry(number: int, kind: str) -> Entry:
    fields = {"timestamp": NOON_MS, "type": kind, "call": f"c{number}", "number": number}
    return Entry(json.dumps(fields, separators=(",", ":")).encode(), NOON_MS)


def open_call(store: Store, number: int) -> CallMark:
    record = CallMark()
    head = call_entry(number, "interrupted").body.removesuffix(b"}")
    store.commit([Append((call_entry(number, "request"),), opens=record, interrupted_head=head)])
    return record


def test_the_kept_ends_of_open_calls_get_a_file_of_their_own(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        closed = open_call(store, 1)
        open_call(store, 2)
        store.commit([Append((call_entry(1, "response"),), closes=closed)])

    queue = dead_queue(tmp_path / "queues", fill)
    result = salvaged(queue)
    assert (result.open_calls, result.undecided_calls) == (1, 0)
    assert seqs_of(queue, result) == [1, 2, 3]
    assert result.open_calls_file == f"{queue.name}-open-calls.jsonl"
    (row,) = (tmp_path / "salvaged" / result.open_calls_file).read_text().splitlines()
    assert json.loads(row) == {
        "queue_id": queue.name,
        "seq": None,
        "timestamp": NOON_MS,
        "type": "interrupted",
        "call": "c2",
        "number": 2,
        "outcome": "interrupted",
    }


def test_a_call_whose_closing_row_may_be_hidden_is_called_undecided(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        open_call(store, 1)
        store.commit([plain(2, 3)])
        open_call(store, 4)

    queue = dead_queue(tmp_path / "queues", fill)
    alter(queue, "DELETE FROM rows WHERE seq = 3", "VACUUM")
    result = salvaged(queue)
    assert (result.open_calls, result.undecided_calls) == (1, 1)
    name = result.undecided_calls_file
    assert name is not None
    assert b'"call":"c1"' in (tmp_path / "salvaged" / name).read_bytes()


def test_a_call_whose_closing_row_may_be_uploaded_is_called_undecided(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        open_call(store, 1)
        open_call(store, 2)  # the log holds an older version of their page
        batch, _ = sealed_by_hand(store, 1, 2, "s3://logs/")
        store.ack(batch)

    result = salvaged(dead_queue(tmp_path / "queues", fill))
    assert (result.open_calls, result.undecided_calls, result.outdated_calls) == (0, 2, 0)


def test_calls_on_pages_that_are_free_are_told_apart(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        records = [open_call(store, number) for number in range(1, 61)]
        for number, record in enumerate(records[:-5], 1):
            store.commit([Append((call_entry(number, "response"),), closes=record)])
        batch, _ = sealed_by_hand(store, 1, 115, "s3://logs/")
        store.ack(batch)

    queue = dead_queue(tmp_path / "queues", fill, cleanly=True)
    # The rows that were uploaded are gone for good; the pages of closed calls are still there.
    path = queue / schema.DATABASE_NAME
    path.write_bytes(path.read_bytes().replace(b'{"queue_id":"', b'{"overwritten'))
    result = salvaged(queue)
    assert (result.open_calls, result.undecided_calls, result.uploaded_rows) == (0, 5, 115)
    assert 0 < result.outdated_calls <= 55
    name = result.outdated_calls_file
    assert name is not None
    lines = (tmp_path / "salvaged" / name).read_text().splitlines()
    assert all(int(json.loads(line)["number"]) <= 55 for line in lines)


def test_an_open_call_tells_of_its_missing_row(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(1, 2)])
        open_call(store, 3)

    queue = dead_queue(tmp_path / "queues", fill)
    alter(queue, "DELETE FROM rows WHERE seq = 3", "VACUUM")
    assert ranges(salvaged(queue).missing) == [(3, 3, NO_RECORD)]


def test_what_a_repair_took_for_uploaded_is_left_out(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    alter(queue, "UPDATE batches SET bytes = 0 WHERE first = 1", "VACUUM")
    assert salvaged(queue).uploaded_rows == 0
    shutil.rmtree(tmp_path / "salvaged")
    repair_folder(queue)
    assert salvaged(queue).uploaded_rows == 10


def test_a_queue_of_which_all_is_uploaded_is_told_to_be_so(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(1, 2)])
        batch, _ = sealed_by_hand(store, 1, 2, "s3://logs/")
        store.ack(batch)

    queue = dead_queue(tmp_path / "queues", fill, cleanly=True)
    alter(queue, "VACUUM")
    result = salvaged(queue)
    assert (result.rows, result.uploaded_rows, result.is_whole) == (0, 2, True)


def test_pages_of_another_queue_are_salvaged_too(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        rows_a_second_apart(10)(store)
        open_call(store, 11)

    more = dead_queue(tmp_path / "more", fill, cleanly=True)
    fewer = dead_queue(tmp_path / "fewer", rows_a_second_apart(3), cleanly=True)
    image = tmp_path / "image"
    files = [queue / schema.DATABASE_NAME for queue in (fewer, more)]
    image.write_bytes(b"".join(file.read_bytes() for file in files))
    results = salvage(image, tmp_path / "out", "call")
    found = [(result.queue_id, result.rows, result.open_calls) for result in results]
    assert found == [(more.name, 11, 1), (fewer.name, 3, 0)]
    assert all(result.is_whole for result in results)


def test_an_upload_counts_although_its_commit_is_damaged(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", with_batches)
    log = queue / schema.WAL_NAME
    flip_bit(log, log.stat().st_size - wal_frames.FRAME_BYTES + 20)  # the last frame's checksum
    assert inspect(queue).uploaded_rows == 0
    assert salvaged(queue).uploaded_rows == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(os.urandom(100) + path.read_bytes()[100:]),
        lambda path: path.write_bytes(os.urandom(4096) + path.read_bytes()[4096:]),
    ],
    ids=["its header", "its first page"],
)
def test_garbage_at_the_front_of_the_file_costs_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(40), cleanly=True)
    damage(queue / schema.DATABASE_NAME)
    result = salvaged(queue)
    assert seqs_of(queue, result) == list(range(1, 41))
    assert result.is_whole


def test_a_file_cut_short_gives_what_is_before_the_cut_and_names_the_rest(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(100), cleanly=True)
    path = queue / schema.DATABASE_NAME
    os.truncate(path, path.stat().st_size // 2)
    result = salvaged(queue)
    found = set(seqs_of(queue, result))
    named = {seq for rows in result.missing for seq in range(rows.first, rows.last + 1)}
    assert 0 < len(found) < 100
    assert found | named == set(range(1, max(found | named) + 1))
    assert not found & named


def test_an_empty_file_still_has_its_log(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(10))
    os.truncate(queue / schema.DATABASE_NAME, 0)
    assert seqs_of(queue, salvaged(queue)) == list(range(1, 11))


def test_a_file_of_any_name_may_be_given_with_its_log_beside_it(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", rows_a_second_apart(10))
    file = tmp_path / "from-a-node.bin"
    (queue / schema.DATABASE_NAME).rename(file)
    (queue / schema.WAL_NAME).rename(tmp_path / "from-a-node.bin-wal")
    (result,) = salvage(file, tmp_path / "out", "call")
    assert result.rows == 10


@pytest.mark.parametrize("content", [b"", b"no queue\n" * 5000, None])
def test_what_is_no_queue_is_said_and_nothing_is_written(
    tmp_path: Path, content: bytes | None
) -> None:
    queue = tmp_path / "queues" / ("0" * 16)
    queue.mkdir(parents=True)
    if content is not None:
        (queue / schema.DATABASE_NAME).write_bytes(content)
    with pytest.raises(NotAQueue, match="contains no readable data of a queue"):
        salvaged(queue)
    assert contents(tmp_path / "salvaged") == {}


def test_a_living_queue_is_not_salvaged(tmp_path: Path) -> None:
    owned = folder.give_birth(tmp_path, birth())
    with pytest.raises(OwnerAlive):
        salvage(owned.path, tmp_path / "out", "call")
    owned.release()


def check_flips(tmp_path: Path, seed: int) -> None:
    """Flip random bits in a queue's file and log and salvage it."""
    chance = random.Random(seed)
    sink = MemorySink()
    queue = dead_queue(tmp_path / f"{seed}" / "queues", MixedFill(sink), cleanly=seed % 2 == 0)
    files = [queue / schema.DATABASE_NAME, queue / schema.WAL_NAME]
    whole = {row["seq"]: row for row in rows_of(queue, salvaged(queue))}
    uploaded = set(range(1, 13))
    assert whole and not uploaded & whole.keys()
    for _ in range(flips := chance.choice((1, 3, 10))):
        file = chance.choice([file for file in files if file.exists() and file.stat().st_size])
        flip_bit(file, chance.randrange(file.stat().st_size), chance.randrange(8))
    (result,) = salvage(queue, tmp_path / f"{seed}" / "damaged", "call")
    text = (tmp_path / f"{seed}" / "damaged" / result.file).read_text()
    rows = {(row := json.loads(line))["seq"]: row for line in text.splitlines()}
    named = {seq for m in result.missing for seq in range(m.first, m.last + 1)}
    doubtful = {seq for m in result.undecided for seq in range(m.first, m.last + 1)}
    for seq, row in rows.items():
        if seq in whole:
            assert row == whole[seq], f"seed {seed}: row {seq} was changed"
        else:
            assert seq in doubtful, f"seed {seed}: row {seq} is uploaded, and no doubt is told"
    lost = whole.keys() - rows.keys()
    newest = max(rows, default=0)
    assert {seq for seq in lost if seq < newest} <= named, f"seed {seed}: losses are not named"
    assert len(lost) <= flips, f"seed {seed}: {flips} flips cost {len(lost)} rows"


@pytest.mark.parametrize("seeds", [range(0, 10), range(10, 20)])
def test_flipped_bits_cost_a_row_each_at_most_and_every_loss_is_named(
    tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        check_flips(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(1000, 1200, 20)])
def test_many_flipped_bits(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        check_flips(tmp_path, seed)
