"""What lies below LOG_QUEUE_DIR and is not being uploaded: known, counted, with what helps.

Rows that nobody uploads must not look like rows that do not exist. So each queue that is left alone
is noted with a sentence, for /health, the metrics and the start's message, until it is gone.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue.batches import utc
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME

# A queue that was moved away whole; copies of repaired ones end in "-copy".
_QUARANTINED = re.compile(r"[0-9a-f]{16}-\d+")


@dataclass(frozen=True, slots=True)
class LeftQueue:
    """`reason` is a sentence that says what helps. `rows` is None where they cannot be counted.

    `since` is the time of its oldest row, or that at which it was moved to the quarantine.
    """

    path: str
    reason: str
    rows: int | None
    since: str | None
    is_quarantined: bool = False


class LeftQueues:
    """The queues below `root` that were left alone, and those in its quarantine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._noted: dict[Path, LeftQueue] = {}
        self._quarantined: list[LeftQueue] = []

    def note(
        self, path: Path, reason: str, rows: int | None = None, oldest_ms: int | None = None
    ) -> None:
        since = utc(oldest_ms) if oldest_ms is not None else None
        self._noted[path] = LeftQueue(str(path), reason, rows, since)

    def forget(self, path: Path) -> None:
        """It is taken in hand again."""
        self._noted.pop(path, None)

    def look(self) -> None:
        """Look at the disk, which may block: what is gone is left no more."""
        for path in list(self._noted):
            if not path.exists():
                self.forget(path)
        self._quarantined = quarantined(self._root)

    def all(self) -> list[LeftQueue]:
        """As of the last look."""
        return [*self._noted.values(), *self._quarantined]


def quarantined(root: Path) -> list[LeftQueue]:
    """The queues in the quarantine below `root`, oldest first."""
    try:
        names = os.listdir(root / QUARANTINE_NAME)
    except OSError:
        return []  # there is none, or it cannot be read; what is in there then cannot be counted
    found = [name for name in names if _QUARANTINED.fullmatch(name)]
    return [
        _quarantined(root / QUARANTINE_NAME / name)
        for name in sorted(found, key=lambda name: int(name.partition("-")[2]))
    ]


def _quarantined(path: Path) -> LeftQueue:
    reason = (
        "it cannot be read as a queue; extract what is readable with "
        f"`open-llm-proxy queue salvage {path} --to DIR`, then remove it"
    )
    moved_ms = int(path.name.partition("-")[2]) // 1_000_000
    return LeftQueue(str(path), reason, None, utc(moved_ms), is_quarantined=True)
