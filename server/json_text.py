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

import msgspec

MAX_DEPTH = 200
"""Arrays and objects inside each other; a tool's JSON Schema seldom needs more than 30."""

_LENIENT = json.JSONDecoder(strict=False)
_STRING_OR_BRACKET = re.compile(rb'["{}\[\]]')
_MAX_TOKENS = 200_000  # a hostile text may be nothing but quotes and brackets
_CLOSER = {ord("{"): b"}", ord("["): b"]"}
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
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(value):
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


def whole_characters(head: bytes) -> str:
    """Decode the beginning of a UTF-8 text; a last character that is cut in two is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(head)


def decode_cut_json(head: bytes, mark: str = "") -> object:
    """Read what can be read of a JSON document that breaks off, by closing what is open.

    A string value that was cut is kept, with ``mark`` behind it. A number, a literal or a name
    that was cut is dropped, because half a number is a wrong number. Raises `NotJSON`.
    """
    head = whole_characters(head).encode()
    for closed in _closings(head, json.dumps(mark)[1:-1].encode()):
        try:
            return decode_json(closed)
        except NotJSON:
            continue
    raise NotJSON("the beginning of the text is no JSON either")


def decode_leading_json(text: bytes) -> object:
    """Read the one JSON value that a text begins with, whatever follows. Raises `NotJSON`."""
    try:
        value, _ = _LENIENT.raw_decode(text.decode("utf-8", "replace"))
    except (RecursionError, ValueError) as error:
        raise NotJSON(str(error)) from None
    if _is_deep(value):
        raise NotJSON(_too_deep())
    return value


def _closings(head: bytes, mark: bytes) -> list[bytes]:
    """Say how ``head`` may be completed, the way that keeps most of it first."""
    stack: list[int] = []
    start = end = position = 0  # of the last string; end is -1 while it is open
    for _ in range(_MAX_TOKENS):
        token = _STRING_OR_BRACKET.search(head, position)
        if token is None:
            break
        position = token.end()
        symbol = head[position - 1]
        if symbol in _CLOSER:
            stack.append(symbol)
        elif symbol == ord('"'):
            start, end = position - 1, _string_end(head, position)
            if end < 0:
                break
            position = end
        elif stack:
            stack.pop()
        if not stack:
            return [head[:position]]
    else:
        head = head[:position]
    closers = b"".join(_CLOSER[symbol] for symbol in reversed(stack))
    before_string = head[:start].rstrip().removesuffix(b",") + closers
    if end < 0:
        return [_without_half_escape(head) + mark + b'"' + closers, before_string]
    comma = head.rfind(b",", position)
    complete = head[: comma if comma >= 0 else position] + closers
    return [complete, before_string]


def _string_end(text: bytes, position: int) -> int:
    """Find the index behind the quote that closes the string begun before ``position``, or -1."""
    while (quote := text.find(b'"', position)) >= 0:
        if not _is_escaped(text, quote, position):
            return quote + 1
        position = quote + 1
    return -1


def _is_escaped(text: bytes, index: int, start: int) -> bool:
    """Tell whether an odd number of backslashes, from ``start`` on, stands before ``index``."""
    before = index
    while before > start and text[before - 1] == ord("\\"):
        before -= 1
    return (index - before) % 2 == 1


def _without_half_escape(text: bytes) -> bytes:
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
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep() -> str:
    return f"arrays and objects are nested more than {MAX_DEPTH} deep; send them flatter"
