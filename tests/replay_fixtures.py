"""What the tests of a replay share: queues to finish, and the shortest way to finish one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.queue.orphans.replay import Replay, Replayed
from open_llm_proxy.queue.orphans.replay_target import SinkUnavailable, ToSinks
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, MemorySink, birth, closing, dead_queue, opening, plain
from test_queue_damage import sealed_by_hand, ten_rows

WINDOW_MS = 300_000


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queues"


def nowhere(identity: str) -> Sink:
    raise SinkUnavailable("it is not here")


def delivery(
    sink: MemorySink, open_sink: Callable[[str], Sink] = nowhere, **options: Any
) -> ToSinks:
    return ToSinks(sink, open_sink, retry_seconds=0.001, **options)


async def replayed(
    path: Path, sink: MemorySink, open_sink: Callable[[str], Sink] = nowhere, **options: Any
) -> Replayed:
    again = options.pop("again", False)
    replay = Replay(delivery(sink, open_sink, again=again), **options)
    (result,) = await replay.run([path])
    return result


def three_windows(store: Store) -> None:
    """Thirty rows of 10 kB in three windows and a call that nobody closed; small objects."""
    for window in range(3):
        at_ms = NOON_MS + window * WINDOW_MS
        store.commit([plain(*range(10), at_ms=at_ms, size_bytes=10_000)])
    closed, record = opening(31, NOON_MS + 2 * WINDOW_MS)
    left, _ = opening(32, NOON_MS + 2 * WINDOW_MS)
    store.commit([closed, left])
    store.commit([closing(31, record, NOON_MS + 3 * WINDOW_MS)])


def small_objects_queue(root: Path) -> Path:
    return dead_queue(root, three_windows, birth(object_max_bytes=35_000))


def tried_elsewhere(store: Store) -> None:
    """Rows 1-4 tried on another sink, 5-8 sealed for none, 9-10 not sealed."""
    ten_rows(store)
    sealed_by_hand(store, 1, 4, "elsewhere:")
    second, _ = sealed_by_hand(store, 5, 8, "elsewhere:")
    store.bind(second, None)
