"""The names of a text that announce a credential, and how each goes on to its value.

Many grammars meet in a chat: `KEY=…` of a shell, `key: …` of YAML and headers, JSON that was
cut or quoted, SQL's `SECRET '…'`, keyword arguments, XML, command-line flags, URLs. What
stands between name and value tells them apart; `grammars` then reads the value.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from open_llm_proxy.server.redaction.credentials import Kind, name_kind, word_set

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_LONGEST = 80
_END = re.compile(r"[A-Za-z0-9_-]{0,80}")
_ID = re.compile(r" (?:ID|Id|id)\b(?!=)")
_FLAG = re.compile(r"--\Z|(?:\s|\A)-\Z")
_ESCAPE = re.compile(r"\\(?:[nrtbf]|u[0-9a-fA-F]{4})|%[0-9a-fA-F]{2}")
_OWNERS = word_set(
    "api access secret private auth client bearer session refresh security encryption proxy "
    "account signing s3"
)
_PARAMETER = ("?", "&", "#", "&amp;", "\\u0026", "%26", "%3F", "%3f")
_QUOTE = r"\\{0,63}[\"'`]"
_SEPARATOR = (
    rf"(?P<quote>{_QUOTE})?\\?\]?\*{{0,2}}[ \t]{{0,16}}"
    r"(?P<sign>={1,3}>?|::?=?|%3[Dd]|\\{1,4}u003[Dd]|>)\*{0,2}"
    r"(?P<blank>[ \t]{0,64}(?:[|>][-+]?[ \t]{0,8}(?=\r?\n|\\{1,3}n))?"
    r"(?:(?:\r?\n|\\{1,3}n)\s{0,64})?)"
)
# What may stand between a name and its value; the first that fits decides how to read on.
_FOLLOWING = re.compile(
    # password: str = "…"
    rf"(?P<typed>:[ \t]{{0,4}}[A-Za-z_][\w.|\[\] ?]{{0,40}}=[ \t]{{0,4}}(?={_QUOTE}))"
    rf"|(?P<separated>{_SEPARATOR})"
    r"|(?P<said> (?:is|was)[ :]{1,3})"
    r"|(?P<marked_up></arg_key>(?:\s|\\{1,3}n){0,32}<arg_value>)"
    # "name": "DB_PASSWORD", "value": "…"
    rf"|(?P<paired>(?:{_QUOTE})?,?(?:\s|\\{{1,3}}n){{0,64}}(?:{_QUOTE})?[Vv]alue(?:{_QUOTE})?\s{{0,8}}[:=]\s{{0,8}})"
    rf"|(?P<called>{_QUOTE}\s{{0,8}},\s{{0,32}}(?={_QUOTE})|\()"
    r"|(?P<spaced>\s{1,32}(?:(?:to|as)\s{1,8})?)"
)
# A word of a sentence: after a name, only a flag or a .netrc file has its value like that.
_WORD_AFTER = re.compile(r" (?!is |was |to |as )[A-Za-z]+(?:[ .,;:!?)]|\Z)")
_COLUMN = re.compile(r"[ \t\"*`]{0,40}[|,;\t\r\n]")


@dataclass(slots=True)
class Name:
    """A name at `text[start:end]`, and what it announces."""

    text: str
    start: int
    end: int
    kind: Kind | None

    def __str__(self) -> str:
        return self.text[self.start : self.end]

    def before(self, most: int = 60) -> str:
        """The text up to the name, at most so many characters of it."""
        return self.text[max(0, self.start - most) : self.start]

    def words_before(self) -> list[str]:
        """The words before the name, in lower case, if only white space parts them from it."""
        before = self.before()
        return before.lower().split() if before[-1:].isspace() else []

    @property
    def is_flag(self) -> bool:
        """`--password …`, and `-storepass …` of Java's tools."""
        return _FLAG.search(self.text, max(0, self.start - 3), self.start) is not None

    @property
    def is_of_netrc(self) -> bool:
        """`machine example.org login me password …`"""
        return self.words_before()[-2:-1] == ["login"]

    @property
    def is_parameter(self) -> bool:
        """`?token=…`, plain or escaped."""
        return self.before(6).endswith(_PARAMETER)

    @property
    def begins_line(self) -> bool:
        line = self.before(40).replace("\\n", "\n").rpartition("\n")
        return not line[2].strip(" \t>#*-'\"") and (bool(line[1]) or self.start < 40)

    @property
    def is_column(self) -> bool:
        """Whether it may be a heading of a table."""
        return _COLUMN.match(self.text, self.end) is not None

    def following(self) -> re.Match[str] | None:
        """What stands after the name, by the name of a group; None in an ordinary sentence."""
        if _WORD_AFTER.match(self.text, self.end) and not (self.is_flag or self.is_of_netrc):
            return None
        return _FOLLOWING.match(self.text, self.end)


def names_at(text: str, hits: Iterable[int]) -> Iterator[Name]:
    """The names that contain the words at `hits`, ascending, each name once."""
    position = 0
    for hit in hits:
        if hit >= position:
            name = _name_at(text, hit)
            position = name.end
            yield name


def _name_at(text: str, hit: int) -> Name:
    """The name around the word at `hit`, with the words that belong to it: `API key`."""
    lowest = max(0, hit - _LONGEST)
    start = lowest + len(text[lowest:hit].rstrip(_CHARACTERS))
    if start and text[start - 1] in "\\%" and (escape := _ESCAPE.match(text, start - 1)):
        start = min(escape.end(), hit)  # the n of \n is no part of the name
    match = _END.match(text, hit)
    end = match.end() if match else hit
    end -= text[end - 1] == "-"
    written = text[start:end].lstrip("-.")
    start = end - len(written)
    if written in ("key", "Key") and _ID.match(text, end):
        end += 3
        written = text[start:end]
    kind = name_kind(written)
    if kind in (None, Kind.WORD) and text[start - 1 : start] == " ":
        first = _with_owners(text, start)
        if first < start and (owned := name_kind(text[first:end])):
            return Name(text, first, end, owned)
    return Name(text, start, end, kind)


def _with_owners(text: str, start: int) -> int:
    """Where the name begins if words like `api` or `secret access` stand before it."""
    words = text[max(0, start - 40) : start].rpartition("\n")[2].split(" ")[-4:-1]
    while words and (word := words.pop().lstrip("\t*\"'`([").lower()) in _OWNERS:
        start -= len(word) + 1
    return start
