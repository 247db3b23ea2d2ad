"""The folders of queues: each process makes its own, and owns it by a lock.

    LOG_QUEUE_DIR/<queue_id>/        queue.db, queue.db-wal, owner.lock, reserves
    LOG_QUEUE_DIR/<queue_id>.new/    being born: nobody has written to it yet
    LOG_QUEUE_DIR/<queue_id>.done/   being removed: everything in it was uploaded
    LOG_QUEUE_DIR/quarantine/        what could not be read, for a person to look at

A folder under its plain name is either some living process's or somebody's unfinished work,
and the lock tells which: flock is dropped by the kernel when its holder ends, however it ends.
A restart, a crash, a second worker, a restored volume and offline replay are then one path:
take the lock, finish the file, remove the folder. Files that belong together travel together.
"""

import fcntl
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import QUEUE_ID
from open_llm_proxy.queue.disk_space import give_up_reserve, make_reserves
from open_llm_proxy.queue.durable_files import (
    copy_file,
    fsync_file,
    fsync_folder,
    make_folder,
    make_folders,
    open_regular,
    quarantine_folder,
    write_file,
)
from open_llm_proxy.queue.errors import OwnerAlive, QueueFolderUnusable, QueueFull
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.meta import Meta

LOCK_NAME = "owner.lock"
RUBBISH = re.compile(r"[0-9a-f]{16}\.(new|done)")

T = TypeVar("T")


class OwnedFolder:
    """A queue's folder whose lock this process holds until `release` or `remove`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    @property
    def queue_id(self) -> str:
        return self.path.name

    def with_room(self, work: Callable[[], T]) -> T:
        """Do `work`; while the disk is full, again in the room of each reserve of this queue."""
        while True:
            try:
                return work()
            except QueueFull:
                if not give_up_reserve(self.path):
                    raise

    def release(self) -> None:
        """Give the lock back, once; whoever takes it next resumes where this process stopped."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def remove(self) -> None:
        """Remove the folder, everything in it being uploaded; its queue must be closed."""
        done = self.path.with_name(f"{self.queue_id}.done")
        os.rename(self.path, done)
        fsync_folder(done.parent)
        reach("renamed-done")
        shutil.rmtree(done, ignore_errors=True)  # what stays is swept as rubbish later
        self.release()

    def keep_copy(self) -> Path:
        """Copy the queue's files as they are to the quarantine; the queue must be closed."""
        kept = quarantine_folder(self.path.parent)
        target = kept / f"{self.queue_id}-{time.time_ns()}-copy"
        make_folders(target)
        for name in (schema.DATABASE_NAME, schema.WAL_NAME):
            if (self.path / name).exists():
                copy_file(self.path / name, target / name)
                fsync_file(target / name)
        fsync_folder(target)
        reach("copied")
        return target

    def quarantine(self) -> Path:
        """Move the whole folder, which cannot be read, out of the way and keep it."""
        target = quarantine_folder(self.path.parent) / f"{self.queue_id}-{time.time_ns()}"
        os.rename(self.path, target)
        reach("quarantined")
        fsync_folder(target.parent)
        fsync_folder(self.path.parent)
        self.release()
        return target


def prepare_root(root: Path) -> None:
    """Make LOG_QUEUE_DIR and try that it can be written; raises `QueueFolderUnusable`."""
    try:
        make_folders(root)
        probe = root / f".probe-{secrets.token_hex(4)}"
        try:
            write_file(probe, [b"probe"])
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise QueueFolderUnusable(
            f"LOG_QUEUE_DIR {root} cannot hold the log queue ({error.strerror}): "
            "name a folder on a writable disk"
        ) from error


def give_birth(root: Path, meta: Meta) -> OwnedFolder:
    """Make a new queue below `root` and own it; raises `QueueFolderUnusable`.

    Built under another name and renamed when it is whole, so that nobody ever adopts half a
    queue.
    """
    while True:
        queue_id = secrets.token_hex(8)
        new = root / f"{queue_id}.new"
        try:
            make_folder(new)
            reach("folder-made")
            lock = _take_lock(new)
        except OwnerAlive:
            continue  # swept as rubbish in the moment before it was locked
        except OSError as error:
            if isinstance(error, FileNotFoundError) and root.is_dir():
                continue  # the same, a moment earlier
            raise _unusable(root, error) from error
        try:
            return OwnedFolder(_build(new, root / queue_id, meta.born(queue_id)), lock)
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(new, ignore_errors=True)
            os.close(lock)
            raise _unusable(root, error) from error


def _build(new: Path, path: Path, meta: Meta) -> Path:
    # SQLite gives its WAL the modes of the file that it finds.
    write_file(new / schema.DATABASE_NAME, [])
    schema.create(new / schema.DATABASE_NAME, meta.rows(), meta.texts())
    make_reserves(new)
    fsync_folder(new)
    reach("schema-created")
    os.rename(new, path)
    reach("renamed-born")
    fsync_folder(path.parent)
    reach("born")
    return path


def _unusable(root: Path, error: Exception) -> QueueFolderUnusable:
    return QueueFolderUnusable(
        f"no queue can be made in LOG_QUEUE_DIR {root} ({error}): "
        "free some room there or name another folder"
    )


def adopt(path: Path) -> OwnedFolder:
    """Own the folder of a queue whose process has ended.

    Raises `OwnerAlive`, or OSError where the folder does not belong to this user.
    """
    return OwnedFolder(path, _take_lock(path))


def free_reserve(root: Path) -> bool:
    """Give up one reserve of a dead owner's queue; returns whether there was one.

    On a full disk not even an empty queue can be made, and without one nobody would drain what
    fills the disk.
    """
    for path in queue_folders(root):
        try:
            owned = adopt(path)
        except (OwnerAlive, OSError):
            continue  # a living owner's reserve is not ours to give up
        made_room = give_up_reserve(owned.path)
        owned.release()
        if made_room:
            return True
    return False


def queue_folders(root: Path) -> list[Path]:
    """The folders below `root` that hold queues, oldest first; some may have living owners."""
    found = []
    for entry in os.scandir(root):
        if not QUEUE_ID.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            found.append((entry.stat(follow_symlinks=False).st_ctime_ns, Path(entry.path)))
        except FileNotFoundError:
            continue  # finished and removed since it was listed
    return [path for _, path in sorted(found)]


def clear_rubbish(root: Path) -> None:
    """Remove what a death during birth or removal left: it holds no row of anybody."""
    for entry in os.scandir(root):
        if not RUBBISH.fullmatch(entry.name) or entry.is_symlink():
            continue
        path = Path(entry.path)
        try:
            lock = _take_lock(path)
        except (OwnerAlive, OSError):
            continue  # being born or removed at this moment, or not ours to remove
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _take_lock(folder: Path) -> int:
    """Lock the folder's owner.lock; raises `OwnerAlive` where another process holds it.

    The path is looked up again afterwards: between opening and locking, the former owner may
    have renamed and removed the folder, and a lock on a removed file would own nothing.
    """
    path = folder / LOCK_NAME
    try:
        lock = open_regular(path, os.O_CREAT | os.O_RDWR)
    except FileNotFoundError as error:
        raise OwnerAlive(f"{folder} is gone: its owner has finished it") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(lock).st_ino:
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(lock)
        raise OwnerAlive(f"{folder} belongs to a process that is still running") from error
    return lock
