"""The JSON documents of a text: found between prose, decoded, and written back when changed.

A document that breaks off at the end of the text, as cut texts do, is completed for the decoder:
its last string gets a quote and each open bracket its partner, which are taken off again when it
is written. What decoding would alter otherwise is no document here, and the rules for text read
it: names that come twice, numbers beyond the range of a float, nesting beyond `_MAX_NESTING`.

The time is linear in the length of the text, whatever it consists of.
"""

import json
import math
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_MAX_NESTING = 200
_MAX_QUOTES = 200_000  # in one document; rules for text read a longer one, and build no objects
_MAX_REREADING = 4  # times the length of the text, for what looked like documents and was none
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
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CLOSING = {"{": "}", "[": "]"}
_LITERAL = string.ascii_letters + string.digits + "+-."


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document at `text[start:end]`; `value` is None where it was only passed over.

    `opened` and `added` completed it for the decoder, `missing` is what had no place in it.
    """

    start: int
    end: int
    value: Any = None
    is_ascii: bool = True
    opened: str = ""
    added: str = ""
    missing: str = ""

    def written(self, value: object) -> str:
        """What stands for `value` in the place of the document."""
        text = json.dumps(value, ensure_ascii=self.is_ascii)
        return text[len(self.opened) : len(text) - len(self.added)] + self.missing


def documents(text: str, is_wanted: Callable[[int, int], bool]) -> Iterator[Document]:
    """The documents of a text, in their order: the whole of it, its lines, or parts of its prose.

    One for whose place `is_wanted` says no is only passed over.
    """
    if not _MAY_BE_JSON.search(text):
        return
    if (first := _FIRST_STRING.match(text)) and (document := _unbraced(text, first)):
        yield document
        return
    position = reread = 0
    while reread <= _MAX_REREADING * len(text) and (found := _START.search(text, position)):
        start = found.start()
        end, closing = _extent(text, start)
        document = None
        if closing is not None:
            is_read = is_wanted(start, end)
            document = _decoded(text, start, end, "", closing) if is_read else Document(start, end)
        if document:
            position = end
            yield document
        else:
            position = start + 1
            reread += end - start


def _unbraced(text: str, first: re.Match[str]) -> Document | None:
    """The text as one string, or as members that have lost their braces."""
    if first["colon"]:
        end, closing = _extent("{" + text, 0)
        return _decoded(text, 0, len(text), "{", closing) if closing and end > len(text) else None
    return None if text[first.end() :].strip() else _decoded(text, 0, len(text), "", "")


def _extent(text: str, start: int) -> tuple[int, str | None]:
    """Where the document from `start` on ends, and what closes the brackets still open there.

    None for the latter where its brackets do not match.
    """
    closing: list[str] = []
    position = start
    while match := _UP_TO_BRACKET.match(text, position):
        position = match.end()
        if match[1] in _CLOSING:
            closing.append(_CLOSING[match[1]])
            if len(closing) > _MAX_NESTING:
                return position, None
        elif closing.pop() != match[1]:
            return position, None
        if not closing:
            return position, ""
    return len(text), "".join(reversed(closing))


def _decoded(text: str, start: int, end: int, opened: str, closing: str) -> Document | None:
    written = opened + text[start:end]
    if written.count('"') > _MAX_QUOTES:
        return None
    is_ascii = written.isascii() or "\\ud" in written.lower()
    for kept, added in _completions(written, closing):
        try:
            value = _DECODER.decode(kept + added)
        except ValueError:
            continue
        return Document(start, end, value, is_ascii, opened, added, written[len(kept) :])
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
