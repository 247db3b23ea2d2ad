"""How to redact a JSON text in place.

`json_parts` reads the tokens of a text, decodes each string that matters, and says which
characters to replace; numbers, spaces and the order of members stay as they are. What stands
between two places that matter is passed over, whole objects at a time.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from open_llm_proxy.server.redaction.credentials import (
    MARK,
    Kind,
    is_quoted_secret,
    is_stand_in,
    name_kind,
)
from open_llm_proxy.server.redaction.json_members import (
    NAME_KEYS,
    SCHEMA_KEYS,
    TEXT_TOKEN_KEYS,
    container_kind,
    member_kind,
)
from open_llm_proxy.server.redaction.looks import GLANCE_CHARACTERS, LOOK_CHARACTERS, Looks
from open_llm_proxy.server.redaction.shapes import is_plain

Edit = tuple[int, int, str]
"""Replace `text[start:end]` by the string."""

_TEXT_TOKEN = re.compile(rf'\s{{0,64}},\s{{0,64}}"(?:{"|".join(sorted(TEXT_TOKEN_KEYS))})"')
_MOST_DOCUMENTS = 4_000  # that are not flat; the rules for text read what follows

# One string, bracket or the end of the text, after what needs no look: numbers, literals,
# commas. A string may lack its end, as the last one of a cut text does. The pattern matches at
# every position, so that matches follow each other without a gap.
_TOKEN = re.compile(
    r"[\s,:0-9.eE+\-truefalsnNIity]*+"
    r'(?:(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(?P<close>")|\\?\Z))|(?P<bracket>[{}\[\]])'
    r"|\Z|(?P<other>.))",
    re.DOTALL,
)
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Where a document begins: its first member, as far as that can be seen, is one.
_START = re.compile(
    rf"\{{(?=\s{{0,64}}{_STRING}\s{{0,64}}(?::|\Z))"
    rf"|\[(?=\s{{0,64}}(?:{_STRING}\s{{0,64}}(?:[,\]]|\Z)|[{{\[0-9tfn-]))"
    r'|[{\[](?=\s{0,64}"[^"\\]*+(?:\\.[^"\\]*+)*+\\?\Z)',  # cut within it
    re.DOTALL,
)
# Objects and arrays without others in them, one after the other.
_FLAT_VALUES = re.compile(
    rf'(?:[\s,]*+(?:\{{(?:[^"{{}}\[\]]|{_STRING})*+\}}|\[(?:[^"{{}}\[\]]|{_STRING})*+\]))*+',
    re.DOTALL,
)
_STRING_START = re.compile(r'\s*+"')
_COLON = re.compile(r"\s*+:")
_HIDDEN_LETTER = re.compile(r"\\u00")  # a name or a quote may be escaped as \u0041
_DECODER = json.JSONDecoder(strict=False)
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")


@dataclass(slots=True)
class _Container:
    """An object or array under way, and what its members need to know of each other."""

    is_array: bool
    inherited: Kind | None = None
    key: str = ""
    kind: Kind | None = None  # of the member `key`
    named: Kind | None = None
    key_value: "_String | None" = None  # of "key", if a "secret" turns up beside it
    has_secret: bool = False

    @property
    def value_kind(self) -> Kind | None:
        return self.inherited if self.is_array else self.kind


@dataclass(slots=True)
class _String:
    """A string of the text: `text[start:end]` between the quotes, still escaped."""

    text: str
    start: int
    end: int
    after: int

    @property
    def raw(self) -> str:
        return self.text[self.start : self.end]

    def decoded(self) -> str:
        raw = self.raw
        if "\\" not in raw:
            return raw
        for candidate in (raw, _HALF_ESCAPE.sub("", raw)):
            try:
                return str(_DECODER.decode(f'"{candidate}"'))
            except ValueError:
                continue
        return raw  # an escape that JSON does not have: taken as it is written

    def edit(self, content: str) -> Edit:
        raw = self.raw
        if "\\" not in raw:
            escaped = json.dumps(content, ensure_ascii=False)
        else:
            escaped = json.dumps(content, ensure_ascii=raw.isascii() or "\\ud" in raw.lower())
        return self.start, self.end, escaped[1:-1]


@dataclass(frozen=True, slots=True)
class _Key:
    """A key that was read before, and the credential that it announces by itself."""

    decoded: str
    redacted: str
    kind: Kind | None


class _Editor:
    """Walks the tokens of one document and collects the edits."""

    def __init__(
        self, text: str, redact: Callable[[str], str], looks: Looks, keys: dict[str, _Key]
    ) -> None:
        self._text = text
        self._redact = redact
        self._looks = looks
        self._keys = keys
        self._containers = [_Container(is_array=False)]
        self.edits: list[Edit] = []

    @property
    def is_closed(self) -> bool:
        return len(self._containers) == 1

    @property
    def is_quiet(self) -> bool:
        """Whether a string without anything suspicious in it can be passed over."""
        top = self._containers[-1]
        return not (top.kind or top.inherited or top.named or top.key == "key")

    def on_bracket(self, bracket: str) -> None:
        top = self._containers[-1]
        if bracket in "{[":
            kind = top.value_kind if top.is_array else container_kind(top.key, top.kind)
            self._containers.append(_Container(bracket == "[", kind))
            top.kind = None
        elif len(self._containers) > 1:
            self._containers.pop()

    def on_string(self, string: _String, suspicious: bool, previous: _String | None) -> bool:
        """Look at a key or a value; False if there is no look left for it."""
        top = self._containers[-1]
        if not top.is_array and _COLON.match(self._text, string.after):
            return self._on_key(string, suspicious, top)
        if previous and _COLON.match(self._text, previous.after):
            top.key = previous.raw.lower()
        could_look = self._on_value(string, suspicious, top)
        top.key, top.kind = "", None
        return could_look

    def _on_key(self, string: _String, suspicious: bool, top: _Container) -> bool:
        key = self._known_key(string) if suspicious else None
        if suspicious and not key:
            return False
        decoded = key.decoded if key else string.raw
        top.key, top.kind = decoded.lower(), key.kind if key else None
        if top.inherited is Kind.COOKIE and top.key in SCHEMA_KEYS:
            top.inherited = None
        if top.inherited or top.named:
            top.kind = member_kind(decoded, top.inherited, top.named)
        if key and key.redacted != key.decoded:
            self.edits.append(string.edit(key.redacted))
        return True

    def _known_key(self, string: _String) -> _Key | None:
        """The key, None if it is a new one and there is no look left for it."""
        raw = string.raw
        key = self._keys.get(raw)
        if key is None and self._looks.take(string.start, GLANCE_CHARACTERS):
            decoded = string.decoded()
            key = self._keys[raw] = _Key(decoded, self._redact(decoded), member_kind(decoded))
        return key

    def _on_value(self, string: _String, suspicious: bool, top: _Container) -> bool:
        content, kind = string.decoded(), top.value_kind
        if top.key == "token" and _TEXT_TOKEN.match(self._text, string.after):
            kind = None
        if kind or (suspicious and not is_plain(content)):
            cost = LOOK_CHARACTERS if kind else GLANCE_CHARACTERS
            if not self._looks.take(string.start, cost):
                return False
        redacted = self._redacted(content, kind, suspicious)
        if redacted != content:
            self.edits.append(string.edit(redacted))
        if kind and redacted == MARK:
            self._on_secret(top)
        elif top.key == "key":
            top.key_value = string
            self._on_secret(top)
        if suspicious and top.key in NAME_KEYS:
            top.named = name_kind(redacted)
        return True

    def _redacted(self, content: str, kind: Kind | None, suspicious: bool) -> str:
        if kind and is_quoted_secret(kind, content):
            return MARK
        redacted = self._redact(content) if suspicious else content
        if kind and redacted != content and is_quoted_secret(kind, redacted):
            return MARK  # what is left looks like a credential
        return redacted

    def _on_secret(self, top: _Container) -> None:
        """`key` and `secret` are a pair, whichever comes first."""
        top.has_secret = top.has_secret or top.key == "secret"
        if top.has_secret and top.key_value:
            if not is_stand_in(top.key_value.decoded()):
                self.edits.append(top.key_value.edit(MARK))
            top.key_value = None


@dataclass(slots=True)
class JSONPart:
    """A JSON document at `text[start:end]` and what to replace in it."""

    start: int
    end: int
    edits: list[Edit]


def json_parts(
    text: str, suspicions: list[int], redact: Callable[[str], str], looks: Looks
) -> Iterator[JSONPart]:
    """The JSON documents of a text: the whole of it, its lines, or what stands between prose.

    `suspicions` are the offsets, ascending, where a credential or its name may stand; strings
    without one are passed over. `redact` is applied to the content of the others. Tokens are
    read, not grammar: a document that breaks off at the end is read too, at any depth, and
    what only resembles JSON loses nothing by it. Where the looks are used up, the last part
    goes on to the end of the text and replaces all that is left of it.
    """
    reader = _Reader(text, suspicions, redact, looks)
    if _STRING_START.match(text):  # a string, or members that have lost their braces
        part, _ = reader.read(0, until_closed=False)
        if part:
            yield part
            return
    position = documents = 0
    while documents < _MOST_DOCUMENTS and (found := _START.search(text, position)):
        start = found.start()
        if (position := reader.flat_end(start)) > start:
            yield JSONPart(start, position, [])
            continue
        documents += 1
        part, position = reader.read(start, until_closed=True)
        if part:
            yield part


class _Reader:
    """Reads the documents of one text, token by token; most strings are only passed over."""

    def __init__(
        self, text: str, suspicions: list[int], redact: Callable[[str], str], looks: Looks
    ) -> None:
        hidden = [match.start() for match in _HIDDEN_LETTER.finditer(text)]
        self._text = text
        self._suspicions = [*(sorted([*suspicions, *hidden]) if hidden else suspicions), len(text)]
        self._redact = redact
        self._next = 0
        self._looks = looks
        self._keys: dict[str, _Key] = {}

    def flat_end(self, start: int) -> int:
        """Where the flat values from `start` on end that nothing suspicious is in."""
        self._next = bisect_left(self._suspicions, start)
        flat = _FLAT_VALUES.match(self._text, start, self._suspicion_after(start))
        return flat.end() if flat else start

    def read(self, start: int, *, until_closed: bool) -> tuple[JSONPart | None, int]:
        """The document that begins at `start`, or None, and the offset where the reading ended."""
        text = self._text
        self._next = bisect_left(self._suspicions, start)
        editor = _Editor(text, self._redact, self._looks, self._keys)
        suspicion = self._suspicion_after(start)
        position, quiet, previous = start, True, None
        while (token := _TOKEN.match(text, position)) and token.lastgroup:
            position = token.end()
            if token.lastgroup == "string":
                if not quiet or suspicion < position:
                    string = self._string(token)
                    suspicion = self._suspicion_after(string.start)
                    before = previous and self._string(previous)
                    if not editor.on_string(string, suspicion < string.end, before):
                        editor.edits.append((string.start, len(text), MARK))
                        return JSONPart(start, len(text), editor.edits), len(text)
                    suspicion = self._suspicion_after(string.end)
                    quiet = editor.is_quiet
                previous = token
            elif token.lastgroup == "bracket":
                editor.on_bracket(token["bracket"])
                quiet, previous = editor.is_quiet, None
                if until_closed and editor.is_closed:
                    return JSONPart(start, position, editor.edits), position
                if quiet and (flat := _FLAT_VALUES.match(text, position, suspicion)):
                    position = flat.end()
            else:
                return None, position
        return JSONPart(start, len(text), editor.edits), len(text)

    def _suspicion_after(self, offset: int) -> int:
        """The first suspicion from `offset` on; offsets ascend while a document is read."""
        while (suspicion := self._suspicions[self._next]) < offset:
            self._next += 1
        return suspicion

    def _string(self, token: re.Match[str]) -> _String:
        end = token.end()
        closed = token["close"] is not None
        return _String(self._text, token.start("string") + 1, end - closed, end)
