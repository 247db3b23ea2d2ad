"""What a queue is born with. It is stored in the file and binds whoever finishes it.

Were it taken from the settings of the moment, two owners of one file could cut its rows into
different objects, and the rows of a batch that was uploaded and not yet acknowledged would be
stored twice.

The limits are needed to finish the queue at all, and one CRC-32 covers them. Each text of the
log's format has a CRC-32 of its own: one that is damaged is left out, and costs nothing else.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from open_llm_proxy.queue.batches import (
    MAX_SECONDS,
    MIN_SECONDS,
    QUEUE_ID,
    SECONDS_PER_DAY,
    Batch,
    Run,
    check_window,
    object_name,
    utc,
    window_of,
)
from open_llm_proxy.queue.checksums import checksum, is_number, is_object_line
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.entry import LogFormat
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.schema import is_damage

LIMITS = ("queue_id", "window_seconds", "object_max_bytes", "created_at_ms")
OBJECT_MAX_BYTES = 5 * 10**9  # the largest object that S3 takes in one PUT
TEXTS = tuple(LogFormat.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Meta:
    """`born` fills in the id and the time. `damaged_texts` of the log's format are empty here."""

    window_seconds: int
    object_max_bytes: int
    log_format: LogFormat
    queue_id: str = ""
    created_at_ms: int = 0
    damaged_texts: tuple[str, ...] = ()

    def born(self, queue_id: str) -> "Meta":
        """That of a new queue; ValueError where windows of that length straddle midnight."""
        check_window(self.window_seconds)
        return replace(self, queue_id=queue_id, created_at_ms=time.time_ns() // 1_000_000)

    def batch(self, record: Sequence[Any]) -> Batch | None:
        """The batch of a row of table batches; None where that is damaged.

        The name of one that is still to be uploaded decides what is written where, so it must be
        a name of this queue's. That of an uploaded one is never used.
        """
        batch = Batch.of(record)
        if batch is None or batch.is_uploaded or self._is_own_name(batch):
            return batch
        return None

    def _is_own_name(self, batch: Batch) -> bool:
        start = window_of(batch.name)
        if start is None or start % self.window_seconds:
            return False
        return batch.name == object_name(start, self.queue_id, batch.first, batch.last, batch.md5)

    def object_head(self, start: int) -> bytes:
        """The first line of each object of the window that begins at `start`, as long for all."""
        if not self.log_format.head:
            return b""
        front = b'{"queue_id":"%b","seq":null,"timestamp":"%b",'
        own = (self.queue_id.encode("ascii"), utc(start * 1000).encode("ascii"))
        return front % own + self.log_format.head[1:] + b"\n"

    def interrupted_body(self, head: bytes) -> bytes:
        """The entry that closes a call after a death, from the head that its opening brought."""
        return head + (self.log_format.interrupted_tail or b"}")

    def run(self) -> Run:
        """The beginning of an object of this queue, which its head is in already."""
        return Run(self.window_seconds, self.object_max_bytes, len(self.object_head(0)))

    def rows(self) -> list[tuple[str, object]]:
        """The rows of table meta at birth; `closed_cleanly` is the only one that changes."""
        limits = [(name, getattr(self, name)) for name in LIMITS]
        return [*limits, ("crc32", self._crc32), ("closed_cleanly", 1)]

    def texts(self) -> list[tuple[str, int, bytes]]:
        """The rows of table log_format at birth."""
        texts = asdict(self.log_format)
        return [(name, checksum(texts[name], name), texts[name]) for name in TEXTS]

    @property
    def _crc32(self) -> int:
        return checksum(b"", *(getattr(self, name) for name in LIMITS))

    @classmethod
    def read(cls, database: Database) -> "Meta":
        """What the file says; raises `NotAQueue` where its limits are damaged."""
        found = dict(database.rows("SELECT name, value FROM meta"))
        texts = _intact_texts(database)
        try:
            meta = cls(
                **{name: found[name] for name in LIMITS},
                log_format=LogFormat(**{name: texts.get(name, b"") for name in TEXTS}),
                damaged_texts=tuple(name for name in TEXTS if name not in texts),
            )
        except KeyError as error:
            raise NotAQueue(f"the queue's own description lacks {error}") from error
        if found.get("crc32") != meta._crc32:
            raise NotAQueue("the queue's own description does not match its CRC-32")
        meta._check()
        return meta

    def _check(self) -> None:
        """A checksum proves that something was written, and not that a server of ours wrote it."""
        is_id = isinstance(self.queue_id, str) and QUEUE_ID.fullmatch(self.queue_id)
        is_window = is_number(self.window_seconds, 1, SECONDS_PER_DAY)
        if not (
            is_id
            and is_window
            and SECONDS_PER_DAY % self.window_seconds == 0
            and is_number(self.object_max_bytes, 1, OBJECT_MAX_BYTES)
            and is_number(self.created_at_ms, MIN_SECONDS * 1000, MAX_SECONDS * 1000)
        ):
            raise NotAQueue("the queue's own description holds values that no queue has")


def _intact_texts(database: Database) -> dict[str, bytes]:
    try:
        rows = database.rows("SELECT name, crc32, body FROM log_format")
    except Exception as error:
        if not is_damage(error):
            raise
        return {}
    return {
        name: body
        for name, crc32, body in rows
        if checksum(body, name) == crc32 and _is_text_of_the_format(name, body)
    }


def _is_text_of_the_format(name: object, body: object) -> bool:
    if not isinstance(body, bytes):
        return False
    if name == "head" and not body:
        return True  # objects of this queue have none
    return is_object_line(b'{"a":1' + body if name == "interrupted_tail" else body)
