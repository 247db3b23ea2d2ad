"""Taking credentials out of what is logged, before anything of it is written.

A chat carries them where nobody looks: S3 keys in a tool call's SQL, a token in a pasted curl
line, JSON held in a string that holds JSON. The redactor replaces the credential alone, by a
visible mark, and leaves the rest of the text as it is: an entry that says
`SECRET '[redacted]'` can still be read, and JSON in it can still be parsed.

JSON is read as JSON: each string is decoded, redacted as a text of its own and written back,
so quotes and escapes of any depth are exact and the structure cannot change. All other text,
cut JSON inside prose included, goes through the rules of `credential_spans`. No list of rules
finds every secret, so keys that this process knows are also replaced literally.

The promises: it never raises, its time is linear in the length of the text, and redacting
twice gives what redacting once gave.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from open_llm_proxy.server.redaction.credentials import MARK, Kind, is_quoted_secret
from open_llm_proxy.server.redaction.json_credentials import (
    Edit,
    JSONPart,
    container_kind,
    json_parts,
    object_kinds,
)
from open_llm_proxy.server.redaction.shapes import Span
from open_llm_proxy.server.redaction.spans import Scan

_MIN_SECRET_LENGTH = 8  # a shorter one would tear holes into ordinary words
_MAX_DEPTH = 8  # JSON in strings in JSON; beyond it the rules for text read the escapes
_MAX_PASSES = 4
# Most keys, and many values. What has neither digits nor separators, and is shorter than a key
# of letters only, holds no credential but a known one.
_PLAIN = re.compile(r"[a-z_.-]{0,60}|[A-Za-z_.-]{0,18}")
# JSON without a string value, such as token counts: numbers are no credentials.
_NUMBERS = re.compile(
    r'(?:[\s{}\[\],:]|"[a-z_]{1,64}"(?=\s{0,8}:)|-?[0-9][0-9.eE+-]*|true|false|null)*+'
)


class Redactor:
    """Replaces credentials in texts and in decoded JSON by `MARK`.

    `secrets` are values that this process knows, such as its proxy keys and its providers' keys;
    from 8 characters on they are replaced wherever they stand, also where JSON or a URL escapes
    them.
    """

    __slots__ = ("_known",)

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known = tuple(
            {
                form
                for secret in secrets
                if len(secret) >= _MIN_SECRET_LENGTH and secret not in MARK
                for form in (secret, json.dumps(secret)[1:-1], _percent_encoded(secret))
            }
        )

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, text: str) -> str:
        """Redact a text of any kind; the same object comes back when nothing had to go."""
        return self._pass(text, 0)

    def value(self, value: object) -> object:
        """Redact a decoded JSON value; the same object comes back when nothing had to go.

        Strings under keys that announce credentials go; numbers, booleans and null stay; all
        other strings, keys included, are redacted as texts. The depth is not limited.
        """
        root: list[Any] = [value]
        work: list[tuple[Any, Any, Kind | None]] = [(root, 0, None)]
        changed = False
        while work:
            parent, slot, kind = work.pop()
            node = parent[slot]
            if isinstance(node, str):
                parent[slot] = self._string(node, kind)
                changed |= parent[slot] != node
            elif isinstance(node, list):
                parent[slot] = items = list(node)
                work += [(items, index, kind) for index in range(len(items))]
            elif isinstance(node, dict):
                members: dict[Any, Any] = {}
                parent[slot] = members
                kinds = object_kinds(node, kind)
                for key, item in node.items():
                    new_key = self._unused_key(key, members)
                    changed |= new_key is not key
                    members[new_key] = item
                    item_kind = kinds.get(key)
                    if isinstance(item, dict | list):
                        item_kind = container_kind(str(key), item_kind)
                    work.append((members, new_key, item_kind))
        return root[0] if changed else value

    def _string(self, text: str, kind: Kind | None) -> str:
        if kind and is_quoted_secret(kind, text):
            return MARK
        redacted = self.text(text)
        if kind and redacted != text:
            return self._string(redacted, kind)  # what is left may look like a credential
        return redacted

    def _unused_key(self, key: object, members: dict[Any, Any]) -> object:
        """The key, redacted; two keys that are secrets must not become one."""
        if not isinstance(key, str):
            return key
        redacted = self.text(key)
        return f"{redacted} {len(members)}" if redacted in members else redacted

    def _pass(self, text: str, depth: int) -> str:
        for _ in range(_MAX_PASSES):  # one credential may come to light when another is gone
            known = list(self._known_spans(text))
            if not known and (_PLAIN.fullmatch(text) or _NUMBERS.fullmatch(text)):
                break
            scan = Scan(text)
            if not scan and not known:
                break
            parts = self._json_parts(text, scan, known, depth)
            edits = [edit for part in parts for edit in part.edits]
            if parts and not _outside(text, parts).strip():
                return _apply(text, edits)  # strings are redacted for good one by one
            starts = [part.start for part in parts]
            for start, end in (*scan.credentials(), *known):
                index = bisect_right(starts, start) - 1
                if index < 0 or start >= parts[index].end:
                    edits.append((start, end, MARK))
            redacted = _apply(text, edits)
            if redacted == text:
                break
            text = redacted
        return text

    def _json_parts(self, text: str, scan: Scan, known: list[Span], depth: int) -> list[JSONPart]:
        if depth >= _MAX_DEPTH:
            return []
        places = sorted([*scan.places(), *(start for start, _ in known)])
        return list(json_parts(text, places, lambda string: self._pass(string, depth + 1)))

    def _known_spans(self, text: str) -> Iterator[Span]:
        for form in self._known:
            start = text.find(form)
            while start >= 0:
                yield start, start + len(form)
                start = text.find(form, start + len(form))


def _outside(text: str, parts: list[JSONPart]) -> str:
    """What stands around the parts."""
    ends = [0, *(part.end for part in parts)]
    starts = [*(part.start for part in parts), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _percent_encoded(secret: str) -> str:
    return quote(secret, safe="", errors="replace")


def _apply(text: str, edits: list[Edit]) -> str:
    """Replace the parts; those that overlap or touch become one."""
    if not edits:
        return text
    pieces: list[str] = []
    done = 0
    edits.sort()
    start, end, replacement = edits[0]
    for next_start, next_end, next_replacement in [*edits[1:], (len(text) + 1, 0, "")]:
        if next_start <= end:
            end = max(end, next_end)
            continue
        pieces += (text[done:start], replacement)
        done = end
        start, end, replacement = next_start, next_end, next_replacement
    pieces.append(text[done:])
    return "".join(pieces)
