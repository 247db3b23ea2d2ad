"""Replay of folders that are damaged or read-only: what is lost is told, the rest arrives."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.orphans.replay import Replayed
from queue_fixtures import (
    MemorySink,
    alter,
    birth,
    dead_queue,
    flip_bit,
    numbers,
    plain,
    quarantined,
    seqs,
)
from replay_fixtures import replayed, root, sink, small_objects_queue, three_windows
from test_queue_damage import ten_rows
from test_queue_inspection import snapshot

__all__ = ["root", "sink"]


async def test_a_damaged_row_costs_that_row_only_and_a_repaired_queue_is_finished(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, ten_rows)
    alter(queue, "UPDATE rows SET crc32 = 0 WHERE seq = 4", "DELETE FROM rows WHERE seq = 6")
    result = await replayed(queue, sink)
    assert result.left is None
    assert numbers(sink.rows()) == [1, 2, 3, None, 5, None, 7, 8, 9, 10]
    assert any(path.name.endswith("-copy") for path in quarantined(root))


async def test_a_copy_from_before_the_mending_is_not_uploaded_by_mistake(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, ten_rows)
    alter(queue, "DELETE FROM rows WHERE seq = 6")
    await replayed(queue, sink)
    (copy,) = [path for path in quarantined(root) if path.name.endswith("-copy")]
    result = await replayed(copy, sink)
    assert result.left is not None and "--again" in result.left
    assert len(sink.objects) == 1
    assert (await replayed(copy, sink, allow_copies=True)).left is None


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
async def test_what_cannot_be_read_stays_where_it_is_and_is_pointed_at(
    root: Path, sink: MemorySink, content: bytes
) -> None:
    queue = dead_queue(root, ten_rows)
    (queue / schema.DATABASE_NAME).write_bytes(content)
    before = snapshot(queue)
    result = await replayed(queue, sink)
    assert result.left is not None
    assert "is not a SQLite database" in result.left
    assert f"open-llm-proxy queue salvage {queue} --to DIR" in result.left
    assert snapshot(queue) == before


async def test_a_schema_from_the_future_stays_where_it_is(root: Path, sink: MemorySink) -> None:
    queue = dead_queue(root, ten_rows, cleanly=True)
    alter(queue, "PRAGMA user_version=99")
    before = snapshot(queue)
    result = await replayed(queue, sink)
    assert result.left is not None and "newer release" in result.left
    assert "salvage" not in result.left
    assert snapshot(queue) == before


async def test_a_missing_log_is_named(
    root: Path, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    queue = dead_queue(root, ten_rows)
    (queue / schema.WAL_NAME).unlink()
    await replayed(queue, sink)
    assert "did not end properly and queue.db-wal is missing" in caplog.text


async def test_a_damaged_log_is_repaired_before_anything_is_uploaded(
    root: Path, sink: MemorySink
) -> None:
    queue = dead_queue(root, lambda s: [s.commit([plain(n)]) for n in range(1, 21)])
    path = queue / schema.WAL_NAME
    flip_bit(path, path.stat().st_size // 2)
    result = await replayed(queue, sink)
    assert result.left is None
    assert len(sink.rows()) == 20


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a folder a second time, mounted read-only; needs root."""
    mounted: list[Path] = []

    def mount(path: Path) -> Path:
        mountpoint = tmp_path / f"read-only-{len(mounted)}"
        mountpoint.mkdir()
        command = f"mount --bind '{path}' '{mountpoint}' && mount -o remount,ro,bind '{mountpoint}'"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no bind mounts here: {done.stderr.strip()}")
        mounted.append(mountpoint)
        return mountpoint

    yield mount
    for mountpoint in mounted:
        subprocess.run(["umount", str(mountpoint)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("cleanly", [False, True])
async def test_read_only_media_are_replayed_from_a_copy_and_stay_as_they_are(
    root: Path,
    sink: MemorySink,
    read_only: Callable[[Path], Path],
    caplog: pytest.LogCaptureFixture,
    cleanly: bool,
) -> None:
    queue = dead_queue(root, three_windows, birth(object_max_bytes=35_000), cleanly)
    before = snapshot(root)
    seen = read_only(root) / queue.name
    for _ in range(2):
        result = await replayed(seen, sink)
        assert result == Replayed(seen, rows=34, objects=len(sink.objects), from_copy=True)
    assert "the queue stays as it is" in caplog.text
    assert snapshot(root) == before
    assert seqs(sink.rows()) == list(range(1, 35))
    on_copy = dict(sink.objects)
    await replayed(queue, sink)
    assert sink.objects == on_copy


@pytest.mark.root
async def test_a_living_owner_is_refused_also_where_its_folder_is_read_only(
    root: Path, sink: MemorySink, read_only: Callable[[Path], Path]
) -> None:
    folder.prepare_root(root)
    owned = folder.give_birth(root, birth())
    result = await replayed(read_only(root) / owned.queue_id, sink)
    assert result.left is not None and "still running" in result.left
    owned.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_of_another_user_is_replayed_from_a_copy(
    root: Path, sink: MemorySink
) -> None:
    queue = small_objects_queue(root)
    (queue / folder.LOCK_NAME).chmod(0o400)
    queue.chmod(0o500)
    result = await replayed(queue, sink)
    queue.chmod(0o700)
    assert result.from_copy
    assert len(sink.rows()) == 34
