"""Rows from raw pages: whatever else of the file is broken, a whole row is found."""

import os
import struct
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.checksums import checksum, is_batch_intact, seq_of
from open_llm_proxy.queue.damage import pages
from open_llm_proxy.queue.damage.wal_frames import FRAME_BYTES, HEADER
from open_llm_proxy.queue.store import Store
from queue_fixtures import alter, closing, dead_queue, flip_bit, opening, plain
from test_queue_damage import Fill, MemorySink

PAGE = schema.PAGE_BYTES
LONG = 9_000  # bytes, more than two pages
HUGE = 3_000_000


def rows_in(queue: Path) -> set[int]:
    """The seqs of the rows in a queue's files that prove themselves."""
    found = set()
    for record in pages.records(queue / schema.DATABASE_NAME, queue / schema.WAL_NAME):
        columns = record.columns
        if len(columns) == 4:
            seq = seq_of(queue.name, columns[1], columns[2], columns[3])
            found |= {seq} if seq is not None else set()
    return found


def is_call(record: pages.Record) -> bool:
    _, timestamp_ms, crc32, body = record.columns
    return checksum(body, record.rowid, timestamp_ms) == crc32


def calls_in(queue: Path) -> dict[int, bool]:
    """The open calls that prove themselves, and whether one is on a current page."""
    found: dict[int, bool] = {}
    for record in pages.records(queue / schema.DATABASE_NAME, queue / schema.WAL_NAME):
        if len(record.columns) == 4 and is_call(record):
            assert record.rowid is not None
            found[record.rowid] = found.get(record.rowid, False) or record.is_current
    return found


def mixed_rows(store: Store) -> None:
    for start in range(1, 41, 4):
        size = LONG if start % 8 == 1 else 200
        store.commit([plain(*range(start, start + 4), size_bytes=size)])


def in_the_file(root: Path) -> Path:
    """A queue whose rows are all in the main file."""
    return dead_queue(root, mixed_rows, cleanly=True)


def in_the_log(root: Path) -> Path:
    """A queue whose rows are all in the write-ahead log."""
    return dead_queue(root, mixed_rows)


def leaves(queue: Path) -> list[int]:
    """Where the pages of the file that hold rows begin."""
    data = (queue / schema.DATABASE_NAME).read_bytes()
    return [
        at
        for at in range(PAGE, len(data), PAGE)
        if data[at] == pages.LEAF_OF_A_TABLE and pages.LINE_START in data[at : at + PAGE]
    ]


@pytest.mark.parametrize("made", [in_the_file, in_the_log])
def test_every_row_is_found_short_or_long(tmp_path: Path, made: object) -> None:
    assert callable(made)
    assert rows_in(made(tmp_path / "queues")) == set(range(1, 41))


def test_a_row_of_a_thousand_pages_is_found(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", lambda s: s.commit([plain(1, size_bytes=HUGE)]))
    assert rows_in(queue) == {1}


def test_rows_of_all_lengths_are_found(tmp_path: Path) -> None:
    sizes = range(PAGE - 200, 3 * PAGE, 13)  # how much stays on a row's own page depends on it

    def fill(store: Store) -> None:
        store.commit([plain(seq, size_bytes=size) for seq, size in enumerate(sizes, 1)])

    queue = dead_queue(tmp_path / "queues", fill, cleanly=True)
    assert rows_in(queue) == set(range(1, len(sizes) + 1))


def test_the_file_s_header_is_not_believed(tmp_path: Path) -> None:
    queue = in_the_file(tmp_path / "queues")
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.write(os.urandom(PAGE))
    assert rows_in(queue) == set(range(1, 41))


def test_inner_pages_and_free_lists_are_not_believed(tmp_path: Path) -> None:
    queue = in_the_file(tmp_path / "queues")
    data = bytearray((queue / schema.DATABASE_NAME).read_bytes())
    for at in range(0, len(data), PAGE):
        if data[at] == 0x05:  # an inner page of a table
            data[at : at + PAGE] = bytes(PAGE)
    (queue / schema.DATABASE_NAME).write_bytes(data)
    assert rows_in(queue) == set(range(1, 41))


@pytest.mark.parametrize(
    ("at", "content"),
    [(0, b"\x0c"), (3, b"\0\0"), (3, b"\xff\xff"), (8, bytes(24))],
    ids=["its kind", "no cells", "too many cells", "its cell pointers"],
)
def test_a_leaf_whose_own_header_is_damaged_loses_no_row(
    tmp_path: Path, at: int, content: bytes
) -> None:
    queue = in_the_file(tmp_path / "queues")
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        for leaf in leaves(queue):
            file.seek(leaf + at)
            file.write(content)
    assert rows_in(queue) == set(range(1, 41))


def test_a_row_with_a_damaged_number_or_size_is_found_by_its_line(tmp_path: Path) -> None:
    queue = dead_queue(
        tmp_path / "queues", lambda s: s.commit([plain(*range(1, 6), size_bytes=200)]), cleanly=True
    )
    data = bytearray((queue / schema.DATABASE_NAME).read_bytes())
    (leaf,) = leaves(queue)
    for i in range(5):
        (pointer,) = struct.unpack_from(">H", data, leaf + 8 + 2 * i)
        data[leaf + pointer] ^= 0x40  # the size of the payload
        data[leaf + pointer + 2] ^= 0x40  # the rowid
    (queue / schema.DATABASE_NAME).write_bytes(data)
    assert rows_in(queue) == set(range(1, 6))


def test_a_flipped_bit_in_a_line_costs_that_row_only(tmp_path: Path) -> None:
    queue = in_the_file(tmp_path / "queues")
    path = queue / schema.DATABASE_NAME
    flip_bit(path, path.read_bytes().index(b'"number":7') + 9)
    assert rows_in(queue) == set(range(1, 41)) - {7}


def test_the_log_alone_and_the_file_alone_give_what_they_hold(tmp_path: Path) -> None:
    in_log = in_the_log(tmp_path / "a")
    (in_log / schema.DATABASE_NAME).unlink()
    assert rows_in(in_log) == set(range(1, 41))
    in_file = in_the_log(tmp_path / "b")
    (in_file / schema.WAL_NAME).unlink()
    assert rows_in(in_file) == set()


def test_the_log_s_header_and_frames_are_not_believed(tmp_path: Path) -> None:
    queue = in_the_log(tmp_path / "queues")
    path = queue / schema.WAL_NAME
    data = bytearray(path.read_bytes())
    data[: HEADER.size] = bytes(HEADER.size)
    for at in range(HEADER.size, len(data) - FRAME_BYTES, FRAME_BYTES):
        data[at + 8 : at + 24] = bytes(16)  # salts and checksum
    path.write_bytes(data)
    assert rows_in(queue) == set(range(1, 41))


def test_a_file_cut_anywhere_gives_the_pages_before_the_cut(tmp_path: Path) -> None:
    queue = in_the_file(tmp_path / "queues")
    path = queue / schema.DATABASE_NAME
    found = []
    for size in range(path.stat().st_size, -1, -PAGE // 2):
        os.truncate(path, size)
        found.append(len(rows_in(queue)))
    assert found[0] == 40
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_a_page_is_taken_from_the_log_where_that_is_newer(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store.commit([plain(1, 2, 3, size_bytes=LONG)])
        store._database.checkpoint()
        store._database.execute("DELETE FROM rows WHERE seq = 2")
        # Takes the overflow pages of row 2 again, in the log only.
        store.commit([plain(4, size_bytes=LONG)])

    queue = dead_queue(tmp_path / "queues", fill)
    assert rows_in(queue) >= {1, 3, 4}


def test_batches_and_open_calls_are_found_with_their_numbers(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        Fill(MemorySink())(store)
        first, record = opening(11)
        second, _ = opening(12)
        store.commit([first, second])
        store.commit([closing(11, record)])

    queue = dead_queue(tmp_path / "queues", fill, cleanly=True)
    alter(queue, "VACUUM")  # so that nothing deleted is left on the pages
    found = list(pages.records(queue / schema.DATABASE_NAME, queue / schema.WAL_NAME))
    calls = [r.rowid for r in found if len(r.columns) == 4 and is_call(r)]
    assert calls == [12]
    batches = {}
    for record in found:
        if len(record.columns) == 8:
            last, name, md5, size, sink, uploaded, crc32 = record.columns[1:]
            assert isinstance(name, bytes)
            where = sink.decode() if isinstance(sink, bytes) else sink
            fields = (record.rowid, last, name.decode(), md5, size, where, uploaded, crc32)
            assert is_batch_intact(fields)
            batches[record.rowid] = last, where, uploaded
    assert batches == {1: (3, "memory:", 1), 4: (6, "memory:", 0), 7: (9, None, 0)}


def many_calls(store: Store) -> None:
    """Calls 1 to 60, of which all but the last five are closed again."""
    opened = []
    for number in range(1, 61):
        append, record = opening(number, size_bytes=100)
        store.commit([append])
        opened.append((number, record))
    for number, record in opened[:-5]:
        store.commit([closing(number, record)])


@pytest.mark.parametrize("cleanly", [False, True])
def test_only_open_calls_are_on_pages_in_use(tmp_path: Path, cleanly: bool) -> None:
    queue = dead_queue(tmp_path / "queues", many_calls, cleanly=cleanly)
    found = calls_in(queue)
    assert [seq for seq, is_current in found.items() if is_current] == [56, 57, 58, 59, 60]
    assert len(found) > 5, "closed calls are found on pages that are not in use any more"


def test_an_open_call_is_found_on_a_page_whose_header_is_damaged(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", many_calls, cleanly=True)
    data = bytearray((queue / schema.DATABASE_NAME).read_bytes())
    for at in range(PAGE, len(data), PAGE):
        if data[at] == pages.LEAF_OF_A_TABLE:
            data[at : at + 40] = bytes(40)
    (queue / schema.DATABASE_NAME).write_bytes(data)
    assert {56, 57, 58, 59, 60} <= calls_in(queue).keys()
    assert rows_in(queue) >= set(range(1, 61))


@pytest.mark.parametrize("content", [b"", b"short", os.urandom(3 * PAGE), b"\x0d" * 3 * PAGE])
def test_what_is_no_queue_gives_nothing_and_raises_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "queue.db"
    file.write_bytes(content)
    (tmp_path / "queue.db-wal").write_bytes(content)
    found = [record.columns for record in pages.records(file, tmp_path / "queue.db-wal")]
    assert not [c for c in found if len(c) == 4 and checksum(c[3], c[1]) == c[2]]


def test_files_that_are_not_there_give_nothing(tmp_path: Path) -> None:
    assert list(pages.records(tmp_path / "queue.db", tmp_path / "queue.db-wal")) == []
