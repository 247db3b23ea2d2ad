"""Batches: which rows go into one object, and what the object is called.

A batch is a contiguous range of seq whose rows lie in one window of the entries' own time.
Its name holds the window, the queue, the range and the MD5 of its bytes, all taken from the
file and none from the clock of the moment: **the same name means the same bytes**, so a
repeated PUT is harmless, and two copies of a queue that went different ways cannot overwrite
each other's objects.

`Run` is the rule by which rows are cut into batches, and there is no other. The living owner, who
knows its newest rows by `Tail`, whoever finishes a dead queue, and a dry run all cut by it.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from open_llm_proxy.queue.checksums import checksum, is_batch_intact

SECONDS_PER_DAY = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a name can hold: years 1 to 9999.
QUEUE_ID = re.compile(r"[0-9a-f]{16}")
MIN_SECONDS = -62_135_596_800
MAX_SECONDS = 253_402_300_799
OBJECT_NAME = re.compile(
    r"(\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d)-([0-9a-f]{16})-\d{10,}-\d{10,}-[0-9a-f]{12}\.jsonl"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """A sealed range of rows, as the queue's file has it in its table `batches`."""

    first: int
    last: int
    name: str
    md5: bytes
    bytes: int
    # The sink that may already hold the object; None while no attempt can have reached one.
    sink: str | None
    is_uploaded: bool = False

    @property
    def rows(self) -> int:
        return self.last - self.first + 1

    @property
    def content_md5(self) -> str:
        """The value of the Content-MD5 header (RFC 1864) of this batch's bytes."""
        return base64.b64encode(self.md5).decode("ascii")

    @property
    def record(self) -> tuple[object, ...]:
        """Its row of table batches, the CRC-32 last."""
        fields = (self.first, self.last, self.name, self.md5, self.bytes, self.sink)
        uploaded = int(self.is_uploaded)
        return (*fields, uploaded, checksum(b"", *fields, uploaded))

    @classmethod
    def of(cls, record: Sequence[Any]) -> "Batch | None":
        """The batch of a row of table batches; None where that does not match its CRC-32."""
        if not is_batch_intact(record):
            return None
        first, last, name, md5, size_bytes, sink, uploaded, _ = record
        return cls(first, last, name, md5, size_bytes, sink, bool(uploaded))


@dataclass(slots=True)
class Run:
    """Rows that follow each other and go into one object: of one window, up to a size.

    This is the cutting rule. `size_bytes` is that of the object so far, its head included. A
    single row always fits, however large it is.
    """

    window_seconds: int
    max_bytes: int
    size_bytes: int
    rows: int = 0
    start: int = 0

    def add(self, timestamp_ms: int, size_bytes: int) -> bool:
        """Take the next row in; False where the run is complete and the row begins another."""
        start = window_start(timestamp_ms, self.window_seconds)
        is_too_big = self.size_bytes + size_bytes > self.max_bytes
        if self.rows and (start != self.start or is_too_big):
            return False
        self.start = start
        self.size_bytes += size_bytes
        self.rows += 1
        return True


class Tail:
    """The newest run of a living queue, which later rows may still join.

    It is finished when a row begins another run, or one window's length after its first row by
    the monotonic clock, so that a clock that was set back cannot hold rows for ever.
    """

    def __init__(self, new_run: Callable[[], Run]) -> None:
        self.first: int | None = None
        self._new_run = new_run
        self._run = new_run()
        self._since = 0.0

    def add(self, seq: int, timestamp_ms: int, size_bytes: int, now: float) -> None:
        """Row `seq` was committed at `now` (monotonic seconds)."""
        if self.first is not None and self._run.add(timestamp_ms, size_bytes):
            return
        self._run = self._new_run()
        self._run.add(timestamp_ms, size_bytes)
        self.first, self._since = seq, now

    def sealed(self, batch: Batch, newest: int) -> None:
        """`batch` was sealed; `newest` is the last row, which may have come while it was read."""
        if self.first is None or batch.last < self.first:
            return
        self.first = batch.last + 1 if batch.last < newest else None
        self._run.rows = newest - batch.last
        # The rows behind the batch, and the head of an object of their own.
        rows_bytes = max(0, self._run.size_bytes - batch.bytes)
        self._run.size_bytes = self._new_run().size_bytes + rows_bytes

    def is_aged(self, now: float) -> bool:
        return self.first is not None and now - self._since >= self._run.window_seconds


def window_start(timestamp_ms: int, window_seconds: int) -> int:
    """The start, in seconds since the epoch, of the window that holds `timestamp_ms`."""
    seconds = min(max(timestamp_ms // 1000, MIN_SECONDS), MAX_SECONDS)
    return seconds - seconds % window_seconds


def check_window(window_seconds: int) -> int:
    """`window_seconds` if windows of that length never straddle midnight, else ValueError."""
    if window_seconds < 1 or SECONDS_PER_DAY % window_seconds:
        raise ValueError(
            f"a window of {window_seconds} s does not divide a day: "
            "use a divisor of 86400 such as 60, 300 or 3600"
        )
    return window_seconds


def utc_moment(timestamp_ms: int) -> datetime:
    """`timestamp_ms` as a datetime; what lies beyond its years becomes their edge."""
    limited = min(max(timestamp_ms, MIN_SECONDS * 1000), MAX_SECONDS * 1000)
    return EPOCH + timedelta(milliseconds=limited)


def utc(timestamp_ms: int) -> str:
    """``2026-11-26T01:58:51.000Z``: a time as the log has it."""
    return utc_moment(timestamp_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def object_name(start: int, queue_id: str, first: int, last: int, md5: bytes) -> str:
    """``YYYY-MM-DD/HH-MM-SS-<queue_id>-<first>-<last>-<md5>.jsonl``, times in UTC."""
    window = utc(start * 1000)[:19].replace("T", "/").replace(":", "-")
    return f"{window}-{queue_id}-{first:010d}-{last:010d}-{_digest(md5)}.jsonl"


def window_of(name: str) -> int | None:
    """The start, in seconds since the epoch, of the window that an object's name begins with.

    None where it is not the form of an object's name, such as a path that leads elsewhere.
    """
    found = OBJECT_NAME.fullmatch(name)
    try:
        moment = datetime.strptime(found[1], "%Y-%m-%d/%H-%M-%S") if found is not None else None
    except ValueError:
        return None  # a day that no month has
    return (moment.replace(tzinfo=UTC) - EPOCH) // timedelta(seconds=1) if moment else None


def renamed(name: str, md5: bytes) -> str:
    """`name` with the MD5 of other bytes in it; window, queue and range stay."""
    return f"{name[: name.rindex('-') + 1]}{_digest(md5)}.jsonl"


def _digest(md5: bytes) -> str:
    return md5.hex()[:12]
