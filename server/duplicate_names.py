"""Whether a name comes twice in an object of a JSON document.

Decoders disagree about such a name: Python takes the last value, others the first. What the proxy
routes and logs would then not be what the provider reads, so such a body is refused, at whatever
depth: a message's `content` may stand there twice as well as `messages`.

The decoder does not tell. But a name that is lost takes its quotes along, so a document that has as
many quotes as its decoded value when that is written again has lost nothing. Only a document that
has fewer of them because it escapes some of those in its texts, or more because a name was lost,
is decoded again, by a decoder that tells.
"""

import json
from collections import Counter
from typing import Any

import msgspec

_ESCAPED_QUOTE = b"\\u0022"


def duplicate_name(document: bytes, value: object) -> str | None:
    """A name that comes twice in one object of a document, of which `decode_json` made `value`.

    Names are compared as they are read, so ``"m\\u006fdel"`` is ``"model"``.
    """
    try:
        kept = msgspec.json.encode(value)
    except (UnicodeEncodeError, RecursionError):  # a lone surrogate
        kept = b""
    if document == kept or (
        document.count(b'"') == kept.count(b'"') and document.find(_ESCAPED_QUOTE) < 0
    ):
        return None
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            found.append(Counter(name for name, _ in pairs).most_common(1)[0][0])

    json.JSONDecoder(object_pairs_hook=look, strict=False).decode(document.decode("utf-8-sig"))
    return found[0] if found else None
