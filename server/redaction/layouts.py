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

Span = tuple[int, int]
_MOST_ROWS = 5_000  # of a table; what follows is replaced as a whole
_CELL = r'(?:"(?:[^"\n]|"")*+"|[^{0}\n]*+)'
_HEADING = re.compile(r"[A-Za-z][\w #/.-]{0,40}(?:\([\w ]{1,20}\))?")
_RULER = re.compile(r"[ \t]*[|+]?[ \t:|+-]*-{2,}[ \t:|+-]*")
_AROUND = ' \t\r"`*'  # a cell


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
    cell = re.compile(_CELL.format(re.escape(delimiter)))
    headings = _cells(text, start, end, delimiter, cell)
    names = [text[slice(*heading)] for heading in headings]
    spaced = delimiter in ";," and any(text[first - 1] in " \t" for first, _ in headings if first)
    if len(names) < 2 or spaced or not all(map(_HEADING.fullmatch, names)):
        return [], at
    kinds = {index: kind for index, name in enumerate(names) if (kind := name_kind(name))}
    has_ruler = _RULER.fullmatch(text, end + 1, _end_of_line(text, end + 1)) is not None
    if not kinds or (delimiter == "|" and not has_ruler):
        return [], at
    found: list[Span] = []
    position = end + 1 if not has_ruler else _end_of_line(text, end + 1) + 1
    for row in range(_MOST_ROWS + 1):
        line_end = _end_of_line(text, position)
        cells = _cells(text, position, line_end, delimiter, cell) if position < len(text) else []
        if len(cells) != len(headings) and not (cells and line_end == len(text)):
            break
        if row == _MOST_ROWS:
            return [*found, (position, len(text))], len(text)
        for index, kind in kinds.items():
            if index < len(cells) and _is_secret(kind, names[index], text[slice(*cells[index])]):
                found.append(cells[index])
        position = line_end + 1
    return found, position


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _cells(text: str, start: int, end: int, delimiter: str, cell: re.Pattern[str]) -> list[Span]:
    """The cells of a line, without what stands around their content."""
    if delimiter == "|":  # an outer pair of marks is no cell
        line = text[start:end]
        start += len(line) - len(line.lstrip().removeprefix("|"))
        end = max(start, start + len(text[start:end].rstrip().removesuffix("|")))
    cells: list[Span] = []
    while start <= end and (match := cell.match(text, start, end)):
        content = match[0]
        first = start + len(content) - len(content.lstrip(_AROUND))
        cells.append((first, max(first, start + len(content.rstrip(_AROUND)))))
        start = match.end() + 1
    return cells


def _is_secret(kind: Kind, name: str, value: str) -> bool:
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
    found = [_bounds(value) for value in values if not is_stand_in(value["value"].strip("\"'"))]
    if end == at + _LONGEST_MANIFEST and found:
        end = following.start() if following else len(text)
        found.append((at + _LONGEST_MANIFEST, end))  # what is beyond it goes as a whole
    return found, end


def _bounds(match: re.Match[str]) -> Span:
    start, content = match.start("value"), match["value"]
    return start, start + len(content.rstrip(" \t\r\"'"))


_TAG = re.compile(r"<[A-Za-z][^<>]{0,2000}")
_ATTRIBUTE = re.compile(
    r"([\w.:@-]{1,80})\s{0,8}=\s{0,8}"
    r"(?:\\{0,15}([\"'])(?P<quoted>[^\"'<>]*)\\{0,15}\2|(?P<bare>[^\s\"'<>=`{}]{1,500}))"
)
_NAMING = ("name", "id", "key", "property", "autocomplete")
_VALUES = ("defaultvalue", "content", "value")


def tag_values(match: re.Match[str]) -> Iterator[Span]:
    """`<input type="password" value="…">`, and tags whose name or id announces a credential."""
    text, at = match.string, match.start()
    start = text.rfind("<", max(0, at - 2000), at)
    tag = _TAG.match(text, start) if start >= 0 else None
    if tag is None:
        return
    attributes: dict[str, Span] = {}
    for attribute in _ATTRIBUTE.finditer(text, tag.start(), tag.end()):
        attributes[attribute[1].lower()] = attribute.span(attribute.lastgroup or "")
    contents = {name: text[slice(*span)] for name, span in attributes.items()}
    is_typed = contents.get("type", "").lower() == "password"
    named = (name_kind(contents[name]) for name in _NAMING if name in contents)
    kind = Kind.PASSWORD if is_typed else next(filter(None, named), None)
    for name in _VALUES:
        value = contents.get(name, "")
        if kind and is_quoted_secret(kind, value) and (is_typed or not is_ordinary(value)):
            yield attributes[name]
    yield tag.end(), tag.end()
