"""The top-level members of a JSON object, as bytes, and whether a name comes twice among them.

Decoders disagree about a name that comes twice: Python takes the last value, others the first.
What the proxy routes and logs would then not be what the provider reads, so such a body is refused.

msgspec does not tell either. But an object that is as long as its different members, with nothing
between them but what JSON needs, has no further member: that costs one pass that builds nothing.
Only what is written in another way is looked at again.
"""

import json
from typing import Any

import msgspec

_Members = dict[str, msgspec.Raw]


def duplicate_name(body: bytes) -> str | None:
    """The first top-level name that comes twice in `body`, a JSON object that `decode_json` takes.

    Names are compared as they are read, so ``"m\\u006fdel"`` is ``"model"``.
    """
    try:
        text = body.strip(b" \t\r\n")
        if _has_one_of_each(text) or _has_one_of_each(msgspec.json.format(text, indent=-1)):
            return None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # JSON that msgspec refuses, such as NaN
    seen: set[str] = set()
    for name in _top_level_names(body):
        if name in seen:
            return name
        seen.add(name)
    return None


def _has_one_of_each(text: bytes) -> bool:
    """Whether the object is its different members and no more; False where that is not certain."""
    members: _Members = msgspec.json.decode(text, type=_Members)
    lengths = [len(name.encode()) + 3 + memoryview(raw).nbytes for name, raw in members.items()]
    least = 1 + sum(lengths) + max(1, len(lengths))
    spaces = 2 * len(lengths) - 1  # as Python's json.dumps writes them
    if len(text) == least:
        return True
    return len(text) == least + spaces and _is_spaced(text, members)


def _is_spaced(text: bytes, members: _Members) -> bool:
    """Whether the object is exactly ``{"a": 1, "b": 2}`` with these members."""
    position, separator = 0, b"{"
    for name, raw in members.items():
        for part in (separator, b'"%b": ' % name.encode(), bytes(raw)):
            if not text.startswith(part, position):
                return False
            position += len(part)
        separator = b", "
    return position == len(text) - 1


def _top_level_names(body: bytes) -> list[str]:
    names: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        # Called for every object, for the outermost one last.
        nonlocal names
        names = [name for name, _ in pairs]

    json.JSONDecoder(object_pairs_hook=keep, strict=False).decode(body.decode("utf-8-sig"))
    return names
