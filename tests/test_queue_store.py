"""The queue's file: numbering, open calls, opening what may be no queue, and its size."""

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.entry import Append, CallMark, Entry
from open_llm_proxy.queue.errors import NotAQueue, OtherSchema, OwnerAlive
from open_llm_proxy.queue.store import Store
from queue_fixtures import (
    alter,
    as_killed,
    birth,
    closing,
    dead_queue,
    new_store,
    opening,
    plain,
)


def stored(queue: Path) -> list[tuple[object, object, object]]:
    """(seq, number, type) of the rows in a dead queue's file."""
    return [(row["seq"], row["number"], row["type"]) for row in lines_of(Store.open(queue))]


def lines_of(store: Store) -> list[dict[str, object]]:
    rows = store.read(1, store.last_seq, 1 << 30) if store.last_seq else []
    return [json.loads(row.line) for row in rows]


def test_every_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        settings = {
            name: store._database.rows(f"PRAGMA {name}")[0][0]
            for name in ("synchronous", "journal_mode", "locking_mode", "auto_vacuum")
        }
    full, incremental = 2, 2
    assert settings == {
        "synchronous": full,
        "journal_mode": "wal",
        "locking_mode": "exclusive",
        "auto_vacuum": incremental,
    }


def test_rows_are_numbered_in_the_order_of_the_group(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        first, second = store.commit([plain(10, 11), plain(12)])
        (third,) = store.commit([plain(13)])
        assert [json.loads(line)["seq"] for line in (*first, *second, *third)] == [1, 2, 3, 4]
        assert [row["number"] for row in lines_of(store)] == [10, 11, 12, 13]
        assert first[0].startswith(b'{"queue_id":"%b","seq":1,' % store.queue_id.encode())


def test_a_failed_commit_leaves_no_gap_and_no_row(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.limit_pages(64 * 1024)
        store.commit([plain(1)])
        append, record = opening(2, size_bytes=200_000)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.commit([plain(9), append])
        assert record.seq is None
        store.commit([plain(3)])
        assert [row["number"] for row in lines_of(store)] == [1, 3]
        assert store.state().open_calls == 0


def test_a_call_is_closed_once_however_often_it_is_tried(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        append, record = opening(1)
        store.commit([append])
        one, two = store.commit([closing(1, record), closing(1, record)])
        (three,) = store.commit([closing(1, record)])
        assert [len(lines) for lines in (one, two, three)] == [1, 0, 0]
        assert [row["type"] for row in lines_of(store)] == ["request", "response"]


def test_a_call_may_open_and_close_in_one_group(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        append, record = opening(1)
        store.commit([append, closing(1, record)])
        assert [row["type"] for row in lines_of(store)] == ["request", "response"]
        assert store.state().open_calls == 0
        assert store.close_open_calls() == []


def test_closing_a_call_that_was_never_stored_stores_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        assert store.commit([closing(1, CallMark())]) == [()]
        assert store.last_seq == 0


def test_a_dead_owners_calls_are_closed_in_order_and_to_the_same_bytes_each_time(
    tmp_path: Path,
) -> None:
    def fill(store: Store) -> None:
        records = []
        for number in range(5):
            append, record = opening(number)
            store.commit([append])
            records.append(record)
        store.commit([closing(3, records[3])])

    queue = dead_queue(tmp_path / "queues", fill)
    again = as_killed(queue.parent, tmp_path / "again") / queue.name
    with_lines = Store.open(queue)
    lines = with_lines.close_open_calls()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2, 4]
    assert [json.loads(line)["seq"] for line in lines] == [7, 8, 9, 10]
    assert with_lines.close_open_calls() == []
    assert Store.open(again).close_open_calls() == lines


def test_a_second_owner_is_refused_at_once(tmp_path: Path) -> None:
    with new_store(tmp_path) as store, pytest.raises(OwnerAlive):
        Store.open(tmp_path / store.queue_id)


@pytest.mark.parametrize(
    "content",
    [b"", b"SQLite format 3\0", b"not a database" * 1000],
    ids=["empty", "cut short", "garbage"],
)
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / schema.DATABASE_NAME).write_bytes(content)
    (tmp_path / schema.WAL_NAME).write_bytes(b"its log")
    with pytest.raises(NotAQueue):
        Store.open(tmp_path)
    assert (tmp_path / schema.DATABASE_NAME).read_bytes() == content
    assert (tmp_path / schema.WAL_NAME).read_bytes() == b"its log"


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotAQueue):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / schema.DATABASE_NAME
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NotAQueue, match="not a queue of open-llm-proxy"):
        Store.open(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [schema.DATABASE_NAME]


@pytest.mark.parametrize(("version", "release"), [(1, "older"), (3, "newer")])
def test_a_file_of_another_schema_is_refused_and_left_alone(
    tmp_path: Path, version: int, release: str
) -> None:
    queue = dead_queue(tmp_path / "queues", lambda store: store.commit([plain(1)]), cleanly=True)
    alter(queue, f"PRAGMA user_version={version}")
    before = (queue / schema.DATABASE_NAME).read_bytes()
    (queue / schema.WAL_NAME).write_bytes(b"frames of another release")
    with pytest.raises(OtherSchema, match=f"schema version {version} .* {release} release"):
        Store.open(queue)
    assert (queue / schema.DATABASE_NAME).read_bytes() == before
    assert (queue / schema.WAL_NAME).read_bytes() == b"frames of another release"


def test_a_file_copied_without_its_log_shows_what_was_checkpointed(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(1)])
        store._database.checkpoint()
        store.commit([plain(2)])

    queue = dead_queue(tmp_path / "queues", fill)
    (queue / schema.WAL_NAME).unlink()
    assert stored(queue) == [(1, 1, "plain")]


def test_deletes_and_seals_go_on_at_the_openings_cap(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.limit_pages(1 << 20)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            for number in range(1000):
                store.commit([plain(number, size_bytes=20_000)])
        stored_rows = store.last_seq
        for seq in range(1, stored_rows + 1):
            batch = store.seal(seq, seq, bytes(16), 20_000, "memory:")
            store.ack(batch)
        assert store.queued_rows == 0
        store.commit([plain(number, size_bytes=20_000) for number in range(20)])


def test_closings_fit_above_the_openings_cap(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.limit_pages(1 << 20)
        append, record = opening(1)
        store.commit([append])
        with pytest.raises(sqlite3.OperationalError, match="full"):
            for number in range(1000):
                store.commit([plain(number, size_bytes=20_000)])
        assert store.commit([closing(1, record, size_bytes=4_000_000)])[0]
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.commit([plain(2, size_bytes=20_000)])


def test_the_log_stays_short_and_file_and_log_shrink_after_a_drain(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        folder = tmp_path / store.queue_id
        for _ in range(100):
            store.commit([plain(*range(10), size_bytes=20_000)])
            store.checkpoint_if_due()
        assert (folder / schema.WAL_NAME).stat().st_size < 2 * schema.WAL_LIMIT_BYTES
        assert (folder / schema.DATABASE_NAME).stat().st_size > 15_000_000
        store.ack(store.seal(1, store.last_seq, bytes(16), 0, "memory:"))
        while store.vacuum(500, 16):
            store.checkpoint_if_due()
        assert (folder / schema.DATABASE_NAME).stat().st_size < 200_000
        assert (folder / schema.WAL_NAME).stat().st_size == 0
        store.commit([plain(1)])
        assert store.last_seq == 1001


def test_a_drained_queue_that_is_opened_again_goes_on_counting(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        append, _ = opening(1)
        store.commit([append, plain(2, 3)])
        store.ack(store.seal(1, 3, bytes(16), 0, "memory:"))

    store = Store.open(dead_queue(tmp_path / "queues", fill))
    (line,) = store.close_open_calls()
    assert json.loads(line)["seq"] == 4
    state = store.state()
    assert (state.accepted_rows, state.queued_rows, state.uploaded_rows) == (1, 1, 0)


def test_an_entry_keeps_its_bytes(tmp_path: Path) -> None:
    nasty = '{"type":"plain","number":1,"text":"\\u0000 \\ud800 \u2028 é"}'.encode()
    with new_store(tmp_path) as store:
        ((line,),) = store.commit([Append((Entry(nasty, 5),))])
        (row,) = store.read(1, 1, 1)
        assert row.line == line
        assert line.endswith(nasty[1:] + b"\n")


def test_rows_are_read_in_slices(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.commit([plain(*range(10), size_bytes=1000)])
        assert [row.seq for row in store.read(1, 10, 1)] == [1]
        assert [row.seq for row in store.read(3, 10, 3000)] == [3, 4, 5]
        assert [row.seq for row in store.read(3, 4, 1 << 20)] == [3, 4]


def test_a_store_is_used_from_another_thread_than_it_was_opened_on(tmp_path: Path) -> None:
    with new_store(tmp_path, birth()) as store:
        thread = threading.Thread(target=store.commit, args=([plain(1)],))
        thread.start()
        thread.join()
        assert store.last_seq == 1
