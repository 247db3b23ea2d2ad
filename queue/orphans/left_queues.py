"""What lies below LOG_QUEUE_DIR and is not being uploaded: found, counted, with what helps.

Each queue that is left alone is noted until it is gone. Its rows are counted where they can be, by
a look that changes nothing; a queue of another release is no exception, for its rows are known to
lie in a table of their own.
"""

import os
import re
import time
from pathlib import Path

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.batches import utc
from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.left_queue import LeftQueue
from open_llm_proxy.queue.messages import counted

# A queue that was moved away whole; copies of repaired ones end in "-copy".
_QUARANTINED = re.compile(r"[0-9a-f]{16}-\d+")

# How long a queue's rows may take to be counted, in the background and in all at a start.
COUNT_SECONDS = 5.0
START_SECONDS = 0.3


class LeftQueues:
    """The queues below `root` that were left alone, and those in its quarantine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._noted: dict[Path, LeftQueue] = {}
        self._uncounted: set[Path] = set()
        self._quarantined: dict[Path, LeftQueue] = {}

    def note(
        self, path: Path, reason: str, rows: int | None = None, oldest_ms: int | None = None
    ) -> None:
        """Where `rows` are not known, the next look counts them."""
        self._noted[path] = _left(path, reason, rows, oldest_ms)
        if rows is None:
            self._uncounted.add(path)

    def forget(self, path: Path) -> None:
        """It is taken in hand again."""
        self._noted.pop(path, None)

    def look(self) -> None:
        """Look at the disk, which may block: what is gone is left no more."""
        for path in list(self._noted):
            if not path.exists():
                self.forget(path)
        while self._uncounted:
            self._count(self._uncounted.pop())
        known = self._quarantined
        self._quarantined = {
            path: known.get(path) or _quarantined(path, COUNT_SECONDS)
            for path in quarantined(self._root)
        }

    def _count(self, path: Path) -> None:
        rows, oldest_ms = inspection.rows_in(path, COUNT_SECONDS)
        left = self._noted.get(path)
        if left is not None and rows is not None:
            self._noted[path] = _left(path, left.reason, rows, oldest_ms)

    def all(self) -> list[LeftQueue]:
        """As of the last look."""
        return [*self._noted.values(), *self._quarantined.values()]


def left_at_start(root: Path, own_id: str, sink: str) -> list[LeftQueue]:
    """What a process that starts, with the queue `own_id` and `sink`, can tell to be left below
    `root` without taking anything in hand and without being kept from its start."""
    deadline = time.monotonic() + START_SECONDS
    found = []
    for path in folder.queue_folders(root):
        if time.monotonic() < deadline and path.name != own_id:
            found.append(_left_for_others(path, sink, deadline))
    for path in quarantined(root):
        found.append(_quarantined(path, deadline - time.monotonic()))
    return [left for left in found if left is not None]


def may_be_elsewhere(path: Path, batches: int, sink: str | None) -> str:
    """The reason why a queue is left whose batches were first tried on `sink`."""
    return (
        f"{counted(batches, 'batch')} of it may already be on {sink}: set that destination again, "
        f"or upload to the present one with `open-llm-proxy replay --again {path}`"
    )


def quarantined(root: Path) -> list[Path]:
    """The queues in the quarantine below `root`, oldest first."""
    try:
        names = os.listdir(root / QUARANTINE_NAME)
    except OSError:
        return []  # there is none, or it cannot be read; what is in there then cannot be counted
    found = [name for name in names if _QUARANTINED.fullmatch(name)]
    return [root / QUARANTINE_NAME / name for name in sorted(found, key=_moved_ns)]


def _left_for_others(path: Path, sink: str, deadline: float) -> LeftQueue | None:
    """The queue in `path`, if a look shows that this process will not upload it."""
    look = inspection.inspect(path)
    if look.owner_lives:
        return None
    if look.rows is None:
        reason = look.faults[-1]
        if not look.is_other_schema:
            reason += f"; it is moved to {QUARANTINE_NAME}/, and /health says then what helps"
        return _left(path, reason, *inspection.rows_in(path, deadline - time.monotonic()))
    for other, rows in (look.tried_rows or {}).items():
        if other != sink:
            batches = (look.tried_batches or {})[other]
            return _left(path, may_be_elsewhere(path, batches, other), rows, look.oldest_ms)
    return None


def _quarantined(path: Path, seconds: float) -> LeftQueue:
    reason = (
        "it cannot be read as a queue; extract what is readable with "
        f"`open-llm-proxy queue salvage {path} --to DIR`, then remove it"
    )
    rows, oldest_ms = inspection.rows_in(path, seconds)
    since = oldest_ms if oldest_ms is not None else _moved_ns(path.name) // 1_000_000
    return _left(path, reason, rows, since, is_quarantined=True)


def _moved_ns(name: str) -> int:
    return int(name.partition("-")[2])


def _left(
    path: Path,
    reason: str,
    rows: int | None,
    since_ms: int | None,
    is_quarantined: bool = False,
) -> LeftQueue:
    since = utc(since_ms) if since_ms is not None else None
    return LeftQueue(str(path), reason, rows, since, is_quarantined)
