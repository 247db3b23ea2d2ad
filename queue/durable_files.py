"""Files and folders that are still there after a power cut, and that others cannot read.

Chats stand in them. What is made is the owner's alone, whatever the umask; only the objects of a
directory sink are for its group, too. Folders that are there keep their modes.

A queue's folder may come from a volume that others could write to. So of what lies there only
regular files are opened: a FIFO would wait for ever, a device may do anything, and a link leads
out of the folder.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

QUARANTINE_NAME = "quarantine"
# The folder of a queue, also while it is made or removed.
QUEUE_FOLDER = re.compile(r"[0-9a-f]{16}(\.new|\.done)?")
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o750, 0o640
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
}


def check_regular(path: Path) -> None:
    """Raise OSError where something is at `path` that is no regular file; nothing is followed."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {what} and no regular file", str(path))


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, and nothing else; what `flags` let it create is for the owner alone."""
    try:
        check_regular(path)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, PRIVATE_FILE)


def read_regular(path: Path, max_bytes: int = -1) -> bytes:
    """The content of a regular file, or its first `max_bytes`."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(max_bytes)


def quarantine_folder(root: Path) -> Path:
    """Make the quarantine under `root`; raises OSError where it is no folder of its own."""
    folder = root / QUARANTINE_NAME
    make_folders(folder)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link", str(folder))
    return folder


def quarantine(root: Path, name: str, raw: bytes) -> Path:
    """Keep `raw` durably as ``quarantine/<name>`` under `root`."""
    folder = quarantine_folder(root)
    path = folder / name
    write_file(path, [raw])
    fsync_folder(folder)
    return path


def write_file(path: Path, pieces: Iterable[bytes | bytearray], mode: int = PRIVATE_FILE) -> None:
    """Write the file at `path` durably; its name is not, see `fsync_folder`."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def copy_file(path: Path, copy: Path) -> None:
    """Copy a regular file to one that only the owner can read."""
    write_file(copy, [])
    check_regular(path)
    shutil.copyfile(path, copy, follow_symlinks=False)


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
