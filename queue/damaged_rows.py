"""What replaces a log row that was lost: a `damaged` row that takes its seq.

Every seq of a queue reaches the store. Where a row does not match its CRC-32, or is missing
although it was committed, a row of type `damaged` is stored in its place and says what is known;
the raw bytes go to `quarantine/`.
"""

import json
from pathlib import Path

from open_llm_proxy.queue.batches import utc
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.durable_files import quarantine
from open_llm_proxy.queue.entry import finished_line
from open_llm_proxy.queue.meta import Meta

# Where the queue's own is damaged too.
BARE_BODY = b'{"timestamp":null,"type":"damaged","error":null}'


class Damage:
    """Makes the rows that replace lost ones in one queue, and keeps what was found there.

    They are made of the `damaged_body` that was stored when the queue was made: of the log's
    format the queue knows no more than that `timestamp` and `error` are filled in here. `rows`
    counts what could not be kept.
    """

    def __init__(self, root: Path, meta: Meta) -> None:
        self.rows = 0
        self._root = root
        self._queue_id = meta.queue_id
        self._template = meta.log_format.damaged_body or BARE_BODY

    def body(self, subject: str, timestamp_ms: int, reason: str) -> bytes:
        """The entry that replaces `subject`, as in "row 7 of this queue"."""
        fields = json.loads(self._template)
        fields["timestamp"] = utc(timestamp_ms)
        fields["error"] = f"{subject} is damaged: {reason}"
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()

    def line(self, seq: int, timestamp_ms: int, reason: str) -> bytes:
        """The finished line that replaces row `seq`.

        `timestamp_ms` is a neighbour's, as the row's own may be what is damaged.
        """
        body = self.body(f"row {seq} of this queue", timestamp_ms, reason)
        return finished_line(self._queue_id, seq, body)

    def keep(self, name: str, raw: object) -> Path:
        """Keep what was found, as it was found, for a person to look at."""
        if isinstance(raw, str):
            raw = raw.encode("utf-8", "surrogateescape")
        kept = raw if isinstance(raw, bytes) else repr(raw).encode("utf-8", "surrogateescape")
        return quarantine(self._root, f"{self._queue_id}-{name}", kept)


def neighbour_ms(database: Database, meta: Meta, seq: int, table: str = "rows") -> int:
    """The time of the row before `seq`, else of the one behind it, else of the queue's birth."""
    for query in ("< ? ORDER BY seq DESC", "> ? ORDER BY seq"):
        for (timestamp_ms,) in database.rows(
            f"SELECT timestamp_ms FROM {table} WHERE seq {query} LIMIT 1", seq
        ):
            if isinstance(timestamp_ms, int):
                return timestamp_ms
    return meta.created_at_ms
