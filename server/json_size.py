"""How much a JSON document becomes in memory, told from its bytes before anything is built.

A few bytes of text can stand for a hundred bytes of objects: ``{},{},…`` of 58 MiB takes 1.8 GB and
half a minute. So values are counted first, in the speed of searching for a byte: every value but
the outermost stands behind a comma or an opening bracket. Commas and brackets inside strings are
told apart only where their number alone is too high.
"""

MAX_VALUES = 500_000
_OBJECT_WEIGHT = 4  # an object takes as much memory as four other values
_SLICE_BYTES = 1 << 18


def has_too_many_values(document: bytes, max_values: int = MAX_VALUES) -> bool:
    """Whether the document holds more values than that; an object counts as four.

    For what is no JSON the answer may be either.
    """
    if _OBJECT_WEIGHT * len(document) < max_values or _weight(document) <= max_values:
        return False
    text = document
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    total, outside = 1, 0
    for start in range(0, len(text), _SLICE_BYTES):
        parts = text[start : start + _SLICE_BYTES].split(b'"')
        total += _weight(b"".join(parts[outside::2])) - 1
        if total > max_values:
            return True
        # Of an odd number of quotes the last one leaves a string open, or closes one.
        outside ^= (len(parts) - 1) & 1
    return False


def _weight(text: bytes) -> int:
    objects = _OBJECT_WEIGHT * text.count(b"{")
    return 1 + text.count(b",") + text.count(b"[") + objects
