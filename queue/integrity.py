"""Damage: how a row that cannot be trusted is replaced, without hiding that it was lost.

SQLite does not notice a flipped bit inside a row: `PRAGMA integrity_check` calls such a file
sound. Every line therefore carries a CRC-32, and seq has no gaps. A row whose line does not
match, or that is missing although it was once committed, is replaced by a `damaged` row that
takes its seq and says what is known; the raw bytes go to `quarantine/`. What cannot be seen
from the file alone is a lost tail of the write-ahead log: the file looks as it did earlier.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from open_llm_proxy.queue.entry import Entry

QUARANTINE_NAME = "quarantine"


def damaged_entry(template: bytes, seq: int, timestamp_ms: int, reason: str) -> Entry:
    """The entry that stands for a lost row: the owner's `template` with time and reason set.

    `template` is a JSON object of the log's schema that was stored when the queue was made;
    its `timestamp` and `error` are filled in here. The time is the row's own where it is
    known and a neighbour's otherwise, so that the row lands in a window of its queue.
    """
    fields = json.loads(template)
    fields["timestamp"] = _iso(timestamp_ms)
    fields["error"] = f"row {seq} of this queue is damaged: {reason}"
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    return Entry(body, timestamp_ms)


def quarantine(root: Path, name: str, raw: bytes) -> Path:
    """Keep `raw` for a person to look at, durably, as ``quarantine/<name>`` under `root`."""
    folder = root / QUARANTINE_NAME
    folder.mkdir(exist_ok=True)
    path = folder / name
    with open(path, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(folder)
    return path


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename or a new file is lost without it)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _iso(timestamp_ms: int) -> str:
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
