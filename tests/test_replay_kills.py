"""SIGKILL at every step of a replay, and again at the same step of the next one."""

import asyncio
from pathlib import Path

import pytest

import queue_process
from open_llm_proxy.queue.folder import clear_rubbish, queue_folders
from open_llm_proxy.queue.orphans.replay import Replay
from open_llm_proxy.queue.orphans.replay_target import ToSinks
from open_llm_proxy.queue.sinks import DirectorySink, Sink
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, as_killed, birth, closing, dead_queue, opening, plain, row_lines
from queue_process import KILLED, objects_of
from test_queue_damage import sealed_by_hand
from test_queue_kills import ACK, PUT, SEAL, folder

__all__ = ["folder"]

WINDOW_MS = 300_000
POINTS = ("open-calls-closed", "sealed", "object-renamed", "put", "acked", "renamed-done")
ALL_POINTS = (
    "adopted", "open-calls-written", "open-calls-closed", *SEAL, *PUT, *ACK, "closed-cleanly",
    "renamed-done", "removed",
)  # fmt: skip


def replay(root: str, objects: str, other: str) -> None:
    """Finish the queues below `root`; what was tried elsewhere goes to `other`."""
    asyncio.run(_replay(Path(root), Path(objects), Path(other)))


async def _replay(root: Path, objects: Path, other: Path) -> None:
    def open_sink(identity: str) -> Sink:
        sink = DirectorySink(other)
        sink.identity = identity
        return sink

    run = Replay(ToSinks(DirectorySink(objects), open_sink))
    results = await run.run(queue_folders(root))
    assert [result.left for result in results] == [None] * len(results)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with an open call, three windows, and a batch that was tried elsewhere."""
    path = tmp_path_factory.mktemp("left")

    def fill(store: Store) -> None:
        for window in range(3):
            at_ms = NOON_MS + window * WINDOW_MS
            closed, record = opening(window, at_ms, size_bytes=5_000)
            store.commit([closed, plain(*range(10), at_ms=at_ms, size_bytes=900)])
            store.commit([closing(window, record, at_ms)])
        left_open, _ = opening(9, NOON_MS + 2 * WINDOW_MS)
        store.commit([left_open])
        sealed_by_hand(store, 1, 12, "elsewhere:")

    dead_queue(path / "queues", fill, birth(object_max_bytes=9_000))
    return path


@pytest.fixture(scope="module")
def whole(left: Path) -> dict[str, bytes]:
    """What one replay that nothing disturbs makes of it."""
    root = as_killed(left / "queues", left / "undisturbed")
    objects = left / "objects"
    code = queue_process.run(replay, str(root), str(objects), str(left / "other"))
    assert code == 0
    found = objects_of(objects) | objects_of(left / "other")
    assert len(row_lines(found.values())) == 38
    return found


def check_kills(left: Path, whole: dict[str, bytes], folder_of_test: Path, point: str) -> None:
    root = as_killed(left / "queues", folder_of_test / "queues")
    objects, other = folder_of_test / "objects", folder_of_test / "other"
    places = str(root), str(objects), str(other)
    assert queue_process.run(replay, *places, dies_at=point) == KILLED
    # A step that is over is not come by again, and this one need not be either.
    assert queue_process.run(replay, *places, dies_at=point) in (KILLED, 0)
    assert queue_process.run(replay, *places) == 0
    clear_rubbish(root)
    assert list(root.iterdir()) == []
    assert objects_of(objects) | objects_of(other) == whole


@pytest.mark.parametrize("point", POINTS)
def test_a_replay_that_is_killed_twice_leaves_what_one_makes_that_is_not(
    left: Path, whole: dict[str, bytes], folder: Path, point: str
) -> None:
    check_kills(left, whole, folder, point)


@pytest.mark.long
@pytest.mark.parametrize("point", ALL_POINTS)
def test_so_does_one_that_is_killed_at_any_step(
    left: Path, whole: dict[str, bytes], folder: Path, point: str
) -> None:
    check_kills(left, whole, folder, point)
