"""One entry as one line of JSON that every reader can read, whatever its texts hold.

Three things that a client or a provider sends could spoil a whole folder for its readers, and
each is met here, where every row passes:

- DuckDB types a column of strings by the first files that it samples, as UUID, date, time or
  timestamp if all look like one, and the first other string then fails the query. So a string
  that it could take for one of these gets a visible prefix, `id:` for ids and `text:` for all
  else; `unmarked` takes it off. Strings are never typed as numbers or booleans.
- A lone surrogate or NUL cannot be carried by every JSON reader, and becomes the six characters
  of its escape, as literal text.
- DuckDB refuses an object in which one line is over 16 MiB. A longer one is cut to half of that
  at its longest texts, each with a mark that tells its original length.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from open_llm_proxy.archive.entry import LogEntry
from open_llm_proxy.archive.marks import needs_mark
from open_llm_proxy.archive.text import cut_text
from open_llm_proxy.queue.entry import Entry

MAX_LINE_BYTES = 8 * 1024 * 1024
_QUEUE_FIELDS_BYTES = 128  # queue_id and seq, which the queue puts in front
_MAX_BODY_BYTES = MAX_LINE_BYTES - _QUEUE_FIELDS_BYTES

# Made here or set by the operator in a form that is never typed; `timestamp` is meant to be.
_OWN_FIELDS = ("timestamp", "type", "request_id", "proxy_version", "outcome")
_IDS = frozenset({"session_id", "upstream_request_id", "tool_call_id", "id"})
_TEXT_FIELDS = tuple(name for name in LogEntry.__struct_fields__ if name not in _OWN_FIELDS)
_CUT_FIELDS = tuple(name for name in _TEXT_FIELDS if name != "messages_json")
_LONGEST_CUT = 4 * 1024 * 1024
_SHORTEST_CUT = 64


def encode(entry: LogEntry, timestamp_ms: int) -> Entry:
    """The entry as the queue takes it: one line of JSON without its queue_id and seq."""
    lengths = list(_text_lengths(entry))
    fixed = len(entry.messages_json or "")
    cut = min(_LONGEST_CUT, max(lengths, default=0) // 2)
    body = b""
    # No character takes less than a byte, so what is too long in characters is not even encoded.
    if fixed + sum(lengths) <= _MAX_BODY_BYTES:
        body = _encoded(_marked_entry(entry))
    while not 0 < len(body) <= _MAX_BODY_BYTES and cut >= _SHORTEST_CUT:
        if fixed + sum(min(length, cut) for length in lengths) <= _MAX_BODY_BYTES:
            body = _encoded(_marked_entry(_cut_entry(entry, cut)))
        cut //= 2
    if not 0 < len(body) <= _MAX_BODY_BYTES:
        bare = msgspec.structs.replace(entry, messages_json=None)
        body = _encoded(_marked_entry(_cut_entry(bare, _SHORTEST_CUT)))
    return Entry(body, timestamp_ms)


def _marked(name: str, text: str) -> str:
    if not needs_mark(text):
        return text
    return f"id:{text}" if name in _IDS else f"text:{text}"


def _marked_entry(entry: LogEntry) -> LogEntry:
    changes: dict[str, Any] = {}
    for name in _TEXT_FIELDS:
        value = getattr(entry, name)
        if isinstance(value, str):
            marked: Any = _marked(name, value)
        elif isinstance(value, list):
            marked = [_marked_item(item) for item in value]
        else:
            continue
        if marked is not value:
            changes[name] = marked
    return msgspec.structs.replace(entry, **changes) if changes else entry


def _marked_item(item: msgspec.Struct) -> msgspec.Struct:
    fields = msgspec.structs.asdict(item)
    texts = {name: _marked(name, text) for name, text in fields.items() if text is not None}
    return msgspec.structs.replace(item, **texts)


def _encoded(entry: LogEntry) -> bytes:
    try:
        body = msgspec.json.encode(entry)
        if b"\\u0000" in body:
            body = msgspec.json.encode(writable(msgspec.to_builtins(entry)))
    except UnicodeEncodeError:
        body = msgspec.json.encode(writable(msgspec.structs.asdict(entry)))
    return body


def writable(value: object) -> object:
    """A value of JSON with NUL and lone surrogates in its texts spelled out as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")
    if isinstance(value, list):
        return [writable(item) for item in value]
    if isinstance(value, dict):
        return {name: writable(item) for name, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return writable(msgspec.structs.asdict(value))
    return value


def _text_lengths(entry: LogEntry) -> Iterator[int]:
    """The lengths of all texts that may be cut."""
    for name in _CUT_FIELDS:
        value = getattr(entry, name)
        if isinstance(value, str):
            yield len(value)
        elif isinstance(value, list):
            for item in value:
                yield from (len(text) for text in msgspec.structs.astuple(item) if text)


def _cut_entry(entry: LogEntry, max_characters: int) -> LogEntry:
    """The entry with every text cut to so many characters; `messages_json` has its own limit."""
    changes: dict[str, Any] = {}
    for name in _CUT_FIELDS:
        value = getattr(entry, name)
        if isinstance(value, str):
            changes[name] = cut_text(value, max_characters)
        elif isinstance(value, list):
            changes[name] = [_cut_item(item, max_characters) for item in value]
    return msgspec.structs.replace(entry, **changes)


def _cut_item(item: msgspec.Struct, max_characters: int) -> msgspec.Struct:
    fields = msgspec.structs.asdict(item)
    texts = {name: cut_text(text, max_characters) for name, text in fields.items() if text}
    return msgspec.structs.replace(item, **texts)
