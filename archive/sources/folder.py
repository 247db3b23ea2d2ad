"""A folder with one folder per day, or with objects in itself."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from open_llm_proxy.archive.sources.source import (
    DAY,
    NO_DAY,
    LogObject,
    LogSourceError,
    Problems,
    Progress,
    is_log_object,
    table_day,
)

UNREADABLE = "folders or objects that cannot be read"
VANISHED = "objects that vanished while they were read"


class FolderSource:
    """Objects and tables below a folder, read where they lie."""

    follows = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.problems = Problems()
        self._path = path
        self._unreadable: set[Path] = set()
        try:
            os.listdir(path)
        except OSError as error:
            raise LogSourceError(f"{path} cannot be read: {error.strerror}") from error

    def days(self) -> list[str]:
        days = {name for name in self._names(self._path) if DAY.fullmatch(name)}
        days |= {day for name in self._names(self._path / "entries") if (day := table_day(name))}
        has_objects = any(map(is_log_object, self._names(self._path)))
        return ([NO_DAY] if has_objects else []) + sorted(days)

    def objects(self, day: str) -> list[LogObject]:
        return self._files(self._path / day, day, is_log_object)

    def parquet(self, table: str, day: str) -> list[LogObject]:
        folder = self._path / table / f"day={day}"
        files = self._files(folder, day, lambda name: name.endswith(".parquet"))
        return [replace(item, etag=_version(Path(item.key))) for item in files]

    def local(
        self, items: Sequence[LogObject], progress: Progress | None = None
    ) -> list[tuple[LogObject, Path]]:
        found = []
        for item in items:
            path = Path(item.key)
            if os.access(path, os.R_OK):
                found.append((item, path))
            else:
                self.problems.add(UNREADABLE if path.exists() else VANISHED, item.key)
        return found

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._cannot_read(folder, error)
            return []

    def _files(self, folder: Path, day: str, is_wanted: Callable[[str], bool]) -> list[LogObject]:
        found = []
        for name in self._names(folder):
            path = folder / name
            if is_wanted(name):
                try:
                    size_bytes = path.stat().st_size
                except OSError as error:
                    self._cannot_read(path, error)
                    continue
                found.append(LogObject(day, name, str(path), size_bytes))
        return sorted(found)

    def _cannot_read(self, path: Path, error: OSError) -> None:
        """Count it once, however often it is listed."""
        if path not in self._unreadable:
            self._unreadable.add(path)
            self.problems.add(UNREADABLE, f"{path}: {error.strerror}")


def _version(path: Path) -> str:
    """Differs for a file that took the place of another; a store's ETag says the same."""
    try:
        status = path.stat()
    except OSError:
        return ""  # it vanished; whoever opens it will say so
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}"
