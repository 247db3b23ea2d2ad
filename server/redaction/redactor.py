"""Taking credentials out of what is logged, before anything of it is written.

A chat carries them where nobody looks: S3 keys in a tool call's SQL, a token in a pasted curl
line, JSON held in a string that holds JSON. The redactor replaces the credential alone, by a
visible mark, and leaves the rest of the text as it is: an entry that says
`SECRET '[redacted]'` can still be read, and JSON in it can still be parsed.

JSON is read as JSON, wherever it stands: it is decoded, each string is redacted as a text of its
own, and a document that changed is written anew. All other text goes through the rules of
`rules`. No list of rules finds every secret, so keys that this process knows are also replaced
literally.

The promises: it never raises, its time is linear in the length of the text, a text is read up to
`MAX_PLACES` at most, and redacting twice gives what redacting once gave. A text that still
changes in its last pass ends at the first place that does, and a document beyond a limit goes with
all that follows, so no input can use a limit up and pass unread.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from open_llm_proxy.server.redaction.credentials import MARK, Kind, is_quoted_secret
from open_llm_proxy.server.redaction.documents import Document, documents
from open_llm_proxy.server.redaction.members import container_kind, object_kinds
from open_llm_proxy.server.redaction.rules import Scan
from open_llm_proxy.server.redaction.shapes import Span, is_plain

MAX_PLACES = 2_000
"""So many places of one row's texts that may hold a credential are read closely, at some ten
microseconds each; what follows is replaced as a whole. Ordinary text has one in some thousand
characters, so this ends only texts that were made to hold up everything else."""
_MIN_SECRET_LENGTH = 8  # a shorter one would tear holes into ordinary words
_MAX_DEPTH = 16  # JSON in strings in JSON; what may hold a credential beyond it goes as a whole
_MAX_PASSES = 4  # texts that were not made for it have at most three
_MAX_ESCAPES = 4  # levels at which a known secret is looked for
_Edit = tuple[int, int, str]  # replace `text[start:end]` by the string


class Redactor:
    """Replaces credentials in texts and in decoded JSON by `MARK`.

    `secrets` are values that this process knows, such as its proxy keys and its providers' keys;
    from 8 characters on they are replaced wherever they stand, also where JSON or a URL escapes
    them. `text` and `value` are those of a row of its own.
    """

    __slots__ = ("_known",)

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: tuple[str, ...] = ()
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replace these values, too, from now on."""
        known = {
            form
            for secret in secrets
            if len(secret) >= _MIN_SECRET_LENGTH and secret not in MARK
            for form in (*_escaped(secret), quote(secret, safe="", errors="replace"))
        }
        self._known = tuple(known.union(self._known))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def for_row(self) -> "RowRedactor":
        """A redactor for the texts of one row, which share `MAX_PLACES`."""
        return RowRedactor(self._known)

    def text(self, text: str) -> str:
        return self.for_row().text(text)

    def value(self, value: object) -> object:
        return self.for_row().value(value)


class RowRedactor:
    """Redacts the texts of one row: see `Redactor`."""

    __slots__ = ("_depth", "_known", "_places_left")

    def __init__(self, known: tuple[str, ...], places: int = MAX_PLACES) -> None:
        self._known = known
        self._places_left = places
        self._depth = 0  # of JSON in strings

    @property
    def is_exhausted(self) -> bool:
        """Whether a text was not read to its end."""
        return self._places_left < 0

    def text(self, text: str) -> str:
        """Redact a text of any kind; the same object comes back when nothing had to go."""
        for passes in range(_MAX_PASSES):  # one may come to light when another is gone
            known = list(self._known_spans(text))
            if not known and is_plain(text):
                return text
            scan = Scan(text)
            if not scan and not known:
                return text
            if passes == self._depth == 0:
                end = scan.start_of(max(0, self._places_left))
                self._places_left -= scan.count
                if end is not None:
                    text = text[:end] + MARK
                    continue
            edits, is_final = self._edits(text, scan, known)
            redacted = _apply(text, edits)
            if redacted == text:
                return text
            if is_final:
                return redacted
            before, text = text, redacted
        return before[: min(edits)[0]] + MARK  # what still changes is replaced as a whole

    def value(self, value: object) -> object:
        """Redact a decoded JSON value; the same object comes back when nothing had to go.

        Strings under keys that announce credentials go; numbers, booleans and null stay; all
        other strings, keys included, are redacted as texts. The depth is not limited.
        """
        root: list[Any] = [value]
        # Copies of containers, whose items are still to be read, and what their strings are.
        work: list[tuple[Any, Kind | None]] = [(root, None)]
        changed = False
        while work:
            container, inherited = work.pop()
            kinds: dict[Any, Kind] | None = None
            items: Iterable[tuple[Any, Any]] = enumerate(container)
            if isinstance(container, dict):
                kinds, items = object_kinds(container, inherited), list(container.items())
                container.clear()
            for name, item in items:
                kind = inherited if kinds is None else kinds.get(name)
                slot = name if kinds is None else self._name(name, container)
                if isinstance(item, dict | list):
                    inner = kind if kinds is None else container_kind(str(name), kind)
                    container[slot] = copy = item.copy()
                    work.append((copy, inner))
                    changed |= slot is not name
                    continue
                redacted = self._string(item, kind) if isinstance(item, str) else item
                changed |= redacted is not item or slot is not name
                container[slot] = redacted
        return root[0] if changed else value

    def _name(self, name: object, members: dict[Any, Any]) -> object:
        """A member's name, redacted; two that are credentials must not become one."""
        if not isinstance(name, str) or (len(name) < _MIN_SECRET_LENGTH and is_plain(name)):
            return name
        redacted = self.text(name)
        return f"{redacted} {len(members)}" if redacted in members else redacted

    def _string(self, text: str, kind: Kind | None) -> str:
        if kind is None and len(text) < _MIN_SECRET_LENGTH and is_plain(text):
            return text
        if kind and is_quoted_secret(kind, text):
            return MARK
        redacted = self.text(text)
        if kind and redacted != text:
            return self._string(redacted, kind)  # what is left may look like a credential
        return redacted

    def _edits(self, text: str, scan: Scan, known: list[Span]) -> tuple[list[_Edit], bool]:
        """What one pass replaces in the text, and whether nothing can be left after it."""
        parts: list[Document] = []
        edits: list[_Edit] = []
        places = sorted([*scan.places, *(start for start, _ in known)])
        is_wanted = lambda start, end: bisect_left(places, start) < bisect_left(places, end)  # noqa: E731
        is_too_deep = self._depth >= _MAX_DEPTH
        self._depth += 1
        for part in documents(text, is_wanted, is_too_deep=is_too_deep):
            parts.append(part)
            if part.is_unread:
                edits.append((part.start, part.end, MARK))
                continue
            redacted = self.value(part.value)
            if redacted is not part.value:
                edits.append((part.start, part.end, part.written(redacted)))
        self._depth -= 1
        if parts and not _apply(text, [(part.start, part.end, "") for part in parts]).strip():
            return edits, True  # its strings are redacted for good one by one
        starts = [part.start for part in parts]

        def is_inside(offset: int) -> bool:
            index = bisect_right(starts, offset) - 1
            return index >= 0 and offset < parts[index].end

        for start, end in (*scan.credentials(is_inside), *known):
            if not is_inside(start):
                edits.append((start, end, MARK))
        return edits, False

    def _known_spans(self, text: str) -> Iterator[Span]:
        for form in self._known:
            start = text.find(form)
            while start >= 0:
                yield start, start + len(form)
                start = text.find(form, start + len(form))


TextRedactor = Redactor | RowRedactor
"""What takes the credentials out of texts and decoded JSON."""


def _escaped(secret: str) -> Iterator[str]:
    """The secret as JSON in strings in JSON has it."""
    for _ in range(_MAX_ESCAPES):
        yield secret
        secret = json.dumps(secret)[1:-1]


def _apply(text: str, edits: list[_Edit]) -> str:
    """Replace the parts; those that overlap or touch become one."""
    pieces: list[str] = []
    start = end = done = 0
    replacement = ""
    for next_start, next_end, next_replacement in sorted(edits):
        if replacement and next_start <= end:
            end = max(end, next_end)
            continue
        pieces += (text[done:start], replacement)
        done = end
        start, end, replacement = next_start, next_end, next_replacement
    return "".join((*pieces, text[done:start], replacement, text[end:]))
