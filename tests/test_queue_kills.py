"""SIGKILL at every step of a queue's life, and again at the same step of its recovery."""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import queue_process
from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage.wal_frames import FRAME_BYTES, HEADER
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_by_hand, ten_rows
from queue_fixtures import (
    NOON_MS,
    WINDOW_SECONDS,
    alter,
    as_killed,
    birth,
    closing,
    dead_queue,
    flip_bit,
    names,
    opening,
    plain,
    quarantined,
    row_lines,
)
from queue_process import KILLED, check, objects_of, run

WINDOW_MS = WINDOW_SECONDS * 1000
BIRTH = ("folder-made", "schema-created", "renamed-born", "born")
COMMIT = ("commit-written", "committed")
SEAL = ("seal-written", "sealed")
PUT = ("before-put", "object-written", "object-renamed", "put")
ACK = ("ack-rows-deleted", "ack-written", "acked")
SHRINK = ("vacuumed", "shrunk")
END = ("closed-cleanly", "renamed-done")
ADOPTION = ("adopted", "open-calls-written", "open-calls-closed", "removed")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is one: a SIGKILL does not ask what has reached the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="queue-kills-") as name:
        yield Path(name)


def busy(store: Store) -> None:
    """Three windows of rows and open calls; a batch that is uploaded, and one that is sealed."""
    for number in range(60):
        at_ms = NOON_MS + number * WINDOW_MS // 20
        append, record = opening(number, at_ms, size_bytes=900)
        store.commit([append])
        if number % 4:
            store.commit([closing(number, record, at_ms)])
    first, _ = sealed_by_hand(store, 1, 10, "")
    store.ack(first)
    sealed_by_hand(store, 11, 20, "")


def bound_to(store: Store, objects: Path) -> None:
    """Let the batches that are sealed belong to the directory `objects`."""
    for batch in store.sealed():
        store.bind(batch, f"dir:{objects}")


@dataclass(frozen=True)
class Template:
    """A dead queue, and the objects that finishing it without a fault gives."""

    root: Path
    expected: dict[str, bytes]

    def try_at(self, folder: Path, point: str, count: int) -> None:
        """Die at `point`, twice, while the queue is finished; then finish it and compare."""
        root, objects = as_killed(self.root, folder / "queues"), folder / "objects"
        _bind_all(root, objects)
        finish = (queue_process.finish, str(root), str(objects))
        assert run(*finish, dies_at=point, count=count) == KILLED, f"{point} was not reached"
        assert run(*finish, dies_at=point) in (KILLED, 0)
        assert run(*finish) == 0
        assert objects_of(objects) == self.expected
        assert [name for name in names(root) if name != "quarantine"] == []


def _bind_all(root: Path, objects: Path) -> None:
    for queue in root.iterdir():
        header = (queue / schema.DATABASE_NAME).read_bytes()[:16]
        if header.startswith(b"SQLite") and not (queue / "damaged").exists():
            store = Store.open(queue)
            bound_to(store, objects)
            store.close(cleanly=False)


def template(tmp: Path, fill: Callable[[Store], object], harm: Callable[[Path], None]) -> Template:
    root = tmp / "template"
    harm(dead_queue(root, fill, birth(object_max_bytes=15_000)))
    return Template(root, finished(root, tmp))


def finished(root: Path, tmp: Path) -> dict[str, bytes]:
    """The objects of an undisturbed run."""
    copied, objects = as_killed(root, tmp / "undisturbed"), tmp / "undisturbed-objects"
    _bind_all(copied, objects)
    assert run(queue_process.finish, str(copied), str(objects)) == 0
    return objects_of(objects)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return template(tmp_path_factory.mktemp("whole"), busy, lambda queue: None)


@pytest.fixture(scope="module")
def disordered(tmp_path_factory: pytest.TempPathFactory) -> Template:
    def harm(queue: Path) -> None:
        alter(queue, "UPDATE rows SET seq = 4096 WHERE seq = 4", "DELETE FROM rows WHERE seq = 7")
        (queue / "damaged").touch()

    return template(tmp_path_factory.mktemp("disordered"), ten_rows, harm)


@pytest.fixture(scope="module")
def rotten_log(tmp_path_factory: pytest.TempPathFactory) -> Template:
    def harm(queue: Path) -> None:
        flip_bit(queue / schema.WAL_NAME, HEADER.size + 5 * FRAME_BYTES + 3000)
        (queue / "damaged").touch()

    def fill(store: Store) -> None:
        for number in range(1, 21):
            store.commit([plain(number, size_bytes=900)])

    return template(tmp_path_factory.mktemp("rotten"), fill, harm)


@pytest.mark.parametrize(
    ("point", "count"),
    [*((point, 1) for point in (*SEAL, *PUT, *ACK)), ("sealed", 3), ("put", 3), ("acked", 3)],
)
def test_a_kill_at_any_step_of_the_drain_changes_no_object(
    whole: Template, folder: Path, point: str, count: int
) -> None:
    whole.try_at(folder, point, count)


@pytest.mark.parametrize("point", ["born", *ADOPTION, *END])
def test_a_kill_at_any_step_of_an_adoption_changes_no_object(
    whole: Template, folder: Path, point: str
) -> None:
    whole.try_at(folder, point, 1)


@pytest.mark.parametrize("point", ["copied", "repair-written", "repaired"])
def test_a_kill_at_any_step_of_a_repair_changes_no_object(
    disordered: Template, folder: Path, point: str
) -> None:
    disordered.try_at(folder, point, 1)


@pytest.mark.parametrize("point", ["wal-written", "wal-repaired"])
def test_a_kill_at_any_step_of_mending_the_log_changes_no_object(
    rotten_log: Template, folder: Path, point: str
) -> None:
    assert len(row_lines(rotten_log.expected.values())) == 20
    rotten_log.try_at(folder, point, 1)


def test_a_kill_when_a_damaged_batch_was_renamed_doubles_nothing(folder: Path) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        sealed_by_hand(store, 1, 10, "")

    def harm(queue: Path) -> None:
        alter(queue, "UPDATE rows SET crc32 = 0 WHERE seq = 5")

    template(folder, fill, harm).try_at(folder / "trial", "resealed", 1)


def test_a_kill_when_a_file_was_quarantined_keeps_it(folder: Path) -> None:
    root = folder / "queues"
    queue = dead_queue(root, ten_rows)
    (queue / schema.DATABASE_NAME).write_bytes(b"garbage")
    finish = (queue_process.finish, str(root), str(folder / "objects"))
    assert run(*finish, dies_at="quarantined") == KILLED
    assert run(*finish) == 0
    (kept,) = quarantined(root)
    assert (kept / schema.DATABASE_NAME).read_bytes() == b"garbage"


@pytest.mark.parametrize(
    ("point", "count", "size_bytes"),
    [
        *((point, 1, 900) for point in (*BIRTH, *COMMIT, *SEAL, *PUT, *ACK, *END)),
        *((point, 1, 50_000) for point in SHRINK),
        *((point, 2, 900) for point in (*COMMIT, "put")),
    ],
)
def test_a_kill_at_any_step_of_a_queues_own_life_breaks_no_promise(
    folder: Path, point: str, count: int, size_bytes: int
) -> None:
    root, objects, record = (folder / name for name in ("queues", "objects", "record"))
    calls = (queue_process.call, str(root), str(objects), str(record), 50, size_bytes, 2)
    assert run(*calls, dies_at=point, count=count) == KILLED, f"{point} was not reached"
    assert run(*calls, dies_at=point) == KILLED
    assert run(queue_process.finish, str(root), str(objects)) == 0
    check(objects, record)
    assert names(root) == []


def kill_loop(folder: Path, seed: int, kills: int) -> int:
    """Kill one of two working processes again and again; returns how many calls were closed."""
    chance = random.Random(seed)
    root, objects, record = (folder / name for name in ("queues", "objects", "record"))
    work = (queue_process.call_until_killed, str(root), str(objects), str(record))
    workers = [queue_process.start(*work) for _ in range(2)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 0.4))
        victim = workers.pop(0)
        victim.kill()
        victim.join()
        assert victim.exitcode == KILLED
        workers.append(queue_process.start(*work))
    for worker in workers:
        worker.kill()
        worker.join()
    assert run(queue_process.finish, str(root), str(objects)) == 0
    return check(objects, record)["response"]


def test_killing_two_processes_on_one_folder_again_and_again_loses_nothing(
    folder: Path,
) -> None:
    assert kill_loop(folder, seed=1, kills=12) > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_kills(folder: Path, seed: int) -> None:
    assert kill_loop(folder, seed, kills=50) > 0
