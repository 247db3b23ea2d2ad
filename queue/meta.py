"""What a queue is born with. It is stored in the file and binds whoever finishes it.

Were it taken from the settings of the moment, two owners of one file could cut its rows into
different objects, and the rows of a batch that was uploaded and not yet acknowledged would be
stored twice.
"""

import time
from dataclasses import asdict, dataclass, fields, replace

from open_llm_proxy.queue.batches import Run, Tail, check_window
from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.errors import NotAQueue


@dataclass(frozen=True, slots=True)
class Meta:
    """The fixed part of table meta; `born` fills in the last two.

    `damaged_body` is the ready-made entry that stands for a row found damaged later, see
    damaged_rows.py: the queue itself does not know the log's schema.
    """

    window_seconds: int
    object_max_bytes: int
    damaged_body: bytes
    queue_id: str = ""
    created_at_ms: int = 0

    def born(self, queue_id: str) -> "Meta":
        """That of a new queue; ValueError where windows of that length straddle midnight."""
        check_window(self.window_seconds)
        return replace(self, queue_id=queue_id, created_at_ms=time.time_ns() // 1_000_000)

    def run(self) -> Run:
        """The beginning of an object of this queue."""
        return Run(self.window_seconds, self.object_max_bytes)

    def tail(self) -> Tail:
        return Tail(self.window_seconds, self.object_max_bytes)

    @property
    def crc32(self) -> int:
        return checksum(b"", *asdict(self).values())

    def rows(self) -> list[tuple[str, object]]:
        """The rows of table meta at birth; `closed_cleanly` is the only one that changes."""
        return [*asdict(self).items(), ("crc32", self.crc32), ("closed_cleanly", 1)]

    @classmethod
    def read(cls, database: Database) -> "Meta":
        """What the file says; raises `NotAQueue` where it is damaged."""
        found = dict(database.rows("SELECT name, value FROM meta"))
        try:
            meta = cls(**{field.name: found[field.name] for field in fields(cls)})
        except KeyError as error:
            raise NotAQueue(f"the queue's own description lacks {error}") from error
        if found.get("crc32") != meta.crc32:
            raise NotAQueue("the queue's own description does not match its CRC-32")
        return meta
