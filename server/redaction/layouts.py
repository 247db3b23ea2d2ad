"""Credentials that a layout gives away: a column of a table, a manifest of Kubernetes, a tag."""

import re
from collections.abc import Iterator

from open_llm_proxy.server.redaction.credentials import (
    Kind,
    is_ordinary,
    is_quoted_secret,
    is_secret_word,
    is_stand_in,
    name_kind,
)
from open_llm_proxy.server.redaction.values import quoted_value

Span = tuple[int, int]
_MOST_ROWS = 5_000  # of a table; what follows is replaced as a whole
_CELL = r'(?:"(?:[^"\n]|"")*+"|[^{0}\n]*+)'
_HEADING = re.compile(r'[ \t]*"?[A-Za-z][\w #/.-]{0,40}(?:\([\w ]{1,20}\))?"?[ \t]*')
_RULER = re.compile(r"[ \t]*[|+]?[ \t:|+-]*-{2,}[ \t:|+-]*")


def table_values(text: str, at: int) -> tuple[list[Span], int]:
    """The credentials of the table with the name at `at` in its first line, and where it ends.

    A Markdown table, one of a database's shell, or CSV with commas, semicolons or tabs. No
    spans and `at` itself where it is none.
    """
    start = text.rfind("\n", max(0, at - 2000), at) + 1
    end = text.find("\n", at, at + 2000)
    line = text[start:end]
    delimiter = next((mark for mark in "|\t;," if mark in line), None)
    if end < 0 or delimiter is None or (start == 0 and at > 2000):
        return [], at
    table = _Table(text, delimiter)
    headings = table.cells(start, end)
    names = [text[first:last].strip(' \t"') for first, last in headings]
    if len(headings) < 2 or not all(table.is_heading(first, last) for first, last in headings):
        return [], at
    kinds = {index: kind for index, name in enumerate(names) if (kind := name_kind(name))}
    has_ruler = _RULER.fullmatch(text, end + 1, table.end_of_line(end + 1)) is not None
    if not kinds or (delimiter == "|" and not has_ruler):
        return [], at
    found: list[Span] = []
    position = end + 1 if not has_ruler else table.end_of_line(end + 1) + 1
    for row in range(_MOST_ROWS + 1):
        line_end = table.end_of_line(position)
        cells = table.cells(position, line_end) if position < len(text) else []
        if len(cells) != len(headings) and not (cells and line_end == len(text)):
            break
        if row == _MOST_ROWS:
            return [*found, (position, len(text))], len(text)
        found += [
            cells[i]
            for i, kind in kinds.items()
            if i < len(cells) and table.is_secret(kind, names[i], cells[i])
        ]
        position = line_end + 1
    return found, position


class _Table:
    """Reads the lines of a table; cells are spans, without white space and quotes around them."""

    def __init__(self, text: str, delimiter: str) -> None:
        self._text, self._delimiter = text, delimiter
        self._cell = re.compile(_CELL.format(re.escape(delimiter)))

    def end_of_line(self, start: int) -> int:
        end = self._text.find("\n", start)
        return len(self._text) if end < 0 else end

    def cells(self, start: int, end: int) -> list[Span]:
        cells: list[Span] = []
        text = self._text
        if self._delimiter == "|":  # an outer pair of marks is no cell
            line = text[start:end]
            start += len(line) - len(line.lstrip().removeprefix("|"))
            end = max(start, start + len(text[start:end].rstrip().removesuffix("|")))
        while match := self._cell.match(text, start, end):
            content = match[0]
            first = start + len(content) - len(content.lstrip(' \t\r"`*'))
            cells.append((first, max(first, start + len(content.rstrip(' \t\r"`*')))))
            start = match.end() + 1
            if start > end:
                break
        return cells

    def is_heading(self, start: int, end: int) -> bool:
        spaced = self._delimiter != "|" and self._text[start - 1 : start] in (" ", "\t")
        spaced = spaced and self._delimiter != "\t"
        return not spaced and _HEADING.fullmatch(self._text, start, end) is not None

    def is_secret(self, kind: Kind, name: str, cell: Span) -> bool:
        value = self._text[slice(*cell)]
        if " " in value or (value.isdigit() and name.lower().endswith("s")):
            return False  # how many passwords there were
        return is_secret_word(kind, value, tight=False, shouted=False, alone=True)


# `kind: Secret`, as it stands before that word, and the data of such a manifest.
_KIND = re.compile(r"(?:\A|\n)(?P<indent>[ \t]*(?:- )?)[\"']?kind[\"']?:[ \t]*[\"']?\Z")
_DATA = r"(?m)^(?:{0}|{1}- )(?:data|stringData):(?P<inline>[ \t]*\{{[^}}\n]*\}})?[ \t]*(?:#.*)?$"
_INLINE = re.compile(r":\s*[\"']?(?P<value>[^,}\"'\n]+)")
# A line of the data: a key and its value, or a part of a value that has several lines.
_ENTRY = re.compile(
    r"\n(?P<indent>[ \t]*+)"
    r"(?:[\"']?[\w.-]{1,253}[\"']?:(?:[ \t]+(?:[|>][-+0-9]{0,2}[ \t]*)?|(?=\r?\n|\Z)))?"
    r"[\"']?(?P<value>[^\r\n]*)"
)
_LONGEST_MANIFEST = 100_000


def is_manifest(text: str, at: int) -> re.Match[str] | None:
    """Whether the `Secret` at `at` says what a manifest of Kubernetes is."""
    if text[at : at + 6] != "Secret" or text[at + 6 : at + 7].strip(" \t\r\n\"'#"):
        return None
    return _KIND.search(text, max(0, at - 60), at)


def manifest_values(text: str, after: int, kind: re.Match[str]) -> tuple[list[Span], int]:
    """The values of a Secret's data, whatever their keys, and where the manifest ends.

    `kind` is the match of `is_manifest`; what is before `after` was read already.
    """
    at, indent = kind.end(), len(kind["indent"])
    outer = " " * max(0, indent - 2)  # of the list that the manifest is in
    border = re.compile(r"\n---" + (rf"|\n{outer}- " if indent >= 2 else ""))
    start = max(0, after, at - _LONGEST_MANIFEST)
    for match in border.finditer(text, start, at):
        start = match.start()
    following = border.search(text, at)
    end = min(following.start() if following else len(text), at + _LONGEST_MANIFEST)
    values: list[re.Match[str]] = []
    for data in re.compile(_DATA.format(" " * indent, outer)).finditer(text, start, end):
        if data["inline"]:
            values += _INLINE.finditer(text, *data.span("inline"))
        position = data.end()
        while entry := _ENTRY.match(text, position, end):
            if entry["value"] and len(entry["indent"]) <= indent:
                break
            values.append(entry)
            position = entry.end()
    return [_bounds(value) for value in values if not is_stand_in(value["value"].strip("\"'"))], end


def _bounds(match: re.Match[str]) -> Span:
    start, content = match.start("value"), match["value"]
    return start, start + len(content.rstrip(" \t\r\"'"))


_LONGEST_TAG = 2_000
_ATTRIBUTE = re.compile(
    r"([\w.:@-]{1,80})\s{0,8}=\s{0,8}(?:(?=\\{0,15}[\"'])|([^\s\"'<>=`{}]{1,500}))"
)
_TAG_END = re.compile(r"[<>]|\Z")
_NAMING = ("name", "id", "key", "property", "autocomplete")
_VALUES = ("value", "content", "defaultvalue")


def tag_values(match: re.Match[str]) -> Iterator[Span]:
    """`<input type="password" value="…">`, and tags whose name or id announces a credential."""
    text, at = match.string, match.start()
    start = text.rfind("<", max(0, at - _LONGEST_TAG), at)
    if start < 0 or not text[start + 1 : start + 2].isalpha():
        return
    kind, is_typed = None, False
    value: Span | None = None
    position = start + 1
    while end := _TAG_END.search(text, position, start + _LONGEST_TAG):
        attribute = _ATTRIBUTE.search(text, position, end.end())
        if attribute is None:
            break
        name, written = attribute[1].lower(), attribute.span(2)
        position = attribute.end()
        if attribute[2] is None:
            quoted = quoted_value(text, position)
            if quoted is None:
                break
            written, position = (quoted.start, quoted.end), quoted.after
        content = text[slice(*written)]
        if name == "type" and content.lower() == "password":
            kind, is_typed = Kind.PASSWORD, True
        elif name in _NAMING:
            kind = kind or name_kind(content)
        elif name in _VALUES:
            value = written
    content = text[slice(*value)] if value else ""
    is_secret = kind is not None and is_quoted_secret(kind, content)
    if value and is_secret and (is_typed or not is_ordinary(content)):
        yield value
    yield max(position, at), max(position, at)
