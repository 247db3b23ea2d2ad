"""Reading rows back, in slices of bounded size, and believing none of them unseen."""

import logging
from dataclasses import dataclass

from open_llm_proxy.queue.checksums import checksum, seq_of
from open_llm_proxy.queue.damaged_rows import Damage, neighbour_ms
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.errors import NeedsRepair
from open_llm_proxy.queue.meta import Meta

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredRow:
    seq: int
    timestamp_ms: int
    line: bytes


class RowReader:
    """Reads one queue's rows."""

    def __init__(self, database: Database, meta: Meta, damage: Damage) -> None:
        self._database = database
        self._meta = meta
        self._damage = damage

    def read(self, first: int, limit: int, max_bytes: int) -> list[StoredRow]:
        """Rows from seq `first` to at most `limit`, up to about `max_bytes` and at least one.

        Every row's CRC-32 and the continuity of seq are checked. A row that is bad is replaced
        in the file by a `damaged` row before anything is returned; `NeedsRepair` is raised
        where a row is not in its place.
        """
        rows: list[StoredRow] = []
        bad: list[tuple[StoredRow, object]] = []
        size = 0
        cursor = self._database.iterate(
            "SELECT seq, timestamp_ms, crc32, line FROM rows WHERE seq BETWEEN ? AND ?"
            " ORDER BY seq",
            first,
            limit,
        )
        try:
            for seq, timestamp_ms, crc32, line in cursor:
                expected = first + len(rows)
                named = seq_of(self._meta.queue_id, timestamp_ms, crc32, line)
                if seq != expected or named not in (None, expected):
                    raise NeedsRepair(f"row {seq} is where row {expected} belongs")
                if named is None:
                    rows.append(self._replacement(seq, rows))
                    bad.append((rows[-1], line))
                else:
                    rows.append(StoredRow(seq, timestamp_ms, line))
                size += len(rows[-1].line)
                if size >= max_bytes:
                    break
            else:
                if first + len(rows) <= limit:
                    raise NeedsRepair(f"rows {first + len(rows)} to {limit} are missing")
        finally:
            cursor.close()
        if bad:
            self._replace(bad)
        return rows

    def _replacement(self, seq: int, before: list[StoredRow]) -> StoredRow:
        if before:
            timestamp_ms = before[-1].timestamp_ms
        else:
            timestamp_ms = neighbour_ms(self._database, self._meta, seq)
        line = self._damage.line(seq, timestamp_ms, "its CRC-32 does not match")
        return StoredRow(seq, timestamp_ms, line)

    def _replace(self, bad: list[tuple[StoredRow, object]]) -> None:
        for row, raw in bad:
            path = self._damage.keep(f"{row.seq:010d}.row", raw)
            log.error("Row %d of queue %s is damaged, see %s", row.seq, self._meta.queue_id, path)
        with self._database.transaction() as execute_many:
            execute_many(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                [
                    (row.seq, row.timestamp_ms, checksum(row.line, row.timestamp_ms), row.line)
                    for row, _ in bad
                ],
            )
        self._damage.rows += len(bad)
