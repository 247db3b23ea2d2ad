"""What a body is: an event stream, or a document that is read at its end.

Relay and reader ask this one place. A Content-Type that says event stream, in whatever case, with
parameters, once or beside another, is believed; where it is missing or says something else, the
first bytes decide, since some providers send a stream as JSON or as plain text.
"""

import functools
from typing import Literal

BodyKind = Literal["stream", "document"]

_BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":")
_PAGES = {"text/html", "application/xhtml+xml"}
_LONGEST_BLANK_BYTES = 256


@functools.lru_cache(maxsize=32)
def kind_by_type(content_type: str | None) -> BodyKind | None:
    """Say what the header alone decides; None where the first bytes have to.

    A header that came several times is given as one, joined by commas.
    """
    values = (content_type or "").split(",")
    media_types = {value.partition(";")[0].strip().lower() for value in values}
    if "text/event-stream" in media_types:
        return "stream"
    return "document" if media_types & _PAGES else None


def kind_by_bytes(head: bytes) -> BodyKind | None:
    """Say what a body is that begins like this; None where more of it is needed."""
    if head.startswith(b"{"):
        return "document"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text.startswith(_BEGINNINGS):
        return "stream"
    if len(head) - len(text) > _LONGEST_BLANK_BYTES:
        return "document"
    if b"\xef\xbb\xbf".startswith(head) or any(name.startswith(text) for name in _BEGINNINGS):
        return None
    return "document"
