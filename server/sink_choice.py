"""Where log objects are uploaded to, decided once at start from the settings."""

from functools import partial
from pathlib import Path

from open_llm_proxy.archive.sources.cache import DOWNLOADS
from open_llm_proxy.archive.sources.source import Environment
from open_llm_proxy.queue.orphans.replay_target import SinkUnavailable
from open_llm_proxy.queue.s3 import has_s3_credentials, s3_client
from open_llm_proxy.queue.sinks import (
    DirectorySink,
    S3Sink,
    Sink,
    parse_s3_url,
)
from open_llm_proxy.server.settings import Settings

NO_SINK = "LOG_BUCKET and LOG_DIR are not set: log entries go to stdout only and are not stored"
NO_CREDENTIALS = (
    "LOG_BUCKET is set without S3 credentials: log entries go to stdout only and are not stored; "
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
READER_ATTEMPTS = 3


def choose_sink(settings: Settings) -> Sink | str:
    """The configured sink, or the reason why there is none, and thus no queue either."""
    if settings.log_dir is not None:
        return DirectorySink(settings.log_dir)
    if not settings.log_bucket:
        return NO_SINK
    if not has_s3_credentials():
        return NO_CREDENTIALS
    return _s3_sink(settings, settings.log_bucket, settings.log_prefix)


def open_sink(identity: str, settings: Settings) -> Sink:
    """The sink that a queue's file names: ``s3://bucket/prefix`` or ``dir:/path``.

    It uses the credentials and the endpoint of this environment. Raises `SinkUnavailable`, also for
    a directory that does not exist, since it may be one of another machine.
    """
    if identity.startswith("dir:"):
        path = Path(identity.removeprefix("dir:"))
        if not path.is_dir():
            raise SinkUnavailable("this directory does not exist here")
        return DirectorySink(path)
    try:
        bucket, prefix = parse_s3_url(identity)
    except ValueError:
        raise SinkUnavailable("must be s3://bucket/prefix or dir:/path") from None
    if not has_s3_credentials():
        raise SinkUnavailable("no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return _s3_sink(settings, bucket, prefix)


def reader_environment(settings: Settings) -> Environment:
    """Where readers find the log that this environment's server uploads."""
    source = f"s3://{settings.log_bucket}/{settings.log_prefix}" if settings.log_bucket else None
    if settings.log_dir is not None:
        source = str(settings.log_dir)
    return Environment(
        source,
        partial(
            s3_client,
            settings.s3_endpoint_url or None,
            settings.s3_region or None,
            attempts=READER_ATTEMPTS,
            max_connections=DOWNLOADS,
        ),
    )


def _s3_sink(settings: Settings, bucket: str, prefix: str) -> S3Sink:
    return S3Sink(
        bucket,
        prefix,
        endpoint_url=settings.s3_endpoint_url or None,
        region=settings.s3_region or None,
    )
