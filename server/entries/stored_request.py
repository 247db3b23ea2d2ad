"""All of a request as JSON, for ``full`` capture, so that the call can be asked again.

What is stored is what the client sent, redacted, with two things taken out because they would be
most of the log: the data of images, sounds and files, described in place, and the list of tools
and long system texts, which are rows of their own and are named here by their hash. LOGGING.md has
the ten lines that put it together again.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from open_llm_proxy.archive.text import cut_mark, shortened
from open_llm_proxy.server.entries.capture import REDACTED_BEYOND, logged_text
from open_llm_proxy.server.entries.line import writable_value
from open_llm_proxy.server.entries.stored_texts import TextHashes
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.redaction.redactor import TextRedactor
from open_llm_proxy.server.transcript.content_parts import describe_part

LONG_TEXT_CHARACTERS = 512
SYSTEM_ROLES = ("system", "developer")
# Of a line's 8 MiB the rest is for the row's other texts.
MAX_MESSAGES_BYTES = 5 * 1024 * 1024
MAX_PARAMS_BYTES = 1024 * 1024
_MESSAGES_FIELDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_MAX_NODES = 200_000
_TEXT_NAME = "text_sha256"
_MAX_TEXT_CHARACTERS = 4 * 1024 * 1024
_SHORTEST_CUT = 200
_DATA_NAMES = ("data", "file_data", "result", "b64_json")
_MIN_DATA_CHARACTERS = 256
_MEDIA_NAMES = ("media_type", "mime_type", "format")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]*={0,2}\s*")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.=-]+)*;base64,[A-Za-z0-9+/_\r\n-]*={0,2}\s*")


# Escapes of JSON that not every reader takes: a surrogate, and NUL.
_UNREADABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


@dataclass(slots=True)
class StoredRequest:
    """What `full` stores of a body; `texts` are those that it names, by hash."""

    messages_json: str | None = None
    params_json: str | None = None
    texts: dict[str, str] = field(default_factory=dict)


def store_request(
    fields: Mapping[str, Any],
    endpoint: str,
    model: str | None,
    redactor: TextRedactor,
    hashes: TextHashes,
) -> StoredRequest:
    """Make the stored form of a decoded body, of whatever shape it is.

    `model` is what the row says already. A model that was spelled otherwise stays in the params.

    Where parts are too many or too long, that is seen first, so that what is not stored is not
    looked through for credentials either.
    """
    place = messages_field(endpoint)
    texts: dict[str, str] = {}

    def named(text: Any) -> Any:
        if not isinstance(text, str) or len(text) < LONG_TEXT_CHARACTERS:
            return text
        text = shortened(text, _MAX_TEXT_CHARACTERS)
        digest = hashes.of(text)
        texts[digest] = text
        return {_TEXT_NAME: digest}

    messages = _redacted(fields.get(place), redactor, MAX_MESSAGES_BYTES)
    if isinstance(messages, list):
        messages = [_with_system_texts(message, named) for message in messages]
    others = {name: value for name, value in fields.items() if name != place}
    if others.get("model") == model:
        others.pop("model", None)
    if _has_tools(others):
        del others["tools"]
    params = _redacted(others, redactor, MAX_PARAMS_BYTES)
    if isinstance(params, dict) and "instructions" in params:
        params["instructions"] = named(params["instructions"])
    return StoredRequest(
        _limited_json(messages, MAX_MESSAGES_BYTES) if place in fields else None,
        _limited_json(params, MAX_PARAMS_BYTES),
        texts,
    )


def stored_tools(fields: Mapping[str, Any], redactor: TextRedactor) -> str | None:
    """The list of tools that a body offers, as the text that is stored; None where none is."""
    if not _has_tools(fields):
        return None
    return logged_text(encode_json(fields["tools"]), redactor, _MAX_TEXT_CHARACTERS)


def _has_tools(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("tools"), list) and bool(fields["tools"])


def messages_field(endpoint: str) -> str:
    """Where a body for this route has what the model is to answer."""
    return _MESSAGES_FIELDS.get(endpoint, "input")


def _redacted(value: Any, redactor: TextRedactor, max_bytes: int) -> Any:
    """A decoded value without credentials and base64 data, cut where it can never be stored."""
    if has_many_nodes(value) or sum(_name_lengths(value)) > max_bytes // 2:
        rest = logged_text(encode_json(value), redactor, max_bytes // 4)
        return [{"role": "cut", "content": rest}]
    described = without_data(value)
    cap = _affordable_length(described, max_bytes)
    if cap is None:
        return redactor.value(described)
    described = _cut_strings(described, cap + min(cap, REDACTED_BEYOND))
    return _cut_strings(redactor.value(described), cap)


def without_data(value: Any) -> Any:
    """A decoded JSON value with descriptions in place of base64 data, such as
    ``[image/png 123456 bytes]``; one of very many parts is left as it is."""
    return value if has_many_nodes(value) else _without_data(value, "")


def has_many_nodes(value: Any) -> bool:
    """Whether a decoded JSON value has more parts than can be walked through for one call."""
    work = [value]
    nodes = 0
    while work and nodes <= _MAX_NODES:
        node = work.pop()
        if isinstance(node, dict | list):
            nodes += len(node)
            if nodes <= _MAX_NODES:
                work += node.values() if isinstance(node, dict) else node
    return nodes > _MAX_NODES


def _without_data(value: Any, label: str) -> Any:
    if isinstance(value, list):
        return [_without_data(item, label) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    label = kind if isinstance(kind, str) else label
    return {
        name: _described(name, item, value, label)
        if isinstance(item, str)
        else _without_data(item, label)
        for name, item in value.items()
    }


def _described(name: Any, text: str, holder: dict[str, Any], label: str) -> str:
    is_data = _DATA_URL.fullmatch(text) or (
        name in _DATA_NAMES and len(text) >= _MIN_DATA_CHARACTERS and _BASE64.fullmatch(text)
    )
    if not is_data:
        return text
    described: dict[str, object] = {"type": label or "part", "data": text}
    described |= {media: holder[media] for media in _MEDIA_NAMES if media in holder}
    return describe_part(described)


def _with_system_texts(message: Any, change: Callable[[Any], Any]) -> Any:
    """The message with `change` made to the text of a system message, or of each of its parts."""
    if not isinstance(message, dict) or message.get("role") not in SYSTEM_ROLES:
        return message
    content = message.get("content")
    if isinstance(content, list):
        return message | {"content": [_with_text(part, change) for part in content]}
    return message | {"content": change(content)} if "content" in message else message


def _with_text(part: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(part, dict) and "text" in part:
        return part | {"text": change(part["text"])}
    return change(part)


def _limited_json(value: Any, max_bytes: int) -> str:
    """The value as JSON that fits into a line, with marks where something was cut."""
    text = encode_json(value)
    if _UNREADABLE.search(text):
        value = writable_value(value)
        text = encode_json(value)
    if _line_bytes(text) <= max_bytes:
        return text
    cut = max(_string_lengths(value), default=0) // 2
    while cut >= _SHORTEST_CUT:
        shorter = encode_json(_cut_strings(value, cut))
        if _line_bytes(shorter) <= max_bytes:
            return shorter
        cut //= 2
    items = value if isinstance(value, list) else []
    kept: list[Any] = []
    room = max_bytes // 2
    for item in reversed(items):
        newest = _cut_strings(item, _SHORTEST_CUT)
        room -= _line_bytes(encode_json(newest))
        if room < 0:
            break
        kept.append(newest)
    kept.append({"role": "cut", "content": cut_mark(len(value), "parts")})
    return encode_json(kept[::-1])


def _affordable_length(value: Any, max_bytes: int) -> int | None:
    """The length to which all strings must be cut to fit together; None where they fit."""
    lengths = sorted(_string_lengths(value))
    if sum(lengths) <= max_bytes:
        return None
    room = max_bytes * 3 // 4
    for position, length in enumerate(lengths):
        share = room // (len(lengths) - position)
        if length > share:
            return max(share, _SHORTEST_CUT)
        room -= length
    raise AssertionError("the lengths were too much together")


def _string_lengths(value: Any) -> Iterator[int]:
    if isinstance(value, str):
        yield len(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _string_lengths(item)


def _name_lengths(value: Any) -> Iterator[int]:
    """The lengths of the names in all objects, which are never cut."""
    if isinstance(value, dict):
        yield from map(len, value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _name_lengths(item)


def _cut_strings(value: Any, max_characters: int) -> Any:
    if isinstance(value, str):
        return shortened(value, max_characters)
    if isinstance(value, list):
        return [_cut_strings(item, max_characters) for item in value]
    if isinstance(value, dict):
        return {name: _cut_strings(item, max_characters) for name, item in value.items()}
    return value


def _line_bytes(text: str) -> int:
    """What a JSON text takes as a string in a line, where its quotes are escaped."""
    return len(msgspec.json.encode(text))
