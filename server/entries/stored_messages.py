"""All messages of a request as one JSON text, for ``full`` capture, and back again.

What is stored is what the client sent, redacted, with two things taken out because they would be
most of the log: the data of images, sounds and files, described in place, and long texts of
system messages, which are rows of their own and are named here by their hash. `restore_messages`
puts those back, so that the messages and the answer of a call are a complete pair again.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from open_llm_proxy.archive.text import cut_mark, cut_text
from open_llm_proxy.server.entries.capture import REDACTED_BEYOND, logged_text
from open_llm_proxy.server.entries.line import writable
from open_llm_proxy.server.json_text import decode_json, encode_json
from open_llm_proxy.server.redaction.redactor import TextRedactor
from open_llm_proxy.server.transcript.content_parts import describe_part

LONG_PROMPT_CHARACTERS = 512
SYSTEM_ROLES = ("system", "developer")
# Of a line's 8 MiB the rest is for the row's other texts.
MAX_MESSAGES_BYTES = 5 * 1024 * 1024
_MAX_NODES = 200_000
_PROMPT_NAME = "system_sha256"
_MAX_PROMPT_CHARACTERS = 4 * 1024 * 1024
_SHORTEST_CUT = 200
_DATA_NAMES = ("data", "file_data", "result", "b64_json")
_MIN_DATA_CHARACTERS = 256
_MEDIA_NAMES = ("media_type", "mime_type", "format")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]*={0,2}\s*")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.=-]+)*;base64,[A-Za-z0-9+/_\r\n-]*={0,2}\s*")


# Escapes of JSON that not every reader takes: a surrogate, and NUL.
_UNREADABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


@dataclass(frozen=True, slots=True)
class StoredMessages:
    """`json` is the text for `messages_json`; `prompts` the texts that it names, by hash."""

    json: str
    prompts: dict[str, str] = field(default_factory=dict)


def store_messages(messages: list[Any], redactor: TextRedactor) -> StoredMessages:
    """Make the stored form of a request's messages, of whatever shape they are.

    Where they are too many or too long, that is seen first, so that what is not stored is not
    looked through for credentials either.
    """
    if has_many_nodes(messages) or sum(_name_lengths(messages)) > MAX_MESSAGES_BYTES // 2:
        text = encode_json(messages)
        rest = logged_text(text, redactor, MAX_MESSAGES_BYTES // 4)
        return StoredMessages(encode_json([{"role": "cut", "content": rest}]))
    described = without_data(messages)
    cap = _affordable_length(described)
    if cap is not None:
        described = _cut_strings(described, cap + min(cap, REDACTED_BEYOND))
    redacted = redactor.value(described)
    if cap is not None:
        redacted = _cut_strings(redacted, cap)
    prompts: dict[str, str] = {}
    assert isinstance(redacted, list)
    stored = [_with_named_prompts(message, prompts) for message in redacted]
    text = _limited_json(stored)
    if _UNREADABLE.search(text):
        text = _limited_json(writable(stored))
    return StoredMessages(text, prompts)


def restore_messages(messages_json: str, prompts: Mapping[str, str]) -> list[Any]:
    """The messages with the texts of their system prompts, as far as `prompts` has them.

    Raises `NotJSON` where the text is not a list of messages as `store_messages` writes it.
    """
    messages = decode_json(messages_json.encode("utf-8", "surrogatepass"))

    def restored(text: Any) -> Any:
        if isinstance(text, dict) and set(text) == {_PROMPT_NAME}:
            return prompts.get(text[_PROMPT_NAME], text)
        return text

    items = messages if isinstance(messages, list) else [messages]
    return [_with_system_texts(message, restored) for message in items]


def prompt_sha256(text: str) -> str:
    """The hash by which a system prompt is named."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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


def _with_named_prompts(message: Any, prompts: dict[str, str]) -> Any:
    """The message with its long system texts moved to `prompts`."""

    def named(text: Any) -> Any:
        if not isinstance(text, str) or len(text) < LONG_PROMPT_CHARACTERS:
            return text
        text = cut_text(text, _MAX_PROMPT_CHARACTERS)
        digest = prompt_sha256(text)
        prompts[digest] = text
        return {_PROMPT_NAME: digest}

    return _with_system_texts(message, named)


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


def _limited_json(messages: Any) -> str:
    """The messages as JSON that fits into a line, with marks where something was cut."""
    text = encode_json(messages)
    if _fits(text):
        return text
    cut = max(_string_lengths(messages), default=0) // 2
    while cut >= _SHORTEST_CUT:
        shorter = encode_json(_cut_strings(messages, cut))
        if _fits(shorter):
            return shorter
        cut //= 2
    kept: list[Any] = []
    room = MAX_MESSAGES_BYTES // 2
    for message in reversed(messages):
        newest = _cut_strings(message, _SHORTEST_CUT)
        room -= _line_bytes(encode_json(newest))
        if room < 0:
            break
        kept.append(newest)
    kept.append({"role": "cut", "content": cut_mark(len(messages), "messages")})
    return encode_json(kept[::-1])


def _affordable_length(messages: Any) -> int | None:
    """The length to which all strings must be cut to fit together; None where they fit."""
    lengths = sorted(_string_lengths(messages))
    if sum(lengths) <= MAX_MESSAGES_BYTES:
        return None
    room = MAX_MESSAGES_BYTES * 3 // 4
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
        return cut_text(value, max_characters)
    if isinstance(value, list):
        return [_cut_strings(item, max_characters) for item in value]
    if isinstance(value, dict):
        return {name: _cut_strings(item, max_characters) for name, item in value.items()}
    return value


def _fits(text: str) -> bool:
    return _line_bytes(text) <= MAX_MESSAGES_BYTES


def _line_bytes(text: str) -> int:
    """What a JSON text takes as a string in a line, where its quotes are escaped."""
    return len(msgspec.json.encode(text))
