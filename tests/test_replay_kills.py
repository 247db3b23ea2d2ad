"""SIGKILL at every step of a replay, and again at the same step of the next one."""

import asyncio
from pathlib import Path

import pytest

import queue_process
from open_llm_proxy.queue import folder
from open_llm_proxy.queue.delivery import ToSinks
from open_llm_proxy.queue.replay import Replay
from open_llm_proxy.queue.sinks import DirectorySink, Sink
from queue_fixtures import NOON_MS, as_killed, birth, closing, dead_queue, opening, plain
from queue_process import KILLED, objects_of
from test_queue_damage import sealed_by_hand
from test_queue_kills import ACK, PUT, SEAL

WINDOW_MS = 300_000
REPLAY = (
    "adopted", "open-calls-written", "open-calls-closed", *SEAL, *PUT, *ACK, "closed-cleanly",
    "renamed-done", "removed",
)  # fmt: skip


def replay(root: str, objects: str, other: str) -> None:
    """Finish the queues below `root`; what was tried elsewhere goes to `other`."""
    asyncio.run(_replay(Path(root), Path(objects), Path(other)))


async def _replay(root: Path, objects: Path, other: Path) -> None:
    def open_sink(identity: str) -> Sink:
        return DirectorySink(other)

    run = Replay(ToSinks(DirectorySink(objects), open_sink))
    results = await run.run(folder.queue_folders(root))
    assert [result.left for result in results] == [None] * len(results)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with an open call, three windows, and a batch that was tried elsewhere."""
    path = tmp_path_factory.mktemp("left")

    def fill(store: object) -> None:
        for window in range(3):
            at_ms = NOON_MS + window * WINDOW_MS
            closed, record = opening(window, at_ms, size_bytes=5_000)
            store.commit([closed, plain(*range(10), at_ms=at_ms, size_bytes=900)])  # type: ignore[attr-defined]
            store.commit([closing(window, record, at_ms)])  # type: ignore[attr-defined]
        left_open, _ = opening(9, NOON_MS + 2 * WINDOW_MS)
        store.commit([left_open])  # type: ignore[attr-defined]
        sealed_by_hand(store, 1, 12, "elsewhere:")  # type: ignore[arg-type]

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
    assert sum(len(body.splitlines()) for body in found.values()) == 38
    return found


@pytest.mark.parametrize("point", REPLAY)
def test_a_replay_that_is_killed_twice_leaves_what_one_makes_that_is_not(
    left: Path, whole: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    root = as_killed(left / "queues", tmp_path / "queues")
    places = str(root), str(tmp_path / "objects"), str(tmp_path / "other")
    assert queue_process.run(replay, *places, dies_at=point) == KILLED
    for count in (1, 2):  # a step that is over is not come by again
        assert queue_process.run(replay, *places, dies_at=point, count=count) in (KILLED, 0)
    assert queue_process.run(replay, *places) == 0
    folder.clear_rubbish(root)
    assert list(root.iterdir()) == []
    assert objects_of(tmp_path / "objects") | objects_of(tmp_path / "other") == whole
