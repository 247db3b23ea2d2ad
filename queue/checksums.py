"""CRC-32 over every row of every table, as SQLite does not notice a flipped bit inside a row.

`PRAGMA integrity_check` calls a file with a changed row sound. So each row carries a checksum of
its other columns, and a log row is believed by its own line: it names its queue and its seq.
"""

import json
import zlib
from collections.abc import Sequence

# What seq can be: JSON's readers know whole numbers up to here.
MAX_SEQ = (1 << 53) - 1
MAX_SEQ_DIGITS = 15


def checksum(body: object, *fields: object) -> int:
    """CRC-32 over the other columns of a table's row: its large one first, then the rest.

    Takes whatever a damaged file may hold, of any type.
    """
    if not isinstance(body, bytes):
        return -1
    return zlib.crc32(body, zlib.crc32(repr(fields).encode("utf-8", "surrogateescape")))


def is_number(value: object, least: int, most: int) -> bool:
    """Whether `value` is a whole number within these bounds; a checksum proves no meaning."""
    return type(value) is int and least <= value <= most


def is_object_line(text: bytes) -> bool:
    """Whether `text` is one JSON object on one line."""
    try:
        return b"\n" not in text and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def is_batch_intact(record: Sequence[object]) -> bool:
    """Whether a row of table batches, in the order of its columns, is what is written there."""
    if checksum(b"", *record[:-1]) != record[-1]:
        return False
    first, last, name, md5, size_bytes, sink, uploaded, _ = record
    return (
        is_number(first, 1, MAX_SEQ)
        and is_number(last, 1, MAX_SEQ)
        and first <= last  # type: ignore[operator]
        and is_number(size_bytes, 0, MAX_SEQ)
        and is_number(uploaded, 0, 1)
        and isinstance(name, str)
        and isinstance(md5, bytes)
        and isinstance(sink, str | None)
    )


def is_call_intact(seq: object, timestamp_ms: object, crc32: object, head: object) -> bool:
    """Whether a row of table open_calls is what is written there."""
    is_sane = is_number(seq, 1, MAX_SEQ) and type(timestamp_ms) is int and isinstance(head, bytes)
    return is_sane and checksum(head, seq, timestamp_ms) == crc32


def seq_of(queue_id: str, timestamp_ms: object, crc32: object, line: object) -> int | None:
    """The seq that an intact line names, wherever in the file it was found; None if damaged."""
    if not isinstance(line, bytes) or checksum(line, timestamp_ms) != crc32:
        return None
    if type(timestamp_ms) is not int or line.find(b"\n") != len(line) - 1:
        return None
    front = b'{"queue_id":"%b","seq":' % queue_id.encode()
    digits = line[len(front) : 64].partition(b",")[0]
    if not line.startswith(front) or not digits.isdigit() or len(digits) > MAX_SEQ_DIGITS:
        return None
    return int(digits)
