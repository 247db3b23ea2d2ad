"""How a stream that cannot be completed ends: with an error event that every client can read.

A provider may break off in the middle of an event, and what came of it is with the client already.
Ended as it stands it would be an event that is no JSON, and a client would complain about that
instead of reading the error behind it: OpenAI's SDK raises a JSONDecodeError. Nothing in the event
stream format takes back an event once begun. So its JSON is completed, as an object whose last
member is the error, and the error event follows as it does between two events.
"""

import json
import re

from open_llm_proxy.server.json_text import NotJSON, decode_json

# An event that is longer is ended as it stands.
MAX_EVENT_BYTES = 64 * 1024

_BLANK_LINE = re.compile(rb"\n\n|\r\r|\r\n\r\n")
_LONGEST_BLANK_LINE = 4
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
_CLOSERS = {b"{": b"}", b"[": b"]"}
# What may be missing of a value, a member or an escape, the likely first; each is tried.
_ENDS_OF_STRINGS = tuple(
    rest + end
    for rest in (b"", b"\\", b"0", b"00", b"000", b"0000", b"\x80", b"\xa0\x80", b"\x80\x80",
                 b"\x90\x80\x80", b"\x80\x80\x80")
    for end in (b'"', b'":null')
)  # fmt: skip
_ENDS_OF_OTHERS = (
    b"", b"null", b":null", b'"":null', b"0",
    b"e", b"ue", b"rue", b"se", b"lse", b"alse", b"l", b"ll", b"ull",
)  # fmt: skip


class StreamError:
    """Follows what the client gets of a stream, to end it in a readable way at any moment."""

    def __init__(self) -> None:
        self._event = bytearray()  # what the client has of an event that is not whole
        self._is_too_long = False

    def follow(self, data: bytes) -> None:
        """Take the bytes that the client gets next."""
        event = self._event
        if not event and data.endswith(b"\n\n"):
            return
        searched = max(0, len(event) - _LONGEST_BLANK_LINE + 1)
        event += data
        ends = [found.end() for found in _BLANK_LINE.finditer(event, searched)]
        if ends:
            del event[: ends[-1]]
            self._is_too_long = False
        if len(event) > MAX_EVENT_BYTES:
            self._is_too_long = True
            del event[:-_LONGEST_BLANK_LINE]

    def event(self, body: dict[str, object]) -> bytes:
        """What to write for the client to read `body`, an object with the member ``error``."""
        text = json.dumps(body).encode()
        return self._end_of_event(text) + b"data: " + text + b"\n\n"

    def _end_of_event(self, error: bytes) -> bytes:
        if not self._event:
            return b""
        if self._is_too_long:
            return b"\n\n"
        lines = self._event.splitlines()
        data = b"\n".join(
            line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")
        )
        is_line_whole = self._event.endswith((b"\n", b"\r"))
        if not data.strip():
            # Without data the event is not ended here: the error becomes its data.
            return (b"" if is_line_whole else b"\n") + b"event: error\n"
        if is_line_whole or not lines[-1].startswith(b"data:"):
            start = (b"" if is_line_whole else b"\n") + b"data: "
            rest = json_rest(data + b"\n", error)
        else:
            start, rest = b"", json_rest(data, error)
        return b"\n\n" if rest is None else start + rest + b"\n\n"


def json_rest(head: bytes, last: bytes) -> bytes | None:
    """What makes `head`, the beginning of a JSON object, one that ends with the members of `last`.

    `last` is a JSON object. None where `head` begins no object, or has come to its end.
    """
    open_brackets, is_in_string = _scan(head)
    if open_brackets[:1] != [b"{"]:
        return None
    closers = b"".join(_CLOSERS[bracket] for bracket in reversed(open_brackets[1:]))
    for end in _ENDS_OF_STRINGS if is_in_string else _ENDS_OF_OTHERS:
        for comma in (b",", b""):
            rest = end + closers + comma + last.removeprefix(b"{")
            try:
                decode_json(head + rest)
            except NotJSON:
                continue
            return rest
    return None


def _scan(head: bytes) -> tuple[list[bytes], bool]:
    """The brackets that are open at the end, and whether a string is."""
    stack: list[bytes] = []
    for token in _STRING_OR_BRACKET.findall(head):
        if token == b'"':
            return stack, True
        if token in _CLOSERS:
            stack.append(token)
        elif stack and not token.startswith(b'"'):
            stack.pop()
    return stack, False
