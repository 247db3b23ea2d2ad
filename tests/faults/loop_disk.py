"""A disk that a test may break: ext4 in a file, mounted through a loop device. Needs root.

`power_cut` asks ext4 to stop as it stands (FS_IOC_SHUTDOWN without flushing its journal): what
was not fsynced is gone after the next mount, as after a power cut, and every later access fails.
"""

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_FS_IOC_SHUTDOWN = 0x8004587D  # linux/fs.h, _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_CHUNK = bytes(64 * 1024)


class DiskUnavailable(Exception):
    """This machine makes no loop disks; the message is the reason to skip a test."""


class LoopDisk:
    """An ext4 file system of its own, mounted at `mountpoint`."""

    def __init__(self, folder: Path, megabytes: int = 96) -> None:
        self.mountpoint = folder / "disk"
        self._image = folder / "disk.img"
        self.mountpoint.mkdir()
        with self._image.open("wb") as file:
            file.truncate(megabytes * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        try:
            self._device = _run("losetup", "--find", "--show", str(self._image))
        except subprocess.CalledProcessError as error:
            raise DiskUnavailable(f"losetup: {error.stderr.strip()}") from None
        try:
            self._mount()
        except subprocess.CalledProcessError as error:
            _run("losetup", "--detach", self._device)
            raise DiskUnavailable(f"mount: {error.stderr.strip()}") from None

    @property
    def root(self) -> Path:
        """A folder on the disk."""
        folder = self.mountpoint / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def power_cut(self) -> None:
        """Lose everything that is not on the disk; nothing can be read or written any more."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP):
                raise
            raise DiskUnavailable(f"FS_IOC_SHUTDOWN: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """Power is back: mount again, which replays the journal. Nobody may use the disk."""
        _run("umount", str(self.mountpoint))
        self._mount()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block every write waits, and so does every process that writes."""
        try:
            _run("fsfreeze", "--freeze", str(self.mountpoint))
        except subprocess.CalledProcessError as error:
            raise DiskUnavailable(f"fsfreeze: {error.stderr.strip()}") from None
        try:
            yield
        finally:
            _run("fsfreeze", "--unfreeze", str(self.mountpoint))

    def set_read_only(self, read_only: bool) -> None:
        mode = "ro" if read_only else "rw"
        _run("mount", "-o", f"remount,{mode}", str(self.mountpoint))

    def fill(self, keep_bytes: int = 0) -> None:
        """Take all room but `keep_bytes`, as somebody else's file on the same disk would."""
        with (self.mountpoint / "foreign").open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while (room := self.free_bytes - keep_bytes) > len(_CHUNK):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room // 2)
            if keep_bytes:
                return
            try:
                while True:
                    file.write(_CHUNK[:4096])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def give_back(self) -> None:
        """Remove the foreign file."""
        (self.mountpoint / "foreign").unlink()

    @property
    def free_bytes(self) -> int:
        state = os.statvfs(self.mountpoint)
        return state.f_bavail * state.f_bsize

    def close(self) -> None:
        """Unmount and forget the disk."""
        _run("umount", str(self.mountpoint))
        _run("losetup", "--detach", self._device)
        self._image.unlink()

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", self._device, str(self.mountpoint))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise DiskUnavailable(f"the program {command[0]} is not installed") from None
    return done.stdout.strip()
