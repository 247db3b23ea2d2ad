"""A bucket, or a prefix in it. The right to list it and to get its objects is enough."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from open_llm_proxy.archive.sources.cache import ObjectCache
from open_llm_proxy.archive.sources.folder import VANISHED
from open_llm_proxy.archive.sources.source import (
    DAY,
    NO_DAY,
    Environment,
    LogObject,
    LogSourceError,
    Problems,
    Progress,
    is_log_object,
    table_day,
)


class BucketSource:
    """Objects and tables below ``s3://bucket/prefix``, downloaded into a cache."""

    follows = True

    def __init__(self, url: str, environment: Environment) -> None:
        self.name = url
        self.problems = Problems()
        self._bucket, self._prefix = bucket_and_prefix(url)
        self._is_settled = not self._prefix or self._prefix.endswith("/")
        self._client = environment.s3_client()
        bucket = f"{self._client.meta.endpoint_url} {self._bucket}"
        self.place = f"{bucket} {self._prefix}"
        folder = environment.cache_folder.expanduser() / hashlib.sha256(bucket.encode()).hexdigest()
        self._cache = ObjectCache(folder, environment.cache_max_bytes)

    def days(self) -> list[str]:
        days = self._days_below(self._settled_prefix())
        has_objects = not days and any(self._items(self._prefix, NO_DAY, is_log_object))
        return [NO_DAY] if has_objects else days

    def objects(self, day: str) -> list[LogObject]:
        root = self._settled_prefix()
        prefix = f"{root}{day}/" if day else root
        return sorted(self._items(prefix, day, is_log_object))

    def parquet(self, table: str, day: str) -> list[LogObject]:
        prefix = f"{self._settled_prefix()}{table}/day={day}/"
        return sorted(self._items(prefix, day, lambda name: name.endswith(".parquet")))

    def local(
        self, items: Sequence[LogObject], progress: Progress | None = None
    ) -> list[tuple[LogObject, Path]]:
        found, gone = self._cache.fetch(items, self._get, progress)
        for item in gone:
            self.problems.add(VANISHED, item.key)
        return found

    def _get(self, item: LogObject) -> bytes | None:
        with explained(self.name):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=item.key)["Body"]
                with body:
                    data: bytes = body.read()
                    return data
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in ("NoSuchKey", "404"):
                    return None
                raise

    def _settled_prefix(self) -> str:
        """``team`` is a folder and ``team-`` the beginning of names: where days are tells it."""
        if not self._is_settled:
            if not self._days_below(self._prefix):
                self._prefix += "/"
            self._is_settled = True
        return self._prefix

    def _days_below(self, prefix: str) -> list[str]:
        days = {name for name in self._folders(prefix) if DAY.fullmatch(name)}
        tables = self._folders(f"{prefix}entries/") if "entries" in self._folders(prefix) else ()
        return sorted(days | {day for name in tables if (day := table_day(name))})

    def _folders(self, prefix: str) -> list[str]:
        return [
            common["Prefix"].removeprefix(prefix).rstrip("/")
            for page in self._pages(prefix)
            for common in page.get("CommonPrefixes", ())
        ]

    def _items(
        self, prefix: str, day: str, is_wanted: Callable[[str], bool]
    ) -> Iterator[LogObject]:
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                name = item["Key"].rpartition("/")[2]
                if is_wanted(name):
                    etag = item.get("ETag", "").strip('"')
                    yield LogObject(day, name, item["Key"], item["Size"], etag)

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        with explained(self.name):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The parts of ``s3://bucket/prefix``; raises `LogSourceError`."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise LogSourceError(f"{url!r} is not of the form s3://bucket/prefix")
    return parts.netloc, parts.path.removeprefix("/")


@contextmanager
def explained(
    name: str, right: str = "to list the bucket and to get its objects"
) -> Iterator[None]:
    """Turns what boto3 raises into a sentence; its own texts may quote keys."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        raise LogSourceError(
            f"{name} answered {status} {code}: this needs the right {right}"
        ) from None
    except (BotoCoreError, Boto3Error, HTTPError) as error:
        raise LogSourceError(
            f"{name} cannot be reached ({type(error).__name__}): check AWS_ENDPOINT_URL_S3 and "
            "the credentials"
        ) from None
