"""From a source's name to the source."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from open_llm_proxy.archive.sources.bucket import BucketSource
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import Environment, LogSource, LogSourceError
from open_llm_proxy.archive.sources.stream import StreamSource, file_source, stdin_source

NOTHING_NAMED = (
    "no log source: pass a folder, s3://bucket/prefix or - for stdin, or set LOG_DIR or LOG_BUCKET"
)


@contextmanager
def open_source(name: str | None, environment: Environment) -> Iterator[LogSource]:
    """The log that `name` says, else the environment's own, else stdin.

    Raises `LogSourceError`.
    """
    source = _source(name, environment)
    try:
        yield source
    finally:
        if isinstance(source, StreamSource):
            source.close()


def _source(name: str | None, environment: Environment) -> LogSource:
    name = name or environment.default_source
    if name == "-":
        return stdin_source()
    if name is None:
        if sys.stdin.isatty():
            raise LogSourceError(NOTHING_NAMED)
        return stdin_source()
    if name.startswith("s3:"):
        return BucketSource(name, environment)
    path = Path(name)
    if not path.exists():
        raise LogSourceError(f"there is no {path}: name a folder, a file or s3://bucket/prefix")
    return FolderSource(path) if path.is_dir() else file_source(path)
