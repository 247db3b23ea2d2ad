"""Damage: how what cannot be trusted is found, and what stands for a row that was lost.

SQLite does not notice a flipped bit inside a row: `PRAGMA integrity_check` calls such a file
sound. Every row of every table therefore carries a CRC-32, and seq has no gaps. A log row that
does not match, or that is missing although it was once committed, is replaced by a `damaged`
row that takes its seq and says what is known; the raw bytes go to `quarantine/`. What cannot
be seen from the file alone is a lost tail of the write-ahead log: the file looks as it did
earlier.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from open_llm_proxy.queue.batches import utc_moment
from open_llm_proxy.queue.entry import finished_line

QUARANTINE_NAME = "quarantine"


def checksum(body: object, *fields: object) -> int:
    """CRC-32 over the other columns of a table's row: its large one first, then the rest.

    Takes whatever a damaged file may hold, of any type.
    """
    if not isinstance(body, bytes):
        return -1
    return zlib.crc32(body, zlib.crc32(repr(fields).encode("utf-8", "surrogateescape")))


def is_batch_intact(record: Sequence[object]) -> bool:
    """Whether a row of table batches, in the order of its columns, is what was written there."""
    return checksum(b"", *record[:-1]) == record[-1]


def seq_of(queue_id: str, timestamp_ms: object, crc32: object, line: object) -> int | None:
    """The seq that an intact line names, wherever in the file it was found; None if damaged."""
    if not isinstance(line, bytes) or checksum(line, timestamp_ms) != crc32:
        return None
    front = b'{"queue_id":"%b","seq":' % queue_id.encode()
    digits = line[len(front) : 64].partition(b",")[0]
    return int(digits) if line.startswith(front) and digits.isdigit() else None


class Damage:
    """Makes the rows that stand for lost ones in one queue, and keeps what was found instead.

    `template` is a JSON object of the log's schema that was stored when the queue was made: the
    queue knows that schema no further than that `timestamp` and `error` are filled in here.
    """

    def __init__(self, root: Path, queue_id: str, template: bytes) -> None:
        self.rows = 0
        self._root = root
        self._queue_id = queue_id
        self._template = template

    def body(self, subject: str, timestamp_ms: int, reason: str) -> bytes:
        """The entry that stands for `subject`, as in "row 7 of this queue"."""
        fields = json.loads(self._template)
        moment = utc_moment(timestamp_ms).isoformat(timespec="milliseconds")
        fields["timestamp"] = moment.replace("+00:00", "Z")
        fields["error"] = f"{subject} is damaged: {reason}"
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()

    def line(self, seq: int, timestamp_ms: int, reason: str) -> bytes:
        """The finished line that stands for row `seq`.

        `timestamp_ms` is a neighbour's, as the row's own may be what is damaged.
        """
        body = self.body(f"row {seq} of this queue", timestamp_ms, reason)
        return finished_line(self._queue_id, seq, body)

    def keep(self, name: str, raw: object) -> Path:
        """Keep what was found, as it was found, for a person to look at."""
        if isinstance(raw, str):
            raw = raw.encode("utf-8", "surrogateescape")
        kept = raw if isinstance(raw, bytes) else repr(raw).encode("utf-8", "surrogateescape")
        return quarantine(self._root, f"{self._queue_id}-{name}", kept)


def quarantine(root: Path, name: str, raw: bytes) -> Path:
    """Keep `raw` durably as ``quarantine/<name>`` under `root`."""
    folder = root / QUARANTINE_NAME
    make_folders(folder)
    path = folder / name
    path.write_bytes(raw)
    fsync_file(path)
    fsync_folder(folder)
    return path


def fsync_file(path: Path) -> None:
    """Make what was written to the file at `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename or a new file is lost without it)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Make `folder` and its parents, as far as they are missing, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_folder(path.parent)
