"""The store of the log: what its settings promise, and whether it really takes an object."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from open_llm_proxy.queue import s3
from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.settings import Settings

AREA = "log"
# What botocore accepts, and within that what S3's own rules allow for new buckets.
POSSIBLE_BUCKET = re.compile(r"[a-zA-Z0-9.\-_]{1,255}")
GOOD_BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
PROBE_NAME = "open-llm-proxy-probe"
PROBE_BODY = b"Written by open-llm-proxy to test this store; it can be deleted.\n"


def check_store(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """Findings for the settings of the store; nothing is sent."""
    if settings.log_dir is not None:
        return []  # see directories.py
    if not settings.log_bucket:
        text = "stdout only, entries are not stored; set LOG_BUCKET or LOG_DIR to store them"
        return [Finding(AREA, Level.WARNING, text)]
    return [*_bucket(settings), *_credentials(settings, environment)]


def _bucket(settings: Settings) -> Iterator[Finding]:
    bucket = settings.log_bucket
    if "/" in bucket:
        return  # a mistake that `Settings` reports
    if not POSSIBLE_BUCKET.fullmatch(bucket):
        text = (
            f"LOG_BUCKET={bucket}: is not the name of a bucket; use 3 to 63 of a-z, 0-9, '.' "
            "and '-'"
        )
        yield Finding(AREA, Level.MISTAKE, text)
    elif not GOOD_BUCKET.fullmatch(bucket):
        text = f"LOG_BUCKET={bucket}: most stores refuse this name; use 3 to 63 of a-z, 0-9, '-'"
        yield Finding(AREA, Level.WARNING, text)


def _credentials(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    for variable in KEY_VARIABLES:
        value = environment.get(variable, "")
        if value != "".join(value.split()) or not value.isprintable():
            text = (
                f"{variable} contains a blank or a line break; create the secret without it "
                "(`echo -n`, or kubectl's --from-literal)"
            )
            yield Finding(AREA, Level.MISTAKE, text)
    pair = [variable for variable in KEY_VARIABLES[:2] if environment.get(variable)]
    if len(pair) == 1:
        (missing,) = set(KEY_VARIABLES[:2]) - set(pair)
        text = f"{pair[0]} is set without {missing}; set both"
        yield Finding(AREA, Level.MISTAKE, text)
        return
    try:
        has_credentials = s3.has_s3_credentials()
        s3.s3_client(settings.s3_endpoint_url or None, settings.s3_region or None)
    except s3.S3SettingsError as error:
        yield Finding(AREA, Level.MISTAKE, f"LOG_BUCKET cannot be used: {error}")
        return
    where = f"s3://{settings.log_bucket}/{settings.log_prefix}"
    at = f" at {settings.s3_endpoint_url}" if settings.s3_endpoint_url else ""
    if has_credentials:
        yield Finding(AREA, Level.OK, f"{where}{at}, credentials found")
    else:
        text = (
            f"{where} has no S3 credentials, so that entries go to stdout only and are not stored; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        yield Finding(AREA, Level.PROBLEM, text)


def probe_store(settings: Settings) -> list[Finding]:
    """PUT, GET and DELETE a probe object; blocks. Call it only if `check_store` found no fault.

    The right to write is enough for the log. A store that allows no DELETE keeps the probe, which
    always has the same key, and which no reader of the log takes for an object of it.
    """
    if settings.log_dir is not None or not settings.log_bucket:
        return []
    client = s3.s3_client(settings.s3_endpoint_url or None, settings.s3_region or None)
    try:
        return [*_probe(client, settings.log_bucket, settings.log_prefix + PROBE_NAME)]
    finally:
        client.close()


def _probe(client: Any, bucket: str, key: str) -> Iterator[Finding]:
    where = {"Bucket": bucket, "Key": key}
    md5 = base64.b64encode(hashlib.md5(PROBE_BODY).digest()).decode()
    put = {"Body": PROBE_BODY, "ContentMD5": md5, "ContentType": "text/plain"}
    if problem := _failure(lambda: client.put_object(**where, **put)):
        yield Finding(AREA, Level.PROBLEM, f"PUT s3://{bucket}/{key}: {problem}")
        return
    yield Finding(AREA, Level.OK, f"PUT of a probe object to s3://{bucket}/ works")
    for name, call in (
        ("GET", lambda: client.get_object(**where)["Body"].read()),
        ("DELETE", lambda: client.delete_object(**where)),
    ):
        if problem := _failure(call):
            text = f"{name} s3://{bucket}/{key}: {problem} (uploads work without it)"
            yield Finding(AREA, Level.WARNING, text)
        else:
            yield Finding(AREA, Level.OK, f"{name} of the probe object works")


def _failure(call: Callable[[], object]) -> str | None:
    """What went wrong, None if nothing did. A key that is gone was deleted by another's probe."""
    try:
        call()
    except Exception as error:
        if isinstance(error, ClientError) and s3.answered(error)[1] == "NoSuchKey":
            return None
        return s3.problem(error)
    return None
