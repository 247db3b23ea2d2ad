"""Where compacted tables are published: a folder or a bucket.

A file appears whole or not at all, by one rename or one PUT, under a name that never changes. So
readers see the old or the new file, and a killed run leaves nothing that one takes for a table.

A run replaces only the file that it has read. Of two runs at once the slower one may know less, and
the other one may have deleted what it knew: the slower one is refused, and begins again. A folder
is locked for it; a bucket is asked with If-Match and If-None-Match, which a store that does not
know them ignores.
"""

import base64
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError

from open_llm_proxy.archive.sources.bucket import BucketSource, bucket_and_prefix, explained
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import (
    Environment,
    LogObject,
    LogSource,
    LogSourceError,
)

FILE_NAME = "part-0.parquet"
WORK_PREFIX = ".compacting-"
LOCK_NAME = ".compaction.lock"
ABANDONED_SECONDS = 86_400.0
_CHANGED = (409, 412)  # 409: another conditional PUT was under way


class TableChangedError(Exception):
    """Another run has published this table since it was read."""


class Destination(Protocol):
    """A place for tables, and for deleting raw objects where it is their place too."""

    def source(self) -> LogSource:
        """The tables that are there now."""
        ...

    def publish(self, table: str, day: str, path: Path, read: LogObject | None) -> None:
        """Put a finished file in the place of a day's table, of which `read` was read.

        Raises `TableChangedError` where something else is there now, and `LogSourceError`.
        """
        ...

    def delete(self, item: LogObject) -> None:
        """Delete one object. Raises `LogSourceError`."""
        ...


class FolderDestination:
    """Tables below a folder, which is made where it is not there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogSourceError(f"{root} cannot be made: {error.strerror}") from None

    def source(self) -> LogSource:
        return FolderSource(self._root)

    def publish(self, table: str, day: str, path: Path, read: LogObject | None) -> None:
        target = self._root / table / f"day={day}" / FILE_NAME
        try:
            self._remove_abandoned()
            with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=self._root) as work:
                copy = Path(work, FILE_NAME)
                shutil.copyfile(path, copy)
                _sync(copy)
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._locked():
                    if published(self.source(), table, day) != read:
                        raise TableChangedError
                    copy.rename(target)
            for folder in (target.parent, target.parent.parent, self._root):
                _sync(folder)
        except OSError as error:
            raise LogSourceError(f"{target} cannot be written: {error.strerror}") from None

    def delete(self, item: LogObject) -> None:
        try:
            Path(item.key).unlink(missing_ok=True)
        except OSError as error:
            raise LogSourceError(f"{item.key} cannot be deleted: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the runs that publish here; the lock ends with its process."""
        with open(self._root / LOCK_NAME, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_abandoned(self) -> None:
        """Remove what killed runs left, once no run that is alive can still use it."""
        for work in self._root.glob(f"{WORK_PREFIX}*"):
            if time.time() - work.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


class BucketDestination:
    """Tables below ``s3://bucket/prefix``. Needs the right to put objects there."""

    def __init__(self, url: str, environment: Environment) -> None:
        self._url = url
        self._environment = environment
        self._bucket, prefix = bucket_and_prefix(url)
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self._client = environment.s3_client()

    def source(self) -> LogSource:
        return BucketSource(f"s3://{self._bucket}/{self._prefix}", self._environment)

    def publish(self, table: str, day: str, path: Path, read: LogObject | None) -> None:
        key = f"{self._prefix}{table}/day={day}/{FILE_NAME}"
        place: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        # Without the quotes of RFC 9110, which Ceph's RGW takes for a part of the ETag.
        place |= {"IfNoneMatch": "*"} if read is None else {"IfMatch": read.etag}
        with explained(self._url, "to put objects"), open(path, "rb") as body:
            digest = hashlib.file_digest(body, "md5").digest()
            body.seek(0)
            place["ContentMD5"] = base64.b64encode(digest).decode()
            try:
                self._client.put_object(**place, Body=body)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in _CHANGED:
                    raise TableChangedError from None
                raise

    def delete(self, item: LogObject) -> None:
        with explained(self._url, "to delete objects"):
            self._client.delete_object(Bucket=self._bucket, Key=item.key)


def open_destination(name: str, environment: Environment) -> Destination:
    """The place that a name says: a folder or ``s3://bucket/prefix``. Raises `LogSourceError`."""
    if name.startswith("s3:"):
        return BucketDestination(name, environment)
    return FolderDestination(Path(name))


def published(source: LogSource, table: str, day: str) -> LogObject | None:
    """The file that is in the place of a day's table."""
    found = (item for item in source.parquet(table, day) if item.name == FILE_NAME)
    return next(found, None)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
