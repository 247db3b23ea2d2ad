"""Where the readers of the log find it: a folder, an S3 bucket, or lines on stdin.

A folder or a bucket holds objects by day, ``YYYY-MM-DD/HH-MM-SS-….jsonl``, as the queue uploads
them; a folder may also hold the objects themselves, as a copy of one day does. Everything is
read as a stream, one line in memory at a time, and nothing is ever written.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

MAX_LINE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_SUFFIX = ".jsonl"


class LogSourceError(Exception):
    """The log cannot be read; one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says: where its log is, if anywhere, and how S3 is reached.

    `s3_client` makes a boto3 client; it is called only for a bucket.
    """

    default_source: str | None
    s3_client: Callable[[], Any]


@dataclass(frozen=True, slots=True, order=True)
class LogObject:
    """One object: `name` sorts by window, `key` says where it is."""

    name: str
    key: str

    @property
    def window(self) -> str:
        """The start of its window, as the beginning of its name tells it."""
        return self.name[:8]


class LogSource(Protocol):
    """A log that is kept as objects. All raise `LogSourceError` where it cannot be read."""

    @property
    def name(self) -> str: ...

    def days(self) -> list[str]:
        """The days that have objects, oldest first; "" where the objects are of no known day."""
        ...

    def objects(self, day: str) -> list[LogObject]:
        """The objects of a day, in the order of their windows."""
        ...

    def lines(self, item: LogObject) -> Iterator[bytes]:
        """The lines of an object, without their ends."""
        ...


class FolderSource:
    """A folder with one folder per day, or with objects in itself, or a single file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        if not path.exists():
            raise LogSourceError(f"there is no {path}: name a folder, a file or s3://bucket/prefix")

    def days(self) -> list[str]:
        if self._path.is_file():
            return [""]
        try:
            names = os.listdir(self._path)
        except OSError as error:
            raise LogSourceError(f"{self._path} cannot be read: {error.strerror}") from error
        days = [name for name in names if _DAY.fullmatch(name)]
        has_objects = any(self._path.glob("*" + _SUFFIX))
        return ([""] if has_objects else []) + sorted(days)

    def objects(self, day: str) -> list[LogObject]:
        if self._path.is_file():
            return [LogObject(self._path.name, str(self._path))]
        paths = (self._path / day).glob("*" + _SUFFIX)
        return sorted(LogObject(path.name, str(path)) for path in paths)

    def lines(self, item: LogObject) -> Iterator[bytes]:
        try:
            with open(item.key, "rb") as file:
                yield from split_lines(file.read)
        except OSError as error:
            raise LogSourceError(f"{item.key} cannot be read: {error.strerror}") from error


class BucketSource:
    """A bucket, or a prefix in it. The right to list it and to get its objects is enough."""

    def __init__(self, url: str, client: Any) -> None:
        self.name = url
        self._bucket, self._prefix = _bucket_and_prefix(url)
        self._client = client

    def days(self) -> list[str]:
        days = self._days_below(self._prefix)
        if not days and self._prefix and not self._prefix.endswith("/"):
            self._prefix += "/"
            days = self._days_below(self._prefix)
        has_objects = not days and any(self._keys(self._prefix))
        return [""] if has_objects else days

    def objects(self, day: str) -> list[LogObject]:
        prefix = f"{self._prefix}{day}/" if day else self._prefix
        return sorted(LogObject(key.rpartition("/")[2], key) for key in self._keys(prefix))

    def lines(self, item: LogObject) -> Iterator[bytes]:
        with _explained(self.name):
            body = self._client.get_object(Bucket=self._bucket, Key=item.key)["Body"]
            try:
                yield from split_lines(body.read)
            finally:
                body.close()

    def _days_below(self, prefix: str) -> list[str]:
        found = []
        for page in self._pages(prefix):
            for common in page.get("CommonPrefixes", ()):
                name = common["Prefix"].removeprefix(prefix).rstrip("/")
                if _DAY.fullmatch(name):
                    found.append(name)
        return sorted(found)

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                if item["Key"].endswith(_SUFFIX):
                    yield item["Key"]

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        with _explained(self.name):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")


def open_source(name: str | None, environment: Environment) -> LogSource | None:
    """The log that `name` says, else the environment's own; None is stdin.

    Raises `LogSourceError`.
    """
    if name == "-":
        return None
    name = name or environment.default_source
    if name is None:
        if sys.stdin.isatty():
            raise LogSourceError(
                "no log is named: give a folder, s3://bucket/prefix or - for stdin, "
                "or set LOG_DIR or LOG_BUCKET"
            )
        return None
    if name.startswith("s3:"):
        return BucketSource(name, environment.s3_client())
    return FolderSource(Path(name))


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise LogSourceError(f"{url!r} is not of the form s3://bucket/prefix")
    return parts.netloc, parts.path.removeprefix("/")


def stdin_lines() -> Iterator[bytes]:
    """The lines on stdin, each as soon as it is there."""
    descriptor = sys.stdin.fileno()
    return split_lines(lambda size: os.read(descriptor, size))


def split_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their ends; one that is longer than any entry is left out."""
    rest = b""
    is_skipping = False
    while chunk := read(CHUNK_BYTES):
        first, *more = chunk.split(b"\n")
        rest += first
        for line in more:
            if not is_skipping:
                yield rest
            is_skipping = False
            rest = line
        if len(rest) > MAX_LINE_BYTES:
            rest, is_skipping = b"", True
    if rest and not is_skipping:
        yield rest


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what boto3 raises into a sentence; its own texts may quote keys."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        raise LogSourceError(
            f"{name} answered {status} {code}: a reader needs the right to list the bucket and "
            "to get its objects"
        ) from None
    except BotoCoreError as error:
        raise LogSourceError(
            f"{name} cannot be reached ({type(error).__name__}): check AWS_ENDPOINT_URL_S3 and "
            "the credentials"
        ) from None
