"""What lies below LOG_QUEUE_DIR and is not being uploaded is counted, told and not forgotten."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.left_queues import quarantined
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from queue_fill import sealed_elsewhere, ten_rows
from queue_fixtures import MemorySink, adopted, dead_queue
from stores import DirectoryStore
from waiting import wait_until

WITH_KEY = {"Authorization": f"Bearer {PROXY_KEY}"}

pytestmark = pytest.mark.timeout(seconds=60)


def left_queues(root: Path) -> dict[str, Path]:
    """Another sink's queue, one from the future and an unreadable one, below `root`."""
    elsewhere, future, unreadable = (
        dead_queue(root, fill) for fill in (sealed_elsewhere, ten_rows, ten_rows)
    )
    connection = sqlite3.connect(future / schema.DATABASE_NAME)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    (unreadable / schema.DATABASE_NAME).write_bytes(b"garbage" * 1000)
    return {"elsewhere": elsewhere, "future": future, "unreadable": unreadable}


async def test_each_is_noted_with_what_helps_until_it_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queues = left_queues(root)
    adoption = (await adopted(root, MemorySink())).adoption
    await adoption.refresh()
    left = {Path(queue.path).name.partition("-")[0]: queue for queue in adoption.left()}
    assert left.keys() == {path.name for path in queues.values()}
    elsewhere = left[queues["elsewhere"].name]
    assert elsewhere.rows == 2
    assert elsewhere.since == "2023-11-15T12:00:00.000Z"
    assert f"open-llm-proxy replay --again {queues['elsewhere']}" in elsewhere.reason
    assert "newer release" in left[queues["future"].name].reason
    moved = left[queues["unreadable"].name]
    assert moved.is_quarantined
    assert f"open-llm-proxy queue salvage {moved.path}" in moved.reason
    again = (await adopted(root, MemorySink())).adoption
    await again.refresh()
    assert again.left() == adoption.left()
    for queue in again.left():
        shutil.rmtree(queue.path)
    await again.refresh()
    assert again.left() == []


def test_copies_of_repaired_queues_and_single_rows_are_not_left(tmp_path: Path) -> None:
    for name in ("0123456789abcdef-1700000000000000000-copy", "0123456789abcdef-0000000001.row"):
        (tmp_path / "quarantine" / name).mkdir(parents=True)
    assert quarantined(tmp_path) == []
    (tmp_path / "quarantine" / "0123456789abcdef-1700000000000000000").mkdir()
    assert [queue.since for queue in quarantined(tmp_path)] == ["2023-11-14T22:13:20.000Z"]


async def test_the_server_says_what_it_does_not_upload(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(one_provider("http://127.0.0.1:9"), directory_store.env())
    left_queues(proxy.queue_folder)
    await proxy.start()

    async def all_left() -> dict[str, Any] | None:
        health = await proxy.health()
        return health if health["log"]["left_queues"] == 3 else None

    health = await wait_until(all_left, "three queues are left", 30)
    assert health["status"] == "degraded"
    assert len(health["reasons"]) == 3
    assert (health["log"]["left_rows"], health["log"]["quarantined_queues"]) == (2, 1)
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        page = (await client.get(f"{proxy.url}/metrics", headers=WITH_KEY)).text
    for line in ("left_rows 2.0", "left_queues 3.0", "quarantined 1.0"):
        assert f"\nopen_llm_proxy_log_{line}\n" in page
    assert await proxy.stop() == 0
    await proxy.start()
    block = proxy.stderr_text().rpartition("Listening on")[2]
    assert "not uploaded since 20" in block
    assert "open-llm-proxy queue salvage" in block
