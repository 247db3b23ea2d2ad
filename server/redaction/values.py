"""The value that belongs to a name: quoted at any level of escaping, bare, or up to a mark.

JSON inside a string escapes its quotes, and JSON inside that escapes the backslashes too:
at level 0 a quote is ``"``, at level 1 ``\\"``, at level 2 ``\\\\\\"``. A value ends at the next
quote of its own level or, where the text was cut, at a quote of a lower one.
"""

import re
from dataclasses import dataclass

_OPENING = re.compile(r"\"\"\"|'''|\\{0,63}[\"'`]")
# b"…", f"…", SecretStr("…")
_WRAPPER = re.compile(r"(?:[bBrRfFuU]{1,2}|(?:[A-Za-z_]{1,40}\.)?Secret(?:Str|String)?\()(?=[\"'])")
_LONGEST_ELEMENT = 1024
_RAW = re.compile(r"\b[bBfFuU]?[rR][bBfF]?(?:\"{1,3}|'{1,3})\Z")
_JUDGED = 256  # so many characters of a bare value are enough to judge it
_BARE = re.compile(rf"[^\s\"'`,;&|<>()\[\]{{}}\\]{{1,{_JUDGED}}}")
_BACKSLASH = re.compile(r"\\(?![nrtbfu\"'/\\])")  # itself, not the beginning of an escape
END_OF_LINE = re.compile(r"[ \t]{0,32}(?:\r?\n|\\[nr]|\Z|#|[\"'`])")
END_OF_ARGUMENT = re.compile(r"\s{0,64}[,)\]]")
CALL = re.compile(r"[(\[]")


@dataclass(slots=True)
class Value:
    """Where a value stands: `text[start:end]`; `after` is behind its closing quote."""

    text: str
    start: int
    end: int
    after: int

    def __str__(self) -> str:
        return self.text[self.start : self.end]

    def without_punctuation(self) -> "Value":
        """The value without the marks that end its sentence."""
        word = str(self).rstrip(".:!?*")
        return Value(self.text, self.start, self.start + len(word), self.after)

    def whole(self) -> "Value":
        """The bare value with all that was not needed to judge it."""
        if self.end != self.after or self.end - self.start < _JUDGED:
            return self
        end = _end_of_bare(self.text, self.end, len(self.text))
        return Value(self.text, self.start, end, end)

    def precedes(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text goes on like that behind the value."""
        return pattern.match(self.text, self.after) is not None

    @property
    def is_closed(self) -> bool:
        return self.after > self.end

    @property
    def is_raw(self) -> bool:
        """`r"…"` of Python, of which most are regular expressions."""
        return bool(_RAW.search(self.text, max(0, self.start - 5), self.start))

    @property
    def is_block(self) -> bool:
        """Between triple quotes, so it may have several lines."""
        return self.after - self.end == 3


def quoted_value(text: str, at: int) -> Value | None:
    """The quoted value that begins at `at`, or None; one that is never closed ends at its line."""
    if wrapper := _WRAPPER.match(text, at):
        at = wrapper.end()
    opening = _OPENING.match(text, at)
    if opening is None:
        return None
    quote, start = opening[0], opening.end()
    if len(quote) == 3 and quote[0] != "\\":
        end = text.find(quote, start)
        return Value(text, start, end, end + 3) if end >= 0 else None
    return _up_to_quote(text, start, quote[-1], len(quote) - 1)


def _up_to_quote(text: str, start: int, quote: str, backslashes: int) -> Value:
    is_json = not backslashes & (backslashes + 1)  # 0, 1, 3, 7; Python's repr makes others
    position = start
    while (position := text.find(quote, position)) >= 0:
        before = position
        while before > start and text[before - 1] == "\\":
            before -= 1
        run = position - before
        if run < backslashes:
            return Value(text, start, before, before)
        if run == backslashes or (is_json and run % (2 * backslashes + 2) == backslashes):
            if not (quote == "'" and text.startswith("'", position + 1)):
                return Value(text, start, position - backslashes, position + 1)
            position += 1  # '' is a quote within an SQL string
        position += 1
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return Value(text, start, end, end)


def bare_value(text: str, at: int) -> Value | None:
    """The unquoted value at `at`, up to white space, a quote, a bracket or a delimiter.

    Of a long one only the beginning, because names in it may have it for a value too.
    """
    end = _end_of_bare(text, at, at + _JUDGED)
    return Value(text, at, end, end) if end > at else None


def _end_of_bare(text: str, at: int, enough: int) -> int:
    while at < enough and (part := _BARE.match(text, at) or _BACKSLASH.match(text, at)):
        at = part.end()
    return at


def element_value(text: str, at: int) -> Value | None:
    """What stands between `at` and the end tag that follows, without white space around it."""
    end = text.find("<", at, at + _LONGEST_ELEMENT)
    if end < 0 or not text.startswith("</", end):
        return None
    content = text[at:end]
    start = at + len(content) - len(content.lstrip())
    return Value(text, start, start + len(content.strip()), end)
