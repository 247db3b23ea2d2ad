"""The cap over the queue's whole folder, and the reserves that outlive a full disk.

On a really full disk SQLite cannot even delete, because deleting writes to the WAL first; a
queue without a reserve is then stuck with rows that it has already uploaded. So two files of
allocated blocks lie beside it from birth on, and are given up one after the other when SQLite
reports SQLITE_FULL: into the room of the first go the closing entries of open calls, into
that of the second only the drain's deletes and entries without their texts. New calls are
refused from the cap or from SQLITE_FULL on, until there is room for both reserves again.
"""

import os
import stat
from pathlib import Path

from open_llm_proxy.queue.durable_files import QUEUE_FOLDER
from open_llm_proxy.queue.errors import QueueFull

RESERVE_NAME = "reserve"
RESERVE_BYTES = 16 * 1024 * 1024
LAST_RESERVE_NAME = "reserve.last"
LAST_RESERVE_BYTES = 8 * 1024 * 1024
# What may be written into the last reserve: an entry without its texts.
SLIM_MAX_BYTES = 16 * 1024


class DiskSpace:
    """Watches the room of one process's queue; measured and changed on the writer's thread.

    `refusal` is read by the event loop: why a new call must wait, or None. `is_last`: the last
    reserve was given up. `max_bytes` is LOG_QUEUE_MAX_BYTES, over the queues below `root`, their
    reserves left out.
    """

    def __init__(self, root: Path, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._root = root
        self._folder = folder
        self._used_bytes = 0
        self._disk_full = False
        self.is_last = False
        self.refusal: QueueFull | None = None

    @property
    def page_cap_bytes(self) -> int:
        """The cap on the file for openings, should a burst outrun the next `measure`.

        Closing entries of open calls may exceed it: their number is bounded.
        """
        return self.max_bytes + RESERVE_BYTES

    def measure(self, free_bytes: int) -> None:
        """Look at the disk: renew reserves that were given up, and decide on new calls.

        `free_bytes` lie free inside the queue's file: the next rows take no new room there.
        """
        self._used_bytes = queues_bytes(self._root) - free_bytes
        self._disk_full = not make_reserves(self._folder)
        self.is_last = not (self._folder / LAST_RESERVE_NAME).exists()
        self._decide()

    def fits(self, size_bytes: int) -> bool:
        """Whether an entry of that size leaves the drain the room that it needs to delete."""
        if not self.is_last or size_bytes <= SLIM_MAX_BYTES:
            return True
        return disk_free_bytes(self._folder) >= LAST_RESERVE_BYTES + 2 * size_bytes

    def note_written(self, size_bytes: int) -> None:
        """Count what was stored since the last `measure`, so that a burst meets the cap too."""
        self._used_bytes += size_bytes
        if self._used_bytes >= self.max_bytes:
            self._decide()

    def exhausted(self) -> bool:
        """SQLite found no room: give up a reserve and refuse new calls until it is back.

        Returns whether that made room, so that trying again makes sense.
        """
        made_room = give_up_reserve(self._folder)
        self._disk_full = True
        self.is_last = not (self._folder / LAST_RESERVE_NAME).exists()
        self._decide()
        return made_room

    def _decide(self) -> None:
        if self._disk_full:
            self.refusal = QueueFull("the disk of the log queue is full; try again later")
        elif self._used_bytes >= self.max_bytes:
            self.refusal = QueueFull(
                f"the log queue holds its limit of {self.max_bytes} bytes; try again later"
            )
        else:
            self.refusal = None


def queues_bytes(root: Path) -> int:
    """Sizes of the queues' files below `root` by stat, without the reserves; never opens a file.

    What else lies there, such as the quarantine, no upload will ever make smaller.
    """
    with os.scandir(root) as entries:
        return sum(_folder_bytes(e.path) for e in entries if QUEUE_FOLDER.fullmatch(e.name))


def _folder_bytes(folder: str) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            if name in (RESERVE_NAME, LAST_RESERVE_NAME):
                continue
            try:
                found = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue  # removed since it was listed: it takes no room
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def make_reserves(folder: Path) -> bool:
    """Make the reserves that are missing in a queue's folder; returns whether both are there.

    What is missing is made altogether or not at all: in a process that takes no calls yet, part
    of a reserve would only keep the room from the queues that it has to drain. And it is not
    even tried without room, as a try that fails takes all the room there is for a moment.
    """
    reserves = ((RESERVE_NAME, RESERVE_BYTES), (LAST_RESERVE_NAME, LAST_RESERVE_BYTES))
    missing = [(folder / name, size) for name, size in reserves if not (folder / name).exists()]
    if sum(size for _, size in missing) > disk_free_bytes(folder):
        return False
    made = [path for path, size in missing if allocate(path, size)]
    if len(made) == len(missing):
        return True
    for path in made:
        path.unlink(missing_ok=True)
    return False


def disk_free_bytes(folder: Path) -> int:
    """Room on the disk below `folder` for this user."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def give_up_reserve(folder: Path) -> bool:
    """Free the first reserve of a queue's folder that is left; returns whether there was one."""
    for name in (RESERVE_NAME, LAST_RESERVE_NAME):
        if (folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            return True
    return False


def allocate(path: Path, size_bytes: int) -> bool:
    """Make a file of really allocated blocks; False, and no file, where the disk is full."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError:
        return False  # a full disk may not even have room for the name, or a link is in its place
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
    return True
