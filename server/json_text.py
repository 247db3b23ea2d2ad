"""JSON from outside: read with msgspec for speed, with ``json`` where msgspec is too strict.

Clients and providers send what RFC 8259 forbids and JavaScript or Python wrote all the same:
escapes of lone surrogates, NaN, raw control characters in strings. An entry must not be lost
over that, so msgspec reads first, and ``json`` reads what msgspec refuses.

The promise is one exception. Whatever the bytes are, the caller gets a value no deeper than
``MAX_DEPTH`` or a `NotJSON`: never a RecursionError, neither here nor in code that walks the
value afterwards, however deep the caller's own stack already is.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

MAX_DEPTH = 200
"""Arrays and objects inside each other; a tool's JSON Schema seldom needs more than 30."""
_CONTAINERS = (dict, list)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{"))

_LENIENT = json.JSONDecoder(strict=False)
# An escape that has lost its end, or the first half of a surrogate pair.
_HALF_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2})?")


class NotJSON(ValueError):
    """The bytes cannot be read as JSON; the message says why and quotes nothing of them."""


def decode_json(data: bytes, *, replace_invalid_utf8: bool = False) -> object:
    """Read one JSON document, of any type, from UTF-8 with or without a byte order mark.

    Beyond RFC 8259 it accepts NaN and the infinities, raw control characters in strings, and
    lone surrogates, which stay in the str as they are. Of a name that comes twice, the last
    value counts. Bytes that are not UTF-8 are refused, or become U+FFFD with
    ``replace_invalid_utf8``. Raises `NotJSON` for anything else, nesting included.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise NotJSON(_too_deep()) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = _decode_leniently(data, "replace" if replace_invalid_utf8 else "strict")
    if (
        len(data) > MAX_DEPTH
        and len(data.translate(None, _NO_BRACKETS)) > MAX_DEPTH
        and _is_deep(value)
    ):
        raise NotJSON(_too_deep())
    return value


def encode_json(value: object) -> str:
    """Write a decoded value as compact JSON that RFC 8259 allows.

    NaN and the infinities come out as null, lone surrogates as ``\\udXXX`` escapes.
    """
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite, separators=(",", ":"))


def compact_json(document: bytes) -> str:
    """Take the white space out of a JSON document and leave numbers and names as they were sent.

    Raises `NotJSON`.
    """
    try:
        return msgspec.json.format(document, indent=-1).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return encode_json(decode_json(document, replace_invalid_utf8=True))


def whole_characters(head: bytes | bytearray) -> str:
    """Decode the beginning of a UTF-8 text; a last character that is cut in two is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(head))


def _is_escaped(text: bytes, index: int, start: int) -> bool:
    """Tell whether an odd number of backslashes, from ``start`` on, stands before ``index``."""
    before = index
    while before > start and text[before - 1] == ord("\\"):
        before -= 1
    return (index - before) % 2 == 1


def without_half_escape(text: bytes) -> bytes:
    """Take off the beginning of an escape, or of a surrogate pair, with which JSON text ends."""
    for _ in range(2):  # a second half of a pair, then the first half that it leaves alone
        last = text.rfind(b"\\", max(0, len(text) - 6))
        if last < 0 or _is_escaped(text, last, 0) or not _HALF_ESCAPE.fullmatch(text[last:]):
            break
        text = text[:last]
    return text


def _decode_leniently(data: bytes, errors: str) -> object:
    try:
        return _LENIENT.decode(data.decode("utf-8-sig", errors))
    except UnicodeDecodeError as error:
        raise NotJSON(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise NotJSON(_too_deep()) from None
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise NotJSON(str(error)) from None


def _is_deep(value: object) -> bool:
    """Tell whether a value nests beyond MAX_DEPTH, level by level instead of by recursion."""
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    for _ in range(MAX_DEPTH - 1):
        # Of empty ones there may be very many.
        level = [child for child in _children(level) if child and type(child) in _CONTAINERS]
        if not level:
            return False
    return any(type(child) in _CONTAINERS for child in _children(level))


def _children(level: list[Any]) -> Iterator[Any]:
    return chain.from_iterable(
        parent.values() if type(parent) is dict else parent for parent in level
    )


def _too_deep() -> str:
    return f"arrays and objects are nested more than {MAX_DEPTH} deep; send them flatter"
