"""CRC-32 over every row of every table, as SQLite does not notice a flipped bit inside a row.

`PRAGMA integrity_check` calls a file with a changed row sound. So each row carries a checksum of
its other columns, and a log row is believed by its own line: it names its queue and its seq.
"""

import zlib
from collections.abc import Sequence


def checksum(body: object, *fields: object) -> int:
    """CRC-32 over the other columns of a table's row: its large one first, then the rest.

    Takes whatever a damaged file may hold, of any type.
    """
    if not isinstance(body, bytes):
        return -1
    return zlib.crc32(body, zlib.crc32(repr(fields).encode("utf-8", "surrogateescape")))


def is_batch_intact(record: Sequence[object]) -> bool:
    """Whether a row of table batches, in the order of its columns, is what was written there."""
    return checksum(b"", *record[:-1]) == record[-1]


def seq_of(queue_id: str, timestamp_ms: object, crc32: object, line: object) -> int | None:
    """The seq that an intact line names, wherever in the file it was found; None if damaged."""
    if not isinstance(line, bytes) or checksum(line, timestamp_ms) != crc32:
        return None
    front = b'{"queue_id":"%b","seq":' % queue_id.encode()
    digits = line[len(front) : 64].partition(b",")[0]
    return int(digits) if line.startswith(front) and digits.isdigit() else None
