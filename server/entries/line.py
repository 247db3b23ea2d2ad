"""One row as one line of JSON that every reader can read, whatever its texts hold.

A row is put together of parts that are encoded once each: a call's identity is the same bytes in
its request row, in the row for the case of a death and in its response row. Two things that a
client or a provider sends could spoil a whole folder for its readers, and are met here:

- A lone surrogate cannot be carried by every JSON reader, and becomes the six characters of its
  escape, as literal text. NUL likewise, but earlier, in `logged_text`: every text passes there.
- DuckDB refuses an object in which one line is over 16 MiB. A longer one is cut to half of that
  at its longest texts, each with a mark that tells its original length.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from open_llm_proxy.archive.entry import (
    Part,
    RequestFields,
    ResponseFields,
    RowType,
    TextFields,
    row_start,
)
from open_llm_proxy.archive.text import shortened
from open_llm_proxy.queue.entry import Entry

P = TypeVar("P", RequestFields, ResponseFields, TextFields)

MAX_LINE_BYTES = 8 * 1024 * 1024
# What stands before the part that may be long: queue_id and seq, and a call's identity.
_START_BYTES = 64 * 1024
_MAX_PART_BYTES = MAX_LINE_BYTES - _START_BYTES
_LIMITED_ELSEWHERE = ("messages_json", "params_json")
_LONGEST_CUT = 4 * 1024 * 1024
_SHORTEST_CUT = 64
_ENCODER = msgspec.json.Encoder()


def row_of(timestamp_ms: int, kind: RowType, *parts: bytes) -> Entry:
    """The entry as the queue takes it, of parts made by `encoded`, in the order of `PARTS`."""
    return Entry(
        b",".join([row_start(timestamp_ms, kind), *filter(None, parts)]) + b"}", timestamp_ms
    )


def encoded(part: Part) -> bytes:
    """The fields of a part as they stand in a row: JSON without the braces around it."""
    try:
        return _ENCODER.encode(part)[1:-1]
    except UnicodeEncodeError:
        return msgspec.json.encode(_writable_fields(part))[1:-1]


def encoded_within_line(part: P) -> bytes:
    """The fields of a part whose texts may be long, cut so that the row fits into a line."""
    fields = encoded(part)
    if len(fields) <= _MAX_PART_BYTES:
        return fields
    cut = min(_LONGEST_CUT, max(_text_lengths(part), default=0) // 2)
    while cut >= _SHORTEST_CUT:
        fields = encoded(_cut(part, cut))
        if len(fields) <= _MAX_PART_BYTES:
            return fields
        cut //= 2
    raise AssertionError("lists and texts that are limited elsewhere fit into a line")


def writable(text: str) -> str:
    """A text with NUL and lone surrogates spelled out as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")


def writable_value(value: Any) -> Any:
    """A value of JSON with such texts only; the names in its objects stay."""
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, list):
        return [writable_value(item) for item in value]
    if isinstance(value, dict):
        return {name: writable_value(item) for name, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return writable_value(msgspec.structs.asdict(value))
    return value


def _writable_fields(part: Part) -> dict[str, Any]:
    fields = msgspec.structs.asdict(part).items()
    return {name: writable_value(value) for name, value in fields if value is not None}


def _text_lengths(part: Part) -> Iterator[int]:
    """The lengths of all texts that may be cut."""
    for name, value in msgspec.structs.asdict(part).items():
        if name in _LIMITED_ELSEWHERE:
            continue
        if isinstance(value, str):
            yield len(value)
        elif isinstance(value, list):
            for item in value:
                yield from (len(text) for text in msgspec.structs.astuple(item) if text)


def _cut(part: P, max_characters: int) -> P:
    """The part with every text cut to so many characters."""
    changes: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(part).items():
        if name in _LIMITED_ELSEWHERE:
            continue
        if isinstance(value, str):
            changes[name] = shortened(value, max_characters)
        elif isinstance(value, list):
            changes[name] = [_cut_item(item, max_characters) for item in value]
    return msgspec.structs.replace(part, **changes)


def _cut_item(item: msgspec.Struct, max_characters: int) -> msgspec.Struct:
    fields = msgspec.structs.asdict(item)
    texts = {name: shortened(text, max_characters) for name, text in fields.items() if text}
    return msgspec.structs.replace(item, **texts)
