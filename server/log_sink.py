"""Where this deployment's log goes, decided once at start from the settings."""

from open_llm_proxy.queue.sinks import DirectorySink, S3Sink, Sink, has_s3_credentials
from open_llm_proxy.server.settings import Settings

NO_SINK = "neither LOG_BUCKET nor LOG_DIR is set: entries go to stdout only and are kept nowhere"
NO_CREDENTIALS = (
    "LOG_BUCKET is set but there are no S3 credentials (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY): entries go to stdout only and are kept nowhere"
)


def choose_sink(settings: Settings) -> Sink | str:
    """The configured sink, or the reason why there is none and no queue either."""
    if settings.log_dir is not None:
        return DirectorySink(settings.log_dir)
    if not settings.log_bucket:
        return NO_SINK
    if not has_s3_credentials():
        return NO_CREDENTIALS
    return S3Sink(
        settings.log_bucket,
        settings.log_prefix,
        endpoint_url=settings.s3_endpoint_url or None,
        region=settings.s3_region or None,
    )
