"""The JSON documents of a text: found between prose, decoded, and written back when changed.

A document that breaks off at the end of the text, as cut texts do, is completed for the decoder:
its last string gets a quote and each open bracket its partner, which are taken off again when it
is written. What decoding would alter otherwise is no document here, and the rules for text read
it: names that come twice, numbers beyond the range of a float.

The time is linear in the length of the text, whatever it consists of: what would take longer is
handed back as unread, and is replaced as a whole where it may hold a credential.
"""

import json
import math
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_MAX_NESTING = 200
_MAX_QUOTES = 200_000  # in one document: so many objects take some 20 MB
_MAX_READING = 12  # times the length of the text, for what looked like documents and was none
_BEGINNING = 1_000  # characters
_FEW = 10_000  # characters may always be read
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_CUT_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?\Z'
# Where a document begins: its first member, as far as that can be seen, is one. `x["a"]` is code.
_START = re.compile(
    rf"[{{\[](?:(?<=\{{)(?=\s{{0,64}}(?:{_STRING}\s{{0,64}}(?::|\Z)|{_CUT_STRING}))"
    rf"|(?<=\[)(?<![\w)\]]\[)(?=\s{{0,64}}(?:{_STRING}\s{{0,64}}(?:[,\]]|\Z)|[{{\[0-9tfn-]"
    rf"|{_CUT_STRING})))",
    re.DOTALL,
)
_MAY_BE_JSON = re.compile(r'[{\[]|\A\s*+"')
_FIRST_STRING = re.compile(rf"\s*+(?:{_STRING}(?P<colon>\s*+:)?|{_CUT_STRING})", re.DOTALL)
_UP_TO_BRACKET = re.compile(rf'(?:[^"{{}}\[\]]++|{_STRING})*+([{{}}\[\]])', re.DOTALL)
_UP_TO_OPEN_STRING = re.compile(rf'(?:[^"]++|{_STRING})*+', re.DOTALL)
_LONGEST_TAIL = 16  # of a word, a number or an escape that was cut
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CLOSING = {"{": "}", "[": "]"}
_LITERAL = string.ascii_letters + string.digits + "+-."


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document at `text[start:end]`; `value` is None where it was only passed over.

    It is unread where it is beyond a limit, and then has all that follows.

    `opened` and `added` completed it for the decoder, `missing` is what had no place in it.
    """

    start: int
    end: int
    value: Any = None
    is_ascii: bool = True
    opened: str = ""
    added: str = ""
    missing: str = ""
    is_unread: bool = False

    def written(self, value: object) -> str:
        """What stands for `value` in the place of the document."""
        text = json.dumps(value, ensure_ascii=self.is_ascii)
        return text[len(self.opened) : len(text) - len(self.added)] + self.missing


def documents(
    text: str, is_wanted: Callable[[int, int], bool], *, is_too_deep: bool = False
) -> Iterator[Document]:
    """The documents of a text, in their order: the whole of it, its lines, or parts of its prose.

    One for whose place `is_wanted` says no is only passed over. In a text that is too deep, in
    strings of strings, any other is unread.
    """
    if not _MAY_BE_JSON.search(text):
        return
    if (first := _FIRST_STRING.match(text)) and (document := _unbraced(text, first)):
        if not document.is_unread or is_wanted(0, len(text)):
            yield document
        return
    brackets = _Brackets(text)
    has_many_quotes = len(text) > _MAX_QUOTES and text.count('"') > _MAX_QUOTES
    position = 0
    while found := _START.search(text, position):
        start = found.start()
        extent = brackets.extent(start)
        end, closing = extent.end, extent.closing
        is_beyond = is_too_deep or brackets.read > _MAX_READING * len(text) + _FEW
        if is_beyond:
            end = len(text)
        elif extent.height > _MAX_NESTING:
            is_beyond = brackets.may_be_document(start, end)
        document = None
        if is_beyond or closing is not None:
            is_read = is_wanted(start, end)
            has_many = has_many_quotes and text.count('"', start, end) > _MAX_QUOTES
            if is_read and (is_beyond or has_many):
                yield Document(start, len(text), is_unread=True)
                return
            is_deep = extent.height > _MAX_NESTING and not is_beyond
            if is_read and not is_deep:
                document = brackets.document(start, end, closing or "")
            elif not is_deep:
                document = Document(start, end)
        if document:
            position = end
            yield document
        else:
            position = start + 1


def _unbraced(text: str, first: re.Match[str]) -> Document | None:
    """The text as one string, or as members that have lost their braces."""
    if first["colon"]:
        extent = _Brackets("{" + text).extent(0)
        if extent.end > len(text) and (
            extent.height > _MAX_NESTING or text.count('"') > _MAX_QUOTES
        ):
            return Document(0, len(text), is_unread=True)
        return _decoded(text, 0, len(text), "{", extent.closing) if extent.closing else None
    return None if text[first.end() :].strip() else _decoded(text, 0, len(text), "", "")


class _Extent(NamedTuple):
    """Where the document from a bracket on ends, and what closes the brackets still open there.

    None for the latter where its brackets do not match. The height is how deep it is nested.
    """

    end: int
    closing: str | None
    height: int


class _Cut(ValueError):
    """The text ends within the document."""


class _Brackets:
    """The brackets of a text, each with its partner: none is looked for twice.

    `read` is how many characters were read for what was no document.
    """

    __slots__ = ("_extents", "_text", "read")

    def __init__(self, text: str) -> None:
        self._text = text
        self._extents: dict[int, _Extent] = {}
        self.read = 0

    def extent(self, start: int) -> _Extent:
        """The extent of the document that begins with the bracket at `start`."""
        text, extents = self._text, self._extents
        if start in extents:
            return extents[start]
        position, height, closing = start, 0, ""
        opened: list[int] = []
        heights = [0]  # of what is within each of them
        is_none = False
        while not is_none and (match := _UP_TO_BRACKET.match(text, position)):
            self.read += match.end() - position
            position = match.end()
            if match[1] in _CLOSING and (known := extents.get(position - 1)):
                position, height, closing = known.end, known.height, known.closing or ""
                is_none = known.closing is None
                if closing:
                    break
                heights[-1] = max(heights[-1], height)
                height = 0
            elif match[1] in _CLOSING:
                opened.append(position - 1)
                heights.append(0)
            elif match[1] != _CLOSING[text[opened[-1]]]:
                is_none = True
            else:
                height_within = heights.pop() + 1
                heights[-1] = max(heights[-1], height_within)
                extents[opened.pop()] = _Extent(position, "", height_within)
                if not opened:
                    return extents[start]
        if not is_none and not closing:
            self.read += len(text) - position
            position = len(text)
        while opened:
            at = opened.pop()
            height = max(height, heights.pop()) + 1
            closing = closing + _CLOSING[text[at]] if height <= _MAX_NESTING else ""
            extents[at] = _Extent(position, None if is_none else closing, 0 if is_none else height)
        return extents[start]

    def document(self, start: int, end: int, closing: str) -> Document | None:
        """The document with that extent, decoded; None if it is none."""
        try:
            value = self._value(start, end)
        except _Cut:
            return _decoded(self._text, start, end, "", closing) if closing else None
        except ValueError:
            return None
        return Document(start, end, value, _is_ascii(self._text[start:end]))

    def may_be_document(self, start: int, end: int) -> bool:
        """Whether one that is nested too deeply is a document as far as it can be decoded."""
        try:
            self._value(start, end)
        except (_Cut, RecursionError):
            return True
        except ValueError:
            return False
        return True

    def _value(self, start: int, end: int) -> Any:
        """Most that are none show it at their beginning, and an error costs what is before it."""
        stop = min(end, start + _BEGINNING)
        while True:
            piece = self._text[start:stop]
            try:
                return _DECODER.raw_decode(piece)[0]
            except ValueError as error:
                at = error.pos if isinstance(error, json.JSONDecodeError) else 0
                is_cut = str(error).startswith("Unterminated") or at > len(piece) - _LONGEST_TAIL
                self.read += at if at and not is_cut else len(piece)
                if not is_cut:
                    raise
                if stop == end:
                    raise _Cut from None
            stop = end


def _is_ascii(written: str) -> bool:
    return written.isascii() or "\\ud" in written.lower()


def _decoded(text: str, start: int, end: int, opened: str, closing: str) -> Document | None:
    written = opened + text[start:end]
    for kept, added in _completions(written, closing):
        try:
            value = _DECODER.decode(kept + added)
        except ValueError:
            continue
        return Document(start, end, value, _is_ascii(written), opened, added, written[len(kept) :])
    return None


def _completions(written: str, closing: str) -> Iterator[tuple[str, str]]:
    """How a document can go on, the likeliest first: what is kept of it, and what is added."""
    yield written, closing
    strings = _UP_TO_OPEN_STRING.match(written)
    if strings and strings.end() < len(written):  # cut within a string, which may be a name
        half = _HALF_ESCAPE.search(written, max(0, len(written) - 6))
        for kept in (written, written[: half.start()] if half else written):
            yield kept, '"' + closing
            yield kept, '": 0' + closing
    elif closing:  # cut before a value, or in a word such as `true`
        kept = written.rstrip(_LITERAL).rstrip().removesuffix(",")
        for added in ("", " 0", ": 0"):
            yield kept, added + closing


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(members)
    if len(by_name) < len(members):
        raise ValueError("a name comes twice")
    return by_name


def _finite(written: str) -> float:
    if math.isinf(number := float(written)):
        raise ValueError("beyond the range of a float")
    return number


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object, parse_float=_finite)
