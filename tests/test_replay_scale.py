"""A million rows: replayed in bounded memory, through kills, to the last row."""

import os
import subprocess
from pathlib import Path

import pytest

from open_llm_proxy.queue import fault_points, folder
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, birth, plain
from replay_process import COMMAND

ROWS = 1_000_000
ROW_BYTES = 2_000
GROUP = 1_000
OBJECT_BYTES = 16 << 20
MS_PER_ROW = 20
# The interpreter with everything imported, four objects in flight and their parts.
PEAK_BYTES = 60_000_000 + 10 * OBJECT_BYTES


def big_queue(root: Path, rows: int) -> Path:
    folder.prepare_root(root)
    owned = folder.give_birth(root, birth(object_max_bytes=OBJECT_BYTES))
    store = Store.open(owned.path)
    for start in range(1, rows + 1, GROUP):
        at_ms = NOON_MS + start * MS_PER_ROW
        numbers = range(start, min(start + GROUP, rows + 1))
        store.commit([plain(*numbers, at_ms=at_ms, size_bytes=ROW_BYTES - 150)])
        store.checkpoint_if_due()
    store.close(cleanly=False)
    owned.release()
    return owned.path


def replayed(queue: Path, objects: Path, dies_at: str = "") -> tuple[int, int]:
    """Exit code and largest resident size of a replay."""
    environment = {"PATH": os.environ["PATH"], fault_points.VARIABLE: dies_at}
    process = subprocess.Popen(
        [*COMMAND, "replay", str(queue), "--to", str(objects)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def check_scale(tmp_path: Path, rows: int) -> None:
    queue = big_queue(tmp_path / "queues", rows)
    objects = tmp_path / "objects"
    peaks = []
    for dies_at in ("acked:3", "object-renamed:2", "sealed:7", "ack-rows-deleted:5", ""):
        code, peak = replayed(queue, objects, dies_at)
        peaks.append(peak)
        assert code == (-9 if dies_at else 0), dies_at
    assert max(peaks) < PEAK_BYTES, f"{max(peaks) >> 20} MiB at the peak"
    expected = 1
    for path in sorted(objects.rglob("*.jsonl"), key=lambda path: path.name.split("-")[4]):
        with open(path, "rb") as file:
            for line in file:
                assert line.startswith(
                    b'{"queue_id":"%b","seq":%d,' % (queue.name.encode(), expected)
                )
                expected += 1
    assert expected == rows + 1
    assert not queue.exists()


@pytest.mark.long
def test_a_million_rows_are_replayed_in_bounded_memory_through_kills(tmp_path: Path) -> None:
    check_scale(tmp_path, ROWS)
