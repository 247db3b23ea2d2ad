"""Batches: which rows go into one object, and what the object is called.

A batch is a contiguous range of seq whose rows lie in one window of the entries' own time.
Its name holds the window, the queue, the range and the MD5 of its bytes, all taken from the
file and none from the clock of the moment: **the same name means the same bytes**, so a
repeated PUT is harmless, and two copies of a queue that went different ways cannot overwrite
each other's objects.
"""

import base64
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

SECONDS_PER_DAY = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a name can hold: years 1 to 9999.
MIN_SECONDS = -62_135_596_800
MAX_SECONDS = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Batch:
    """A sealed range of rows, as it is stored in the queue's file."""

    first: int
    last: int
    name: str
    md5: bytes
    bytes: int
    # The sink that may already hold the object; None while no attempt can have reached one.
    sink: str | None

    @property
    def rows(self) -> int:
        return self.last - self.first + 1

    def on(self, sink: str | None) -> "Batch":
        """The same batch, with `sink` as the one that may hold it."""
        return replace(self, sink=sink)

    @property
    def content_md5(self) -> str:
        """The value of the Content-MD5 header (RFC 1864) of this batch's bytes."""
        return base64.b64encode(self.md5).decode("ascii")


def window_start(timestamp_ms: int, window_seconds: int) -> int:
    """The start, in seconds since the epoch, of the window that holds `timestamp_ms`."""
    seconds = min(max(timestamp_ms // 1000, MIN_SECONDS), MAX_SECONDS)
    return seconds - seconds % window_seconds


def utc_moment(timestamp_ms: int) -> datetime:
    """`timestamp_ms` as a datetime; what lies beyond its years becomes their edge."""
    limited = min(max(timestamp_ms, MIN_SECONDS * 1000), MAX_SECONDS * 1000)
    return EPOCH + timedelta(milliseconds=limited)


def object_name(start: int, queue_id: str, first: int, last: int, md5: bytes) -> str:
    """``YYYY-MM-DD/HH-MM-SS-<queue_id>-<first>-<last>-<md5>.jsonl``, times in UTC."""
    moment = utc_moment(start * 1000).isoformat(timespec="seconds")
    window = moment.removesuffix("+00:00").replace("T", "/").replace(":", "-")
    return f"{window}-{queue_id}-{first:010d}-{last:010d}-{_digest(md5)}.jsonl"


def renamed(name: str, md5: bytes) -> str:
    """`name` with the MD5 of other bytes in it; window, queue and range stay."""
    return f"{name[: name.rindex('-') + 1]}{_digest(md5)}.jsonl"


def _digest(md5: bytes) -> str:
    return md5.hex()[:12]


def check_window(window_seconds: int) -> int:
    """`window_seconds` if windows of that length never straddle midnight, else ValueError."""
    if window_seconds < 1 or SECONDS_PER_DAY % window_seconds:
        raise ValueError(
            f"a window of {window_seconds} s does not divide a day: "
            "use a divisor of 86400 such as 60, 300 or 3600"
        )
    return window_seconds


@dataclass(slots=True)
class TailRun:
    """The newest run of rows of one window: later rows of a living queue may still join it.

    It is finished when a row of another window follows, or one window's length after its first
    row by the monotonic clock, so that a clock that was set back cannot hold rows for ever.
    """

    window_seconds: int
    first: int | None = None
    start: int = 0
    size_bytes: int = 0
    since: float = 0.0

    def join(self, seq: int, timestamp_ms: int, size_bytes: int, now: float) -> None:
        """Row `seq` was committed at `now` (monotonic seconds)."""
        start = window_start(timestamp_ms, self.window_seconds)
        if self.first is None or start != self.start:
            self.first, self.start, self.size_bytes, self.since = seq, start, 0, now
        self.size_bytes += size_bytes

    def sealed(self, last: int, newest: int, size_bytes: int) -> None:
        """The rows up to `last`, of `size_bytes`, went into a batch; `newest` is the last row.

        Rows are left only where the batch was cut at the object's size.
        """
        if self.first is not None and last >= self.first:
            self.size_bytes = max(0, self.size_bytes - size_bytes)
            self.first = last + 1 if last < newest else None

    def is_aged(self, now: float) -> bool:
        return self.first is not None and now - self.since >= self.window_seconds
