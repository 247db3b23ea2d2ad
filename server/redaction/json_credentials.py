"""Credentials in JSON: which members carry one, and how to redact a JSON text in place.

A member is judged by its key and by what stands beside it: `{"name": "API_KEY", "value": "…"}`
and `{"key": "…", "secret": "…"}` are credentials too, and in `{"token": "the", "logprob": -1}`
there is none. `json_parts` reads the tokens of a text, decodes each string that matters, and
says which characters to replace; numbers, spaces and the order of members stay as they are.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from open_llm_proxy.server.redaction.credentials import (
    MARK,
    Kind,
    is_quoted_secret,
    is_stand_in,
    name_kind,
)

Edit = tuple[int, int, str]
"""Replace `text[start:end]` by the string."""

# One string, bracket or the end of the text, after what needs no look: numbers, literals,
# commas. A string may lack its end, as the last one of a cut text does. The pattern matches at
# every position, so that matches follow each other without a gap.
_TOKEN = re.compile(
    r"[\s,:0-9.eE+\-truefalsnNIity]*+"
    r'(?:(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(?P<close>")|\\?\Z))|(?P<bracket>[{}\[\]])'
    r"|\Z|(?P<other>.))",
    re.DOTALL,
)
_START = re.compile(r'\{(?=\s{0,64}")|\[(?=\s{0,64}["{\[0-9tfn-])')
_STRING_START = re.compile(r'\s*+"')
_COLON = re.compile(r"\s*+:")
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")

# Keys of an object that stands under a credential's key: "password": {"value": "…"}.
_VALUE_KEYS = frozenset(
    ("value", "values", "default", "const", "current", "plaintext", "new", "old")
)
# Keys whose value is a name, for the "value" beside it.
_NAME_KEYS = frozenset(("name", "key", "header", "field", "variable", "parameter"))
_COOKIE_ATTRIBUTES = frozenset(("name", "domain", "path", "expires", "samesite", "priority"))
# An object with one of these describes a value, as JSON Schema does, and holds none.
_SCHEMA_KEYS = frozenset(("type", "$ref", "properties", "description"))
# What stands beside a token of text.
_TEXT_TOKEN_KEYS = frozenset(
    ("logprob", "logprobs", "bytes", "score", "lemma", "pos", "offset", "offsets")
)
_TEXT_TOKEN = re.compile(rf'\s{{0,64}},\s{{0,64}}"(?:{"|".join(sorted(_TEXT_TOKEN_KEYS))})"')


def member_kind(key: str, inherited: Kind | None = None, named: Kind | None = None) -> Kind | None:
    """What credential the value of `key` is, or None.

    `inherited` is the kind of the object that the member is in, `named` the kind that another
    member announces for its "value".
    """
    lower = key.lower()
    if lower in _SCHEMA_KEYS:
        return None
    if lower == "value" and named:
        return named
    if inherited is Kind.COOKIE and lower not in _COOKIE_ATTRIBUTES:
        return inherited
    if inherited and lower in _VALUE_KEYS:
        return inherited
    kind = name_kind(key)
    return None if kind is Kind.SIGNATURE else kind


def container_kind(key: str, kind: Kind | None) -> Kind | None:
    """What an object or array inherits as the value of `key`, which is of this kind.

    A kind that came down itself goes no further: to the cookies of a jar, not to their parts.
    """
    return kind if name_kind(key) else None


def object_kinds(members: dict[Any, Any], inherited: Kind | None) -> dict[str, Kind]:
    """The kinds of those members of a decoded object that are credentials, by key."""
    if inherited is Kind.COOKIE and not _SCHEMA_KEYS.isdisjoint(members):
        inherited = None
    named = None
    for key in _NAME_KEYS.intersection(members):
        if isinstance(name := members[key], str):
            named = named or name_kind(name)
    kinds: dict[str, Kind] = {}
    for key in members:
        if isinstance(key, str) and (kind := member_kind(key, inherited, named)):
            kinds[key] = kind
    if "token" in kinds and not _TEXT_TOKEN_KEYS.isdisjoint(members):
        del kinds["token"]
    if "secret" in kinds and isinstance(members.get("key"), str):
        kinds["key"] = Kind.SECRET
    return kinds


@dataclass(slots=True)
class _Container:
    """An object or array under way, and what its members need to know of each other."""

    is_array: bool
    inherited: Kind | None = None
    key: str = ""
    kind: Kind | None = None  # of the member `key`
    named: Kind | None = None
    key_edit: Edit | None = None  # for the value of "key", if a "secret" turns up beside it
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
                return str(json.loads(f'"{candidate}"', strict=False))
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


class _Editor:
    """Walks the tokens of one text and collects the edits."""

    def __init__(self, text: str, redact: Callable[[str], str]) -> None:
        self._text = text
        self._redact = redact
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

    def on_string(self, string: _String, suspicious: bool, previous: _String | None) -> None:
        top = self._containers[-1]
        if not top.is_array and _COLON.match(self._text, string.after):
            self._on_key(string, suspicious, top)
            return
        if previous and _COLON.match(self._text, previous.after):
            top.key = previous.raw.lower()
        self._on_value(string, suspicious, top)
        top.key, top.kind = "", None

    def _on_key(self, string: _String, suspicious: bool, top: _Container) -> None:
        key = string.decoded() if suspicious else string.raw
        top.key, top.kind = key.lower(), None
        if top.inherited is Kind.COOKIE and top.key in _SCHEMA_KEYS:
            top.inherited = None
        if suspicious or top.inherited or top.named:
            top.kind = member_kind(key, top.inherited, top.named)
        if suspicious and (redacted := self._redact(key)) != key:
            self.edits.append(string.edit(redacted))

    def _on_value(self, string: _String, suspicious: bool, top: _Container) -> None:
        content, kind = string.decoded(), top.value_kind
        if top.key == "token" and _TEXT_TOKEN.match(self._text, string.after):
            kind = None
        redacted = self._redacted(content, kind, suspicious)
        if redacted != content:
            self.edits.append(string.edit(redacted))
        if kind and redacted == MARK:
            self._on_secret(top)
        elif top.key == "key" and not is_stand_in(content):
            top.key_edit = string.edit(MARK)
            self._on_secret(top)
        if suspicious and top.key in _NAME_KEYS:
            top.named = name_kind(redacted)

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
        if top.has_secret and top.key_edit:
            self.edits.append(top.key_edit)
            top.key_edit = None


@dataclass(slots=True)
class JSONPart:
    """A JSON document at `text[start:end]` and what to replace in it."""

    start: int
    end: int
    edits: list[Edit]


def json_parts(
    text: str, suspicions: list[int], redact: Callable[[str], str]
) -> Iterator[JSONPart]:
    """The JSON documents of a text: the whole of it, its lines, or what stands between prose.

    `suspicions` are the offsets, ascending, where a credential or its name may stand; strings
    without one are passed over. `redact` is applied to the content of the others. Tokens are
    read, not grammar: a document that breaks off at the end is read too, at any depth, and
    what only resembles JSON loses nothing by it.
    """
    reader = _Reader(text, suspicions, redact)
    if _STRING_START.match(text):  # a string, or members that have lost their braces
        part, _ = reader.read(0, until_closed=False)
        if part:
            yield part
            return
    position = 0
    while start := _START.search(text, position):
        part, position = reader.read(start.start(), until_closed=True)
        if part:
            yield part


class _Reader:
    """Reads the documents of one text, token by token; most strings are only passed over."""

    def __init__(self, text: str, suspicions: list[int], redact: Callable[[str], str]) -> None:
        self._text = text
        self._suspicions = [*suspicions, len(text)]
        self._redact = redact
        self._has_hidden_letters = "\\u00" in text  # a name or a quote may be escaped as \\u0041

    def read(self, start: int, *, until_closed: bool) -> tuple[JSONPart | None, int]:
        """The document that begins at `start`, or None, and the offset where the reading ended."""
        editor = _Editor(self._text, self._redact)
        suspicion = self._suspicion_after(start)
        quiet = not self._has_hidden_letters
        previous: re.Match[str] | None = None
        for token in _TOKEN.finditer(self._text, start):
            if token.lastgroup == "string":
                if not quiet or suspicion < token.end():
                    string = self._string(token)
                    suspicion = self._suspicion_after(string.start)
                    suspicious = suspicion < string.end or self._hides_letters(string)
                    editor.on_string(string, suspicious, previous and self._string(previous))
                    suspicion = self._suspicion_after(string.end)
                    quiet = editor.is_quiet and not self._has_hidden_letters
                previous = token
            elif token.lastgroup == "bracket":
                editor.on_bracket(token["bracket"])
                quiet = editor.is_quiet and not self._has_hidden_letters
                previous = None
                if until_closed and editor.is_closed:
                    return JSONPart(start, token.end(), editor.edits), token.end()
            elif token.lastgroup == "other":
                return None, token.end()
        return JSONPart(start, len(self._text), editor.edits), len(self._text)

    def _suspicion_after(self, offset: int) -> int:
        index = bisect_left(self._suspicions, offset)
        return self._suspicions[min(index, len(self._suspicions) - 1)]

    def _hides_letters(self, string: _String) -> bool:
        if not self._has_hidden_letters:
            return False
        return self._text.find("\\u00", string.start, string.end) >= 0

    def _string(self, token: re.Match[str]) -> _String:
        end = token.end()
        closed = token["close"] is not None
        return _String(self._text, token.start("string") + 1, end - closed, end)
