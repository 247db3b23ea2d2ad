"""The log's format in a queue's file: heads of objects, ends of interrupted calls, and damage to
either, which costs itself and nothing else."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import object_name
from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.entry import finished_line
from open_llm_proxy.queue.orphans.replay import Replay
from open_llm_proxy.queue.orphans.replay_target import ToStdout
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_by_hand, ten_rows
from queue_fixtures import (
    LOG_FORMAT,
    NOON_MS,
    WINDOW_SECONDS,
    MemorySink,
    adopted,
    alter,
    as_killed,
    birth,
    dead_queue,
    entry,
    numbers,
    opening,
    plain,
    row_lines,
    seqs,
)
from replay_fixtures import replayed

WINDOW_MS = WINDOW_SECONDS * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queues"


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


def two_windows(store: Store) -> None:
    """Rows 1 and 2 in one window, call 3 opened in the next."""
    store.commit([plain(1, 2)])
    append, _ = opening(3, NOON_MS + WINDOW_MS)
    store.commit([append])


def heads(sink: MemorySink) -> list[dict[str, object]]:
    return [json.loads(body.splitlines()[0]) for _, body in sorted(sink.objects.items())]


async def test_each_object_begins_with_the_head_of_its_window(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, two_windows)
    await adopted(root, sink)
    own = json.loads(LOG_FORMAT.head)
    assert heads(sink) == [
        {"queue_id": queue.name, "seq": None, "timestamp": f"2023-11-15T{time}.000Z", **own}
        for time in ("12:00:00", "12:05:00")
    ]
    for body in sink.objects.values():
        assert body.startswith(b'{"queue_id":"%b","seq":null,"timestamp":"' % queue.name.encode())


@pytest.mark.parametrize(("spare_bytes", "rows"), [(0, 2), (-1, 1), (1, 2)])
async def test_a_head_counts_in_the_size_of_its_object(
    root: Path, sink: MemorySink, spare_bytes: int, rows: int
) -> None:
    meta = birth().born("0" * 16)
    line = len(finished_line(meta.queue_id, 1, entry(1, kind="plain").body))
    size = len(meta.object_head(0)) + 2 * line + spare_bytes
    dead_queue(root, lambda s: s.commit([plain(1, 2, 3)]), birth(object_max_bytes=size))
    await adopted(root, sink)
    first = min(sink.objects.items())[1]
    assert len(row_lines([first])) == rows


async def test_server_and_replay_make_the_same_bytes_heads_included(
    root: Path, sink: MemorySink, tmp_path: Path
) -> None:
    queue = dead_queue(root, two_windows)
    other = as_killed(root, tmp_path / "other") / queue.name
    third = as_killed(root, tmp_path / "third") / queue.name
    await adopted(root, sink)
    by_replay = MemorySink()
    await replayed(other, by_replay)
    assert by_replay.objects == sink.objects
    printed = tmp_path / "printed.jsonl"
    with printed.open("wb", buffering=0) as out:
        await Replay(ToStdout(out)).run([third])
    assert printed.read_bytes() == b"".join(body for _, body in sorted(sink.objects.items()))


async def test_an_interrupted_call_is_closed_by_its_head_and_the_queues_tail(
    root: Path, sink: MemorySink
) -> None:
    dead_queue(root, two_windows)
    await adopted(root, sink)
    last = sink.rows()[-1]
    assert (last["seq"], last["type"], last["number"]) == (4, "interrupted", 3)
    assert last["outcome"] == "interrupted"


async def test_objects_may_have_no_head(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    made = replace(birth(), log_format=replace(LOG_FORMAT, head=b""))
    queue = dead_queue(root, two_windows, made)
    assert not verify(queue).faults
    adopter = await adopted(root, sink)
    assert adopter.settled.damaged_texts == 0
    assert "damaged" not in caplog.text
    rows = [json.loads(line) for body in sink.objects.values() for line in body.splitlines()]
    assert sorted(row["seq"] for row in rows) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["head", "interrupted_tail", "damaged_body"])
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log_format SET body = CAST(x'7b7d' AS BLOB) WHERE name = '{name}'",
        "UPDATE log_format SET body = 7 WHERE name = '{name}'",
        "UPDATE log_format SET crc32 = crc32 + 1 WHERE name = '{name}'",
        "UPDATE log_format SET name = CAST(x'ff' AS TEXT) WHERE name = '{name}'",
        "DELETE FROM log_format WHERE name = '{name}'",
    ],
)
async def test_a_damaged_text_costs_itself_and_nothing_else(
    root: Path,
    sink: MemorySink,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    queue = dead_queue(root, two_windows, cleanly=True)
    alter(queue, damage.format(name=name), "UPDATE rows SET crc32 = 0 WHERE seq = 2")
    assert [fault for fault in verify(queue).faults if name in fault]
    adopter = await adopted(root, sink)
    assert f"The {name} in queue {queue.name} is damaged and is left out" in caplog.text
    assert (adopter.settled.damaged_rows, adopter.settled.damaged_texts) == (1, 1)
    assert not queue.exists()
    bodies = [body for _, body in sorted(sink.objects.items())]
    rows = [json.loads(line) for body in bodies for line in body.splitlines()]
    assert (rows[0]["seq"] is None) == (name != "head")
    rows = [row for row in rows if row["seq"] is not None]
    assert seqs(rows) == [1, 2, 3, 4]
    assert [row["type"] for row in rows] == ["plain", "damaged", "request", "interrupted"]
    assert "row 2 of this queue is damaged" in rows[1]["error"]
    assert ("number" in rows[1]) == (name != "damaged_body")
    assert rows[3].get("outcome") == (None if name == "interrupted_tail" else "interrupted")
    assert rows[3]["number"] == 3


async def test_without_any_of_the_texts_every_row_is_still_uploaded(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, two_windows, cleanly=True)
    alter(queue, "DROP TABLE log_format")
    assert len(verify(queue).faults) == 3
    await adopted(root, sink)
    rows = [json.loads(line) for body in sink.objects.values() for line in body.splitlines()]
    assert sorted(seqs(rows)) == [1, 2, 3, 4]


async def test_a_head_that_is_damaged_after_the_sealing_gives_the_object_another_name(
    root: Path, sink: MemorySink
) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        batch, _ = sealed_by_hand(store, 1, 10, sink.identity)
        store.bind(batch, None)

    queue = dead_queue(root, fill, cleanly=True)
    alter(queue, "DELETE FROM log_format WHERE name = 'head'")
    await adopted(root, sink)
    ((name, body),) = sink.objects.items()
    assert len(body.splitlines()) == 10
    assert name == object_name(NOON_MS // 1000, queue.name, 1, 10, hashlib.md5(body).digest())


# Names that are not this queue's.


def other_name(name: str, old: str, new: str) -> str:
    assert old in name
    return name.replace(old, new, 1)


@pytest.mark.parametrize(
    "crafted",
    [
        lambda name: "../../../../etc/cron.d/evil",
        lambda name: f"/{name}",
        lambda name: f"../{name}",
        lambda name: f"{name}/x",
        lambda name: other_name(name, "2023-11-15/12-00-00", "2023-11-15/12-00-01"),
        lambda name: other_name(name, "2023-11-15", "2023-02-30"),
        lambda name: other_name(name, "0000000001-", "0000000002-"),
        lambda name: f"{name[:36]}-0000000001-0000000010-000000000000.jsonl",
        lambda name: f"{name[:20]}0123456789abcdef{name[36:]}",
        lambda name: name.upper(),
        lambda name: "",
    ],
)
async def test_a_name_that_is_not_of_this_queue_is_a_damaged_record(
    root: Path, sink: MemorySink, crafted: Callable[[str], str]
) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        sealed_by_hand(store, 1, 10, sink.identity)

    queue = dead_queue(root, fill, cleanly=True)
    (record,) = records(queue)
    *fields, _ = record
    fields[2] = crafted(fields[2])
    write_record(queue, fields)
    assert any("damaged batch record" in fault for fault in verify(queue).faults)
    await adopted(root, sink)
    assert numbers(sink.rows()) == list(range(1, 11))
    assert [name[:20] for name in sink.objects] == ["2023-11-15/12-00-00-"]
    assert not queue.exists()


async def test_the_name_of_an_uploaded_batch_is_never_used(root: Path, sink: MemorySink) -> None:
    def fill(store: Store) -> None:
        ten_rows(store)
        store.ack(sealed_by_hand(store, 1, 9, sink.identity)[0])

    queue = dead_queue(root, fill, cleanly=True)
    (record,) = records(queue)
    write_record(queue, [*record[:2], "../../evil", *record[3:7]])
    assert verify(queue).is_sound
    await adopted(root, sink)
    assert numbers(sink.rows()) == [10]


def records(queue: Path) -> list[list[object]]:
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    found = connection.execute(f"SELECT {schema.BATCH_COLUMNS} FROM batches").fetchall()
    connection.close()
    return [list(record) for record in found]


def write_record(queue: Path, fields: list[object]) -> None:
    name, crc32 = fields[2], checksum(b"", *fields)
    alter(queue, f"UPDATE batches SET name = '{name}', crc32 = {crc32}")
