"""What a queue was born with. It is stored in the file and binds whoever finishes it.

Were it taken from the settings of the moment, two owners of one file could cut its rows into
different objects, and the rows of a batch that was uploaded and not yet acknowledged would be
stored twice.
"""

from dataclasses import asdict, dataclass, fields

from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.errors import NotAQueue


@dataclass(frozen=True, slots=True)
class Meta:
    """The fixed part of table meta. `damaged_body` is the entry that stands for a lost row."""

    queue_id: str
    window_seconds: int
    object_max_bytes: int
    damaged_body: bytes
    created_at_ms: int

    @property
    def crc32(self) -> int:
        return checksum(b"", *asdict(self).values())

    def rows(self) -> list[tuple[str, object]]:
        """The rows of table meta at birth; `closed_cleanly` is the only one that changes."""
        return [*asdict(self).items(), ("crc32", self.crc32), ("closed_cleanly", 1)]

    @classmethod
    def read(cls, database: Database) -> "Meta":
        """What stands in the file; raises `NotAQueue` where it is damaged."""
        found = dict(database.rows("SELECT name, value FROM meta"))
        try:
            meta = cls(**{field.name: found[field.name] for field in fields(cls)})
        except KeyError as error:
            raise NotAQueue(f"the queue's own description lacks {error}") from error
        if found.get("crc32") != meta.crc32:
            raise NotAQueue("the queue's own description does not match its CRC-32")
        return meta
