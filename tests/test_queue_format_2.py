"""A queue that a process of schema 2 left is finished by every later release, to the same bytes.

tests/data/queue-format-2/ holds that queue, as a kill left it, and the objects that are to come of
it. It has rows in three windows, a batch that was uploaded, one that was put but not acknowledged,
a call that was closed and two that were not. It is made anew, for another schema, by

    python tests/test_queue_format_2.py
"""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage.plan import planned
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_by_hand
from queue_fixtures import (
    NOON_MS,
    WINDOW_SECONDS,
    MemorySink,
    adopted,
    as_killed,
    birth,
    closing,
    dead_queue,
    opening,
    plain,
    seqs,
)
from queue_process import objects_of
from replay_fixtures import replayed

DATA = Path(__file__).parent / "data" / "queue-format-2"
IDENTITY = "memory:"


def fill(store: Store) -> None:
    """Rows 1 to 12: 1-4 uploaded, 5-7 put without an answer, the others not sealed."""
    records = []
    for number in range(1, 4):
        append, record = opening(number, NOON_MS + number, size_bytes=200)
        store.commit([append, plain(10 * number, at_ms=NOON_MS + number)])
        records.append(record)
    store.commit([closing(1, records[0], NOON_MS + 4, size_bytes=300)])
    late = NOON_MS + WINDOW_SECONDS * 1000
    store.commit([plain(*range(41, 45), at_ms=late, size_bytes=400)])
    store.commit([plain(51, at_ms=late + WINDOW_SECONDS * 1000)])
    uploaded, _ = sealed_by_hand(store, 1, 4, IDENTITY)
    store.ack(uploaded)
    sealed_by_hand(store, 5, 7, IDENTITY)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "queues"
    shutil.copytree(DATA / "left", root)
    return root


@pytest.fixture
def sink() -> MemorySink:
    """A store that has what was put."""
    sink = MemorySink(IDENTITY)
    sink.objects.update(objects_of(DATA / "put"))
    assert [name[37:58] for name in sink.objects] == ["0000000005-0000000007"]
    return sink


async def test_a_server_finishes_it_to_the_same_bytes(root: Path, sink: MemorySink) -> None:
    adopter = await adopted(root, sink)
    assert sink.objects == objects_of(DATA / "objects")
    assert sink.conflicts == []
    assert seqs(sink.rows()) == list(range(5, 15))
    kinds = [row["type"] for row in sink.rows()]
    assert kinds == ["request", "plain", "response", *5 * ["plain"], "interrupted", "interrupted"]
    assert adopter.settled.damaged_rows == 0
    assert not folder.queue_folders(root)


async def test_a_replay_finishes_it_to_the_same_bytes(root: Path, sink: MemorySink) -> None:
    (path,) = folder.queue_folders(root)
    assert verify(path).is_sound
    assert planned(path).objects == {IDENTITY: 1, None: 4}
    assert (await replayed(path, sink)).left is None
    assert sink.objects == objects_of(DATA / "objects")
    assert sink.conflicts == []


def make() -> None:
    """Write the data anew."""
    shutil.rmtree(DATA, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        root, sink = Path(name) / "queues", MemorySink(IDENTITY)
        queue = dead_queue(root, fill, birth(object_max_bytes=2_000))
        for file in (schema.DATABASE_NAME, schema.WAL_NAME):
            (DATA / "left" / queue.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(queue / file, DATA / "left" / queue.name / file)
        asyncio.run(_finished(as_killed(root, Path(name) / "copy"), sink))
        for name, body in sink.objects.items():
            for kind in ("objects", "put") if "-0000000005-" in name else ("objects",):
                path = DATA / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)


async def _finished(root: Path, sink: MemorySink) -> None:
    await adopted(root, sink)


if __name__ == "__main__":
    make()
