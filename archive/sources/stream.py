"""Stdin or a single file: a capture of a process's stdout, or one object.

Its entries are written to a temporary file, cleaned of what stood around them, and read from there.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from open_llm_proxy.archive.sources.capture import CaptureReader
from open_llm_proxy.archive.sources.lines import Read, decoded, split_lines
from open_llm_proxy.archive.sources.source import (
    NO_DAY,
    LogObject,
    LogSourceError,
    Problems,
    Progress,
)


class StreamSource:
    """One stream of lines; `entries` yields them as they come, `local` keeps all of them."""

    def __init__(self, name: str, read: Read, *, follows: bool) -> None:
        self.name = name
        self.follows = follows
        self.problems = Problems()
        self._read = read
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def entries(self) -> Iterator[bytes]:
        """The entries, each as soon as it is there."""
        chunks = decoded(self._read, self.problems)
        return CaptureReader(self.problems).entries(split_lines(chunks, self.problems))

    def days(self) -> list[str]:
        return [NO_DAY]

    def objects(self, day: str) -> list[LogObject]:
        return [LogObject(NO_DAY, self.name, self.name)]

    def parquet(self, table: str, day: str) -> list[LogObject]:
        return []

    def local(
        self, items: Sequence[LogObject], progress: Progress | None = None
    ) -> list[tuple[LogObject, Path]]:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="open-llm-proxy-")
            with open(self._path(), "wb") as file:
                for line in self.entries():
                    file.write(line + b"\n")
        return [(item, self._path()) for item in items]

    def close(self) -> None:
        """Remove the temporary file."""
        if self._folder is not None:
            self._folder.cleanup()

    def _path(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, "entries.jsonl")


def stdin_source() -> StreamSource:
    """The lines on stdin, each as soon as it is there."""
    descriptor = sys.stdin.fileno()
    return StreamSource("stdin", lambda size: os.read(descriptor, size), follows=True)


def file_source(path: Path) -> StreamSource:
    """A single file; raises `LogSourceError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LogSourceError(f"{path} cannot be read: {error.strerror}") from error
    return StreamSource(str(path), lambda size: os.read(descriptor, size), follows=False)
