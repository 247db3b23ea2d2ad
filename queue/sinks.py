"""Where objects go: an S3 bucket or a directory of the same layout.

A sink's verb is `put`, which blocks and is called on upload threads. It returns when the object
is certainly stored and raises otherwise; the two exceptions say whether the object may be there
all the same. Retrying is the drain's business and never a sink's: `put` makes exactly one
attempt, and the same name always carries the same bytes.

A bucket is believed by evidence: whatever stands between here and the store, such as a captive
portal, may answer 200 to everything. The right to write is enough where the store names the MD5 of
what it holds; the right to read is needed where it does not, and for `holds`, which the drain asks
only where a queue's file was damaged after a `put` without an answer.
"""

import contextlib
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from open_llm_proxy.queue import s3
from open_llm_proxy.queue.batches import OBJECT_NAME, Batch
from open_llm_proxy.queue.durable_files import (
    SHARED_FILE,
    SHARED_FOLDER,
    fsync_folder,
    make_folders,
    write_file,
)
from open_llm_proxy.queue.fault_points import reach


class SinkFailure(Exception):
    """An object was not confirmed; it may or may not be stored. The message holds no secret."""


class SinkRefused(SinkFailure):
    """This attempt has certainly stored nothing: a 4xx, a folder that cannot be written, or not a
    byte of the object has left."""


class Sink(Protocol):
    """`identity` names the sink in the queue's file; two sinks of one identity are the same."""

    @property
    def identity(self) -> str: ...

    def put(self, batch: Batch, body: bytes) -> None:
        """Store `body` under the batch's name, or raise `SinkFailure` or `SinkRefused`."""
        ...

    def holds(self, batch: Batch) -> bool:
        """Whether the batch's object is certainly there; False where that is not known."""
        ...


class DirectorySink:
    """A folder that holds ``YYYY-MM-DD/*.jsonl``; readers never see a half-written object.

    Nothing is written outside of it, whatever a batch is called and wherever a day's folder leads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._durable_folder: Path | None = None
        self.identity = f"dir:{self.root}"

    def put(self, batch: Batch, body: bytes) -> None:
        path = self.root / batch.name
        if not OBJECT_NAME.fullmatch(batch.name) or path.parent.is_symlink():
            raise SinkRefused(f"{self.identity}: {path} is not inside it, nothing is written there")
        # The temporary name ends differently, so that no `*.jsonl` pattern matches it.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        kind: type[SinkFailure] = SinkRefused  # until the object may be there under its name
        try:
            self._make_folder(path.parent)
            write_file(temporary, [body], SHARED_FILE)
            reach("object-written")
            kind = SinkFailure
            os.rename(temporary, path)
            reach("object-renamed")
            fsync_folder(path.parent)
            for left in path.parent.glob(f".{path.name}.*.part"):
                left.unlink(missing_ok=True)  # by a process that died while it wrote
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise kind(f"{self.identity}: {error.strerror or error}") from error

    def holds(self, batch: Batch) -> bool:
        try:
            return (self.root / batch.name).stat().st_size == batch.bytes
        except OSError:
            return False

    def _make_folder(self, folder: Path) -> None:
        """Make the folder durable once per process: a dead one may have made it just before."""
        if folder != self._durable_folder or not folder.is_dir():
            make_folders(folder, SHARED_FOLDER)
            fsync_folder(folder.parent)
            self._durable_folder = folder


class S3Sink:
    """A bucket, by single PUTs with Content-MD5; the right to write objects is enough.

    Content-MD5 is what every S3 store verifies. Retries inside boto3 are off, so that one
    attempt here is one attempt there.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        max_connections: int = 4,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self.identity = f"s3://{bucket}/{prefix}"
        self._client: Any = s3.s3_client(endpoint_url, region, max_connections=max_connections)
        self._client.meta.events.register("before-send.s3.PutObject", _Body.begin)

    def put(self, batch: Batch, body: bytes) -> None:
        sent = _Body(body)
        try:
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + batch.name,
                Body=sent,
                ContentMD5=batch.content_md5,
                ContentType="application/x-ndjson",
            )["ResponseMetadata"]
        except ClientError as error:
            status, _ = s3.answered(error)
            kind = SinkRefused if 400 <= status < 500 and status != 408 else SinkFailure
            raise kind(f"{self.identity} {s3.problem(error)}") from None
        except Exception as error:
            kind = SinkFailure if sent.has_left else SinkRefused
            raise kind(f"{self.identity}: {s3.problem(error)}") from None
        status, headers = answer["HTTPStatusCode"], answer["HTTPHeaders"]
        if status != 200 or not (_is_proof(headers, batch) or self.holds(batch)):
            raise SinkFailure(
                f"{self.identity} answered {status} without proof that it has the object; check "
                "that AWS_ENDPOINT_URL_S3 leads to the store itself, and grant the credentials the "
                "right to read objects of this bucket, so that the proxy can look"
            )

    def holds(self, batch: Batch) -> bool:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + batch.name)
        except Exception:
            # Not there, not allowed to look, or the store is away: which of these is not known.
            return False
        status = found["ResponseMetadata"]["HTTPStatusCode"]
        return bool(status == 200 and found.get("ContentLength") == batch.bytes)


class _Body(io.BytesIO):
    """The body of a PUT. `has_left`: a connection was made and has asked for its first byte.

    What an exception is called does not tell that: TLS, for one, may fail before and after.
    botocore also reads it for the signature, before `is_sent` is set.
    """

    is_sent = False
    has_left = False

    def read(self, size: int | None = -1) -> bytes:
        self.has_left |= self.is_sent
        return super().read(size)

    @staticmethod
    def begin(request: Any, **_: object) -> None:
        """Called by botocore with a signed request, before its connection is made."""
        request.body.is_sent = True


def _is_proof(headers: Mapping[str, str], batch: Batch) -> bool:
    """Whether an answer's headers can only come from a store that has the object.

    The ETag is the MD5 of its bytes, except where the store encrypts with keys of its customer or
    of a KMS; then it names the encryption.
    """
    is_md5 = headers.get("etag", "").strip('"').lower() == batch.md5.hex()
    return is_md5 or any(name.startswith("x-amz-server-side-encryption") for name in headers)


def parse_s3_url(url: str) -> tuple[str, str]:
    """``s3://bucket/prefix`` as (bucket, prefix); ValueError where it is something else."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not of the form s3://bucket/prefix")
    return parts.netloc, parts.path.removeprefix("/")
