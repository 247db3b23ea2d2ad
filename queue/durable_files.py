"""Files and folders that are still there after a power cut, and that others cannot read.

Chats stand in them. What is made is the owner's alone, whatever the umask; only the objects of a
directory sink are for its group, too. Folders that are there keep their modes.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

QUARANTINE_NAME = "quarantine"
# The folder of a queue, also while it is made or removed.
QUEUE_FOLDER = re.compile(r"[0-9a-f]{16}(\.new|\.done)?")
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o750, 0o640


def quarantine(root: Path, name: str, raw: bytes) -> Path:
    """Keep `raw` durably as ``quarantine/<name>`` under `root`."""
    folder = root / QUARANTINE_NAME
    make_folders(folder)
    path = folder / name
    write_file(path, [raw])
    fsync_folder(folder)
    return path


def write_file(path: Path, pieces: Iterable[bytes | bytearray], mode: int = PRIVATE_FILE) -> None:
    """Write the file at `path` durably; its name is not, see `fsync_folder`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def copy_file(path: Path, copy: Path) -> None:
    """Copy a file to one that only the owner can read."""
    write_file(copy, [])
    shutil.copyfile(path, copy)


def make_folder(folder: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Make one folder; raises `FileExistsError` where it is there."""
    folder.mkdir(mode)
    folder.chmod(mode)  # the umask may have taken too much of it


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


def make_folders(folder: Path, mode: int = PRIVATE_FOLDER) -> None:
    """Make `folder` and its parents, as far as they are missing, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            make_folder(path, mode)
        fsync_folder(path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
