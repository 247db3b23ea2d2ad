"""Downloaded objects, kept on this machine under their keys.

An object's key names its bytes, so what is here is never asked for again: a sync is the difference
of two sets. An object is written under another name and renamed, so a killed run leaves nothing
that a later one takes for whole, and the next run goes on where it ended. The size is bounded: what
was not used for longest goes first, and a run that needs more than the bound says so before it
downloads anything.
"""

import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from open_llm_proxy.archive.sources.source import (
    LogObject,
    LogSourceError,
    Progress,
    total_bytes,
)

DOWNLOADS = 8
_PART = ".part"
Download = Callable[[LogObject], bytes | None]
"""Gets an object's bytes; None where the object is gone."""


class ObjectCache:
    """The objects of one bucket and endpoint, below `folder`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def path(self, item: LogObject) -> Path:
        """Where an object is kept. Tables may be written anew under their key, so they are kept
        under their ETag as well."""
        parts = [quote(part, safe="=") or "%" for part in item.key.split("/")]
        if item.etag and item.name.endswith(".parquet"):
            stem = parts[-1].removesuffix(".parquet")
            parts[-1] = f"{stem}.{quote(item.etag, safe='')}.parquet"
        return self._folder.joinpath(*(part if part.strip(".") else f"%{part}" for part in parts))

    def fetch(
        self, items: Iterable[LogObject], download: Download, progress: Progress | None
    ) -> tuple[list[tuple[LogObject, Path]], list[LogObject]]:
        """The objects as files, and those that are gone. Raises `LogSourceError`."""
        wanted = {item: self.path(item) for item in items}
        missing = [item for item, path in wanted.items() if not _touch(path, item.size_bytes)]
        self._make_room(set(wanted.values()), total_bytes(wanted), total_bytes(missing))
        gone = self._download(missing, wanted, download, progress)
        return [pair for pair in wanted.items() if pair[0] not in gone], sorted(gone)

    def _download(
        self,
        missing: list[LogObject],
        wanted: dict[LogObject, Path],
        download: Download,
        progress: Progress | None,
    ) -> set[LogObject]:
        gone = set()
        done, in_all = 0, total_bytes(missing)

        def store(item: LogObject) -> bool:
            data = download(item)
            if data is not None:
                self._store(wanted[item], data)
            return data is not None

        with ThreadPoolExecutor(DOWNLOADS) as pool:
            running = {pool.submit(store, item): item for item in missing}
            try:
                for future in as_completed(running):
                    item = running[future]
                    if not future.result():
                        gone.add(item)
                    done += item.size_bytes
                    if progress is not None:
                        progress(done, in_all)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return gone

    def _store(self, path: Path, data: bytes) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.rename(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._unusable(error) from error

    def _make_room(self, wanted: set[Path], needed_bytes: int, missing_bytes: int) -> None:
        """Remove what was not used for longest until what is missing fits."""
        if needed_bytes > self._max_bytes:
            raise LogSourceError(
                f"this needs {needed_bytes:,} bytes of the bucket at once and the cache is limited "
                f"to {self._max_bytes:,}: choose fewer days with --since and --until, or raise "
                "--cache-max-bytes"
            )
        kept = []
        used_bytes = missing_bytes
        try:
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    path = Path(folder, name)
                    status = path.stat()
                    used_bytes += status.st_size
                    if path not in wanted:
                        kept.append((status.st_mtime, status.st_size, path))
            for _, size_bytes, path in sorted(kept):
                if used_bytes <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                used_bytes -= size_bytes
        except FileNotFoundError:
            return  # another run makes room at the same time
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> LogSourceError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return LogSourceError(
                f"the disk of the cache {self._folder} is full: free some space, choose fewer days "
                "with --since and --until, or name another folder with --cache"
            )
        return LogSourceError(
            f"the cache {self._folder} cannot be used ({error.strerror}): name another folder "
            "with --cache"
        )


def _touch(path: Path, size_bytes: int) -> bool:
    """Whether the file is here in full; if so it counts as used now."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        os.utime(path)
    except OSError:
        return False
    return True
