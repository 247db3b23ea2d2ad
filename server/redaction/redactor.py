"""Taking credentials out of what is logged, before anything of it is written.

A chat carries them where nobody looks: S3 keys in a tool call's SQL, a token in a pasted curl
line, JSON held in a string that holds JSON. The redactor replaces the credential alone, by a
visible mark, and leaves the rest of the text as it is: an entry that says
`SECRET '[redacted]'` can still be read, and JSON in it can still be parsed.

JSON is read as JSON: each string is decoded, redacted as a text of its own and written back,
so quotes and escapes of any depth are exact and the structure cannot change. All other text,
cut JSON inside prose included, goes through the rules of `spans`. No list of rules
finds every secret, so keys that this process knows are also replaced literally.

The promises: it never raises, its time is linear in the length of the text and small even where
a text is made to take long (see `looks`), and redacting twice gives what redacting once gave.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from open_llm_proxy.server.redaction.credentials import MARK, Kind, is_quoted_secret
from open_llm_proxy.server.redaction.json_credentials import Edit, JSONPart, json_parts
from open_llm_proxy.server.redaction.json_members import container_kind, object_kinds
from open_llm_proxy.server.redaction.looks import Looks
from open_llm_proxy.server.redaction.shapes import Span, is_plain
from open_llm_proxy.server.redaction.spans import Scan

_MIN_SECRET_LENGTH = 8  # a shorter one would tear holes into ordinary words
_MAX_DEPTH = 8  # JSON in strings in JSON; beyond it the rules for text read the escapes
_MAX_PASSES = 4
_MAY_BE_JSON = re.compile(r'[{\[]|\A\s*+"')
# JSON without a string value, such as token counts: numbers are no credentials.
_NUMBERS = re.compile(
    r'(?:[\s{}\[\],:]|"[a-z_]{1,64}"(?=\s{0,8}:)|-?[0-9][0-9.eE+-]*|true|false|null)*+'
)


class TextRedactor(Protocol):
    """What takes the credentials out of texts and decoded JSON: see `Redactor`."""

    def text(self, text: str) -> str: ...

    def value(self, value: object) -> object: ...


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

    def for_row(self, looks: Looks | None = None) -> TextRedactor:
        """A redactor for the texts of one row, which share its looks."""
        return _RowRedactor(self, looks or Looks())

    def text(self, text: str, looks: Looks | None = None) -> str:
        """Redact a text of any kind; the same object comes back when nothing had to go."""
        return self._redacted(text, 0, looks or Looks())

    def value(self, value: object, looks: Looks | None = None) -> object:
        """Redact a decoded JSON value; the same object comes back when nothing had to go.

        Strings under keys that announce credentials go; numbers, booleans and null stay; all
        other strings, keys included, are redacted as texts. The depth is not limited.
        """
        looks = looks or Looks()
        root: list[Any] = [value]
        work: list[tuple[Any, Any, Kind | None]] = [(root, 0, None)]
        changed = False
        while work:
            parent, slot, kind = work.pop()
            node = parent[slot]
            if isinstance(node, str):
                parent[slot] = self._string(node, kind, looks)
                changed |= parent[slot] != node
            elif isinstance(node, list):
                parent[slot] = items = list(node)
                work += [(items, index, kind) for index in range(len(items))]
            elif isinstance(node, dict):
                members: dict[Any, Any] = {}
                parent[slot] = members
                kinds = object_kinds(node, kind)
                for key, item in node.items():
                    new_key = self._unused_key(key, members, looks)
                    changed |= new_key is not key
                    members[new_key] = item
                    item_kind = kinds.get(key)
                    if isinstance(item, dict | list):
                        item_kind = container_kind(str(key), item_kind)
                    work.append((members, new_key, item_kind))
        return root[0] if changed else value

    def _string(self, text: str, kind: Kind | None, looks: Looks) -> str:
        if kind and is_quoted_secret(kind, text):
            return MARK
        redacted = self.text(text, looks)
        if kind and redacted != text:
            return self._string(redacted, kind, looks)  # what is left may look like a credential
        return redacted

    def _unused_key(self, key: object, members: dict[Any, Any], looks: Looks) -> object:
        """The key, redacted; two keys that are secrets must not become one."""
        if not isinstance(key, str):
            return key
        redacted = self.text(key, looks)
        return f"{redacted} {len(members)}" if redacted in members else redacted

    def _redacted(self, text: str, depth: int, looks: Looks) -> str:
        for passes in range(_MAX_PASSES, 0, -1):  # one may come to light when another is gone
            known = list(self._known_spans(text))
            if not known and (is_plain(text) or _NUMBERS.fullmatch(text)):
                break
            scan = Scan(text)
            if not scan and not known:
                break
            if depth == 0:
                looks.begin(passes)
            redacted, is_final = self._after_one_pass(text, scan, known, depth, looks)
            if is_final or redacted == text:
                return text if redacted == text else redacted
            text = redacted
        return text

    def _after_one_pass(
        self, text: str, scan: Scan, known: list[Span], depth: int, looks: Looks
    ) -> tuple[str, bool]:
        """The text without the credentials that one pass finds, and whether it finds them all."""
        parts: list[JSONPart] = []
        if depth < _MAX_DEPTH and _MAY_BE_JSON.search(text):
            places = sorted([*scan.places(), *(start for start, _ in known)])
            redact = lambda string: self._redacted(string, depth + 1, looks)  # noqa: E731
            parts = list(json_parts(text, places, redact, looks))
        edits = [edit for part in parts for edit in part.edits]
        if parts and not _outside(text, parts).strip():
            return _apply(text, edits), True  # strings are redacted for good one by one
        starts = [part.start for part in parts]
        for start, end in (*scan.credentials(looks), *known):
            index = bisect_right(starts, start) - 1
            if index < 0 or start >= parts[index].end or end > len(text):
                edits.append((start, end, MARK))
        return _apply(text, edits), False

    def _known_spans(self, text: str) -> Iterator[Span]:
        for form in self._known:
            start = text.find(form)
            while start >= 0:
                yield start, start + len(form)
                start = text.find(form, start + len(form))


@dataclass(frozen=True, slots=True)
class _RowRedactor:
    redactor: Redactor
    looks: Looks

    def text(self, text: str) -> str:
        return self.redactor.text(text, self.looks)

    def value(self, value: object) -> object:
        return self.redactor.value(value, self.looks)


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
    for next_start, next_end, next_replacement in [*edits[1:], (len(text) + 2, 0, "")]:
        if next_start <= end:
            end = max(end, next_end)
            continue
        pieces += (text[done:start], replacement)
        done = end
        start, end, replacement = next_start, next_end, next_replacement
    pieces.append(text[done:])
    return "".join(pieces)
