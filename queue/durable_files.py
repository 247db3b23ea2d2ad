"""Files and folders that are still there after a power cut."""

import os
import re
from pathlib import Path

QUARANTINE_NAME = "quarantine"
# The folder of a queue, also while it is made or removed.
QUEUE_FOLDER = re.compile(r"[0-9a-f]{16}(\.new|\.done)?")


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
