"""What lies below LOG_QUEUE_DIR and is not being uploaded is counted, told and not forgotten."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.orphans.left_queues import left_at_start, quarantined
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from queue_fill import sealed_elsewhere, ten_rows
from queue_fixtures import MemorySink, adopted, alter, dead_queue
from stores import DirectoryStore
from waiting import wait_until

WITH_KEY = {"Authorization": f"Bearer {PROXY_KEY}"}

pytestmark = pytest.mark.timeout(seconds=60)


def left_queues(root: Path) -> dict[str, Path]:
    """Another sink's queue, one from the future and two unreadable ones, below `root`.

    Of one of the unreadable ones the rows can be counted.
    """
    elsewhere, future, old, damaged, garbage = (
        dead_queue(root, fill)
        for fill in (sealed_elsewhere, ten_rows, ten_rows, ten_rows, ten_rows)
    )
    alter(future, "PRAGMA user_version=99", "ALTER TABLE rows RENAME TO lines")
    alter(old, "PRAGMA user_version=1")
    alter(damaged, "DELETE FROM meta")
    (garbage / schema.DATABASE_NAME).write_bytes(b"garbage" * 1000)
    return {
        "elsewhere": elsewhere, "future": future, "old": old, "damaged": damaged, "garbage": garbage
    }  # fmt: skip


async def test_each_is_noted_with_what_helps_until_it_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queues = left_queues(root)
    adoption = (await adopted(root, MemorySink())).adoption
    await adoption.refresh()
    left = {Path(queue.path).name.partition("-")[0]: queue for queue in adoption.left()}
    assert left.keys() == {path.name for path in queues.values()}
    rows = {name: left[path.name].rows for name, path in queues.items()}
    assert rows == {"elsewhere": 2, "future": None, "old": 10, "damaged": 10, "garbage": None}
    for name in ("elsewhere", "old", "damaged"):
        assert left[queues[name].name].since == "2023-11-15T12:00:00.000Z"
    elsewhere = left[queues["elsewhere"].name]
    assert f"open-llm-proxy replay --again {queues['elsewhere']}" in elsewhere.reason
    assert "newer release" in left[queues["future"].name].reason
    assert "older release" in left[queues["old"].name].reason
    for name in ("damaged", "garbage"):
        moved = left[queues[name].name]
        assert moved.is_quarantined
        assert f"open-llm-proxy queue salvage {moved.path}" in moved.reason
    again = (await adopted(root, MemorySink())).adoption
    await again.refresh()
    assert {queue.path: queue for queue in again.left()} == {
        queue.path: queue for queue in adoption.left()
    }
    for queue in again.left():
        shutil.rmtree(queue.path)
    await again.refresh()
    assert again.left() == []


async def test_a_start_knows_them_before_it_takes_anything_in_hand(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queues = left_queues(root)
    running = dead_queue(root, sealed_elsewhere)
    owned = folder.adopt(running)
    dead_queue(root, ten_rows)  # will be uploaded
    left = {Path(queue.path): queue for queue in left_at_start(root, "0" * 16, "memory:")}
    assert left.keys() == set(queues.values())
    rows = {name: left[path].rows for name, path in queues.items()}
    assert rows == {"elsewhere": 2, "future": None, "old": 10, "damaged": 10, "garbage": None}
    assert f"replay --again {queues['elsewhere']}" in left[queues["elsewhere"]].reason
    owned.release()
    assert str(running) in {q.path for q in left_at_start(root, "0" * 16, "memory:")}
    assert str(running) not in {q.path for q in left_at_start(root, running.name, "memory:")}


def test_copies_of_repaired_queues_and_single_rows_are_not_left(tmp_path: Path) -> None:
    for name in ("0123456789abcdef-1700000000000000000-copy", "0123456789abcdef-0000000001.row"):
        (tmp_path / "quarantine" / name).mkdir(parents=True)
    assert quarantined(tmp_path) == []
    (tmp_path / "quarantine" / "0123456789abcdef-1700000000000000000").mkdir()
    (left,) = left_at_start(tmp_path, "0" * 16, "memory:")
    assert left.since == "2023-11-14T22:13:20.000Z"
    assert "an unknown number of rows" in str(left)


async def test_the_server_says_what_it_does_not_upload(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(one_provider("http://127.0.0.1:9"), directory_store.env())
    left_queues(proxy.queue_folder)
    await proxy.start()

    async def all_left() -> dict[str, Any] | None:
        health = await proxy.health()
        return health if health["log"]["left_rows"] == 22 else None

    health = await wait_until(all_left, "the rows that are left are counted", 30)
    assert health["status"] == "degraded"
    assert len(health["reasons"]) == health["log"]["left_queues"] == 5
    assert sum("an unknown number of rows" in reason for reason in health["reasons"]) == 2
    assert (health["log"]["left_uncounted_queues"], health["log"]["quarantined_queues"]) == (2, 2)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        page = (await client.get(f"{proxy.url}/metrics", headers=WITH_KEY)).text
    for line in ("left_rows 22.0", "left_queues 5.0", "left_uncounted_queues 2.0"):
        assert f"\nopen_llm_proxy_log_{line}\n" in page
    assert "\nopen_llm_proxy_log_quarantined 2.0\n" in page
    assert "\nopen_llm_proxy_log_left_oldest_age_seconds 0.0\n" not in page
    first_block = proxy.stderr_text().partition("Listening on")[2].partition("Z ")[0]
    assert await proxy.stop() == 0
    await proxy.start()
    block = proxy.stderr_text().rpartition("Listening on")[2]
    for text in ("replay --again", "newer release", "older release"):
        assert text in first_block and text in block
    assert block.count("open-llm-proxy queue salvage") == 2
