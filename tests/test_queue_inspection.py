"""Looking at queues and verifying them: what is told is true, and no byte on disk changes."""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.checksums import checksum, seq_of
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.inspection import inspect, queues_at
from open_llm_proxy.queue.damage.plan import planned
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.damage.wal_frames import FRAME, FRAME_BYTES, HEADER
from open_llm_proxy.queue.entry import finished_line
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, MemorySink, alter, birth, dead_queue, flip_bit, opening, plain
from test_queue_damage import HUGE_SEQ, Fill, sealed_by_hand, ten_rows

WINDOW_MS = 300_000


def snapshot(path: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below `path`: times, sizes and contents of files, times of folders."""
    found = {}
    for entry in (path, *sorted(path.rglob("*"))):
        state = entry.stat()
        content = entry.read_bytes() if entry.is_file() else b""
        digest = hashlib.sha256(content).hexdigest()
        found[str(entry.relative_to(path))] = state.st_mtime_ns, state.st_size, digest
    return found


def busy(store: Store) -> None:
    """Rows 1-3 uploaded, 4-6 tried on memory:, 7-9 sealed, 10-12 not; one open call."""
    Fill(MemorySink())(store)
    append, _ = opening(11, NOON_MS + WINDOW_MS, size_bytes=9_000)
    store.commit([plain(11, at_ms=NOON_MS + 1000), append])


def empty_log(queue: Path) -> None:
    (queue / schema.WAL_NAME).touch()


def torn_log(queue: Path) -> None:
    """A log without one whole transaction, as a power cut can leave it."""
    os.truncate(queue / schema.WAL_NAME, HEADER.size + FRAME_BYTES)


def log_with_a_bad_first_frame(queue: Path) -> None:
    flip_bit(queue / schema.WAL_NAME, HEADER.size + FRAME.size + 100)


def garbage_log(queue: Path) -> None:
    (queue / schema.WAL_NAME).write_bytes(os.urandom(50_000))


def no_log(queue: Path) -> None:
    (queue / schema.WAL_NAME).unlink(missing_ok=True)


def garbage_header(queue: Path) -> None:
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.write(os.urandom(100))


def no_lock(queue: Path) -> None:
    (queue / folder.LOCK_NAME).unlink()


def nothing(queue: Path) -> None:
    return


ANY_END = (nothing, empty_log, garbage_log, no_log, garbage_header, no_lock)
AFTER_A_KILL = (torn_log, log_with_a_bad_first_frame)


@pytest.mark.parametrize(
    ("state", "cleanly"),
    [
        *((state, cleanly) for state in ANY_END for cleanly in (False, True)),
        *((state, False) for state in AFTER_A_KILL),
    ],
)
def test_looking_verifying_and_planning_change_no_byte(
    tmp_path: Path, state: Callable[[Path], None], cleanly: bool
) -> None:
    queue = dead_queue(tmp_path / "queues", busy, cleanly=cleanly)
    state(queue)
    before = snapshot(tmp_path)
    inspect(queue)
    verify(queue)
    planned(queue)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("cleanly", [False, True])
def test_a_look_counts_what_is_in_the_file_and_in_its_log(tmp_path: Path, cleanly: bool) -> None:
    queue = dead_queue(tmp_path / "queues", busy, cleanly=cleanly)
    look = inspect(queue)
    assert look.queue_id == queue.name
    assert not look.owner_lives
    assert look.ended_cleanly is cleanly
    assert (look.rows, look.uploaded_rows, look.open_calls) == (9, 3, 1)
    assert (look.uploaded_batches, look.sealed_batches, look.tried_batches) == (
        1,
        1,
        {"memory:": 1},
    )
    assert (look.oldest_ms, look.newest_ms) == (NOON_MS, NOON_MS + WINDOW_MS)
    files = (schema.DATABASE_NAME, schema.WAL_NAME)
    sizes = [(queue / name).stat().st_size for name in files if (queue / name).exists()]
    assert look.disk_bytes == sum(sizes)
    assert look.queued_bytes and look.queued_bytes > 9_000
    assert look.faults == ()


def test_a_look_at_a_damaged_queue_tells_what_it_can(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", busy, cleanly=True)
    alter(
        queue,
        "UPDATE batches SET last = 7 WHERE first = 4",
        "UPDATE rows SET timestamp_ms = 'noon' WHERE seq IN (4, 12)",
    )
    look = inspect(queue)
    assert look.faults == ("damaged batch record at row 4",)
    assert (look.rows, look.oldest_ms, look.newest_ms) == (9, None, None)


def test_a_queue_of_which_all_is_uploaded_has_no_bytes_to_upload(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        batch, _ = sealed_by_hand(store, 1, 10, "memory:")
        store.ack(batch)

    look = inspect(dead_queue(tmp_path / "queues", fill))
    assert (look.rows, look.queued_bytes, look.uploaded_rows) == (0, 0, 10)
    assert look.disk_bytes > 0


def test_a_living_owner_s_queue_is_not_opened(tmp_path: Path) -> None:
    owned = folder.give_birth(tmp_path, birth())
    store = Store.open(owned.path)
    ten_rows(store)
    look = inspect(owned.path)
    assert look.owner_lives
    assert look.disk_bytes > 4096
    assert (look.rows, look.open_calls, look.faults) == (None, None, ())
    with pytest.raises(OwnerAlive):
        verify(owned.path)
    refusal = planned(owned.path).refusal
    assert refusal is not None and "still running" in refusal
    store.commit([plain(11)])  # its locks are still its own
    with pytest.raises(OwnerAlive):
        schema.open_exclusively(owned.path / schema.DATABASE_NAME)
    store.close(cleanly=True)
    owned.release()


def test_nobody_takes_a_queue_over_while_it_is_looked_at(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    lock = os.open(queue / folder.LOCK_NAME, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # somebody else who looks
    assert inspect(queue).rows == 10
    with pytest.raises(OwnerAlive):
        folder.adopt(queue)
    os.close(lock)
    folder.adopt(queue).release()


def test_a_missing_log_after_a_kill_is_a_doubt(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    (queue / schema.WAL_NAME).unlink()
    (doubt,) = inspect(queue).doubts
    assert "queue.db-wal is missing" in doubt
    assert verify(queue).doubts == [doubt]
    assert planned(queue).doubts == (doubt,)
    assert inspect(queue).faults == planned(queue).faults == ()
    assert verify(queue).is_sound


def test_a_queue_that_somebody_opened_with_sqlite3_is_sound(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    alter(queue, "SELECT count(*) FROM rows")
    assert not (queue / schema.WAL_NAME).exists()
    look, found = inspect(queue), verify(queue)
    assert (look.rows, look.faults, found.checked_rows, found.is_sound) == (10, (), 10, True)
    for (doubt,) in (look.doubts, found.doubts):
        assert "opened queue.db with sqlite3, then nothing is lost" in doubt
        assert doubt.endswith("rows from seq 11 on may be missing")


def test_a_log_whose_end_does_not_verify_is_a_doubt(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        for number in range(1, 21):
            store.commit([plain(number)])

    queue = dead_queue(tmp_path / "queues", fill)
    flip_bit(queue / schema.WAL_NAME, (queue / schema.WAL_NAME).stat().st_size - 3000)
    look, found = inspect(queue), verify(queue)
    assert (look.rows, look.faults, found.checked_rows, found.is_sound) == (19, (), 19, True)
    for (doubt,) in (look.doubts, found.doubts):
        assert "last write was cut short" in doubt
        assert doubt.endswith("rows from seq 20 on may be missing")


def test_whole_frames_behind_a_bad_one_are_damage(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        for number in range(1, 21):
            store.commit([plain(number)])

    queue = dead_queue(tmp_path / "queues", fill)
    frames = wal.condition(queue / schema.WAL_NAME).frames
    flip_bit(queue / schema.WAL_NAME, HEADER.size + frames // 2 * FRAME_BYTES + 500)
    condition = wal.condition(queue / schema.WAL_NAME)
    assert condition.damaged == 1
    assert 0 < condition.readable < frames == condition.frames
    for faults in (inspect(queue).faults, verify(queue).faults):
        assert any("1 damaged frame with whole ones behind" in fault for fault in faults)


def test_an_unfinished_end_of_the_log_is_no_damage(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", lambda s: [s.commit([plain(n)]) for n in range(1, 11)])
    path = queue / schema.WAL_NAME
    os.truncate(path, path.stat().st_size - 10)
    assert wal.condition(path).damaged == 0
    assert inspect(queue).faults == ()
    assert verify(queue).is_sound
    assert inspect(queue).rows == 9


def test_a_log_without_a_file_is_no_log() -> None:
    assert wal.condition(Path("nowhere")) == wal.WalCondition(0, 0, 0)


def test_an_intact_queue_verifies(tmp_path: Path) -> None:
    found = verify(dead_queue(tmp_path / "queues", busy))
    assert found.faults == []
    assert (found.checked_rows, found.checked_open_calls) == (9, 1)


@pytest.mark.parametrize(
    ("statement", "faults"),
    [
        ("UPDATE rows SET crc32 = crc32 + 1 WHERE seq IN (4, 5, 8)",
         ["CRC-32 mismatch: rows 4 to 5, 8"]),
        ("UPDATE rows SET line = 7.5 WHERE seq = 7",
         ["CRC-32 mismatch: row 7"]),
        ("DELETE FROM rows WHERE seq IN (5, 10)", ["missing: rows 5, 10"]),
        (f"UPDATE rows SET seq = {HUGE_SEQ} WHERE seq = 11",
         ["stored under the key of another row: row 11"]),
        ("INSERT INTO rows SELECT 2, timestamp_ms, 0, line FROM rows WHERE seq = 4",
         ["CRC-32 mismatch: row 2", "in the file although uploaded: row 2"]),
        ("UPDATE batches SET last = 7 WHERE first = 4", ["damaged batch record at row 4"]),
        ("DELETE FROM batches WHERE first = 4", ["missing batch record: rows 4 to 6"]),
        ("DELETE FROM batches WHERE first = 1",
         ["missing batch record: rows 1 to 3"]),
        ("UPDATE open_calls SET head = X'00'",
         ["CRC-32 mismatch of the stored heads of open calls: 12"]),
        ("DELETE FROM rows WHERE seq = 12", ["missing: row 12"]),
        ("UPDATE meta SET value = 7 WHERE name = 'window_seconds'",
         ["the queue's own description does not match its CRC-32"]),
        ("UPDATE meta SET value = NULL WHERE name = 'queue_id'",
         ["the queue's own description does not match its CRC-32"]),
    ],
)  # fmt: skip
def test_verifying_names_what_is_wrong(tmp_path: Path, statement: str, faults: list[str]) -> None:
    queue = dead_queue(tmp_path / "queues", busy, cleanly=True)
    alter(queue, statement)
    assert verify(queue).faults == faults


def test_what_may_have_been_uploaded_is_a_doubt_and_no_loss(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", busy, cleanly=True)
    alter(queue, "DELETE FROM batches WHERE first = 1")
    assert verify(queue).doubts == ["uploaded or missing, no batch record tells: rows 1 to 3"]


def test_a_line_names_its_row_only_in_its_own_queue_and_where_it_is_intact() -> None:
    line = finished_line("a" * 16, 7, b'{"timestamp":1}')
    crc32 = checksum(line, NOON_MS)
    assert seq_of("a" * 16, NOON_MS, crc32, line) == 7
    assert seq_of("b" * 16, NOON_MS, crc32, line) is None
    assert seq_of("a" * 16, NOON_MS + 1, crc32, line) is None
    assert seq_of("a" * 16, NOON_MS, crc32, line.decode()) is None
    unnumbered = line.replace(b":7,", b":null,")
    assert seq_of("a" * 16, NOON_MS, checksum(unnumbered, NOON_MS), unnumbered) is None


def test_rows_that_are_not_what_was_sealed_are_named(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        batch, _ = sealed_by_hand(store, 1, 5, "memory:")
        store.reseal(batch, b"another MD5", batch.bytes)

    faults = verify(dead_queue(tmp_path / "queues", fill)).faults
    assert faults == ["MD5 mismatch of the sealed batch: rows 1 to 5"]


def test_pages_that_sqlite_finds_damaged_are_named(tmp_path: Path) -> None:
    queue = dead_queue(
        tmp_path / "queues", lambda s: s.commit([plain(*range(50), size_bytes=900)]), cleanly=True
    )
    path = queue / schema.DATABASE_NAME
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size - 4096)
        file.write(bytes(8))
    assert verify(queue).faults


def test_what_sqlite_s_own_check_finds_is_told(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows, cleanly=True)
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.seek(36)  # the number of free pages
        file.write((7).to_bytes(4, "big"))
    (fault,) = verify(queue).faults
    assert fault.startswith("SQLite's integrity check: Main freelist: ")


@pytest.mark.parametrize("seed", range(12))
def test_verifying_notices_any_flipped_bit_of_a_row(tmp_path: Path, seed: int) -> None:
    queue = dead_queue(
        tmp_path / "queues",
        lambda s: s.commit([plain(*range(1, 31), size_bytes=700)]),
        cleanly=True,
    )
    path = queue / schema.DATABASE_NAME
    begins = path.read_bytes().index(b'"number":20')
    flip_bit(path, begins + seed * 57, seed % 8)
    assert not verify(queue).is_sound


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a SQLite database"),
        (b"text\n" * 5000, "is not a SQLite database"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_queue_is_said_to_be_none(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    queue = tmp_path / ("a" * 16)
    queue.mkdir()
    if content is not None:
        (queue / schema.DATABASE_NAME).write_bytes(content)
    (fault,) = inspect(queue).faults
    assert sentence in fault
    assert verify(queue).faults == [fault]
    assert planned(queue).refusal == fault


def test_another_program_s_database_is_said_to_be_no_queue(tmp_path: Path) -> None:
    queue = tmp_path / ("a" * 16)
    queue.mkdir()
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY)")
    connection.close()
    (fault,) = inspect(queue).faults
    assert "not a queue of open-llm-proxy" in fault


def test_a_schema_from_the_future_is_named(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows, cleanly=True)
    alter(queue, "PRAGMA user_version=99")
    (fault,) = inspect(queue).faults
    assert "schema version 99" in fault
    assert "newer release" in fault


def test_a_plan_counts_objects_as_a_replay_would_make_them(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        for window in range(3):
            store.commit([plain(*range(10), at_ms=NOON_MS + window * WINDOW_MS, size_bytes=30_000)])
        sealed_by_hand(store, 1, 3, "s3://logs/")
        append, _ = opening(31, NOON_MS + 3 * WINDOW_MS)
        store.commit([append])

    queue = dead_queue(tmp_path / "queues", fill, birth(object_max_bytes=100_000))
    plan = planned(queue)
    # 4 to 10 and the next two windows in threes, and a window with the call and its end.
    assert plan.objects == {"s3://logs/": 1, None: 3 + 4 + 4 + 1}
    assert (plan.rows, plan.closed_calls) == (32, 1)
    assert plan.refusal is None
    store = Store.open(queue)
    store.close_open_calls()
    heads = 13 * len(store.meta.object_head(0))
    assert plan.bytes == heads + sum(len(row.line) for row in store.read(1, 32, 1 << 30))
    store.close(cleanly=True)


def test_a_plan_takes_a_damaged_queue_as_it_is(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", Fill(MemorySink()), cleanly=True)
    alter(
        queue,
        "DELETE FROM batches WHERE first = 4",
        "UPDATE rows SET timestamp_ms = 'noon' WHERE seq = 4",
    )
    plan = planned(queue)
    # Row 4 of another window, rows 5 and 6, the batch of rows 7 to 9, and row 10.
    assert (plan.objects, plan.rows, plan.refusal) == ({None: 4}, 7, None)
    assert plan.faults == ("missing batch record: rows 4 to 6",)


def test_a_root_means_its_queues_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    first = dead_queue(root, ten_rows)
    second = dead_queue(root, ten_rows)
    for name in (f"{'a' * 16}.new", f"{'b' * 16}.done", "quarantine", "notes"):
        (root / name).mkdir()
        (root / name / schema.DATABASE_NAME).write_bytes(b"")
    (root / ("c" * 16)).write_text("a file")
    assert queues_at(root) == [first, second]
    assert queues_at(first) == [first]
    assert queues_at(first / schema.DATABASE_NAME) == [first]


def test_a_queue_s_own_folder_may_have_any_name(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    moved = queue.rename(tmp_path / "from node 7 #2?")
    assert queues_at(moved) == [moved]
    assert inspect(moved).rows == 10
    assert inspect(moved).queue_id == queue.name


def test_a_path_that_leads_nowhere_is_no_root(tmp_path: Path) -> None:
    with pytest.raises(NotAQueue, match="is not a directory"):
        queues_at(tmp_path / "nowhere")
