"""Sizes and times as people read them."""

from rich.filesize import decimal

from open_llm_proxy.queue.batches import utc_moment


def size(size_bytes: int) -> str:
    """``12.3 MB``, in powers of 1000."""
    return decimal(size_bytes)


def iso_time(timestamp_ms: int | None) -> str | None:
    """UTC, ISO 8601, to the second."""
    if timestamp_ms is None:
        return None
    return utc_moment(timestamp_ms).isoformat(timespec="seconds").replace("+00:00", "Z")
