"""Whether a name comes twice in an object of a JSON document.

Decoders disagree about such a name: Python takes the last value, others the first. What the proxy
routes and logs would then not be what the provider reads, so such a body is refused, at whatever
depth: a message's `content` may stand there twice as well as `messages`.

The decoder does not tell. But a document that is the encoding of its own decoded value has lost
nothing; that is seen in one pass, and true of what clients send but for some escapes and numbers:
they write other letters as they are, or all of them as Python's escapes. Only the others are
decoded again, by a decoder that tells.
"""

import json
from collections import Counter
from typing import Any

import msgspec

_ESCAPING = json.JSONEncoder(separators=(",", ":"))


def duplicate_name(document: bytes, value: object) -> str | None:
    """A name that comes twice in one object of a document, of which `decode_json` made `value`.

    Names are compared as they are read, so ``"m\\u006fdel"`` is ``"model"``.
    """
    try:
        kept = msgspec.json.encode(value)
        if document == kept:
            return None
        compact = msgspec.json.format(document, indent=-1)
        if compact == kept or compact == _ESCAPING.encode(value).encode():
            return None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # JSON that msgspec refuses, such as NaN
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            found.append(Counter(name for name, _ in pairs).most_common(1)[0][0])

    json.JSONDecoder(object_pairs_hook=look, strict=False).decode(document.decode("utf-8-sig"))
    return found[0] if found else None
