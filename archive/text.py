"""Texts that were cut: the visible mark with the original length, and where it may be cut.

Writers and readers of the log cut texts alike, so that a cut looks the same everywhere.
"""

import re

_CUT_MARK = re.compile(r"…\[cut: \d+ [a-z ]+ in all\]\Z")
_MAX_MARK_CHARACTERS = 64


def cut_mark(length: int, unit: str) -> str:
    """Return what is written behind a text that was cut."""
    return f"…[cut: {length} {unit} in all]"


def shortened(text: str, max_characters: int) -> str:
    """Return a text of at most that many characters, and the mark where it was longer."""
    if len(text) <= max_characters:
        return text
    return whole_pairs(text[:max_characters]) + cut_mark(len(text), "characters")


def cut_text(text: str, max_characters: int) -> str:
    """Like `shortened`, but a text that was cut before keeps its mark: the first length counts."""
    if len(text) <= max_characters:
        return text
    mark = _CUT_MARK.search(text, max(0, len(text) - _MAX_MARK_CHARACTERS))
    if mark is None:
        return shortened(text, max_characters)
    return whole_pairs(text[: min(max_characters, mark.start())]) + mark.group()


def whole_pairs(head: str) -> str:
    """Take off a first half of a surrogate pair whose second half was cut away."""
    return head[:-1] if "\ud800" <= head[-1:] <= "\udbff" else head
