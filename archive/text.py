"""Texts that were cut: the visible mark with the original length, and where it may be cut.

Writers and readers of the log cut texts alike, so that a cut looks the same everywhere. A text may
be cut more than once on its way: where a long document is read, where the texts of an answer are
assembled, where a field has a cap of its own. The last cut's mark still tells the first length.
"""

import re
from collections.abc import Iterable

# Behind the mark of cut base64 stands its padding, so that its bytes can be computed.
_CUT_MARK = re.compile(r"…\[cut: (\d{1,18}) [a-z ]{1,20} in all\]=*\Z")
_MAX_MARK_CHARACTERS = 64


def cut_mark(length: int, unit: str) -> str:
    """Return what is written behind a text that was cut."""
    return f"…[cut: {length} {unit} in all]"


def split_mark(text: str) -> tuple[str, str, int]:
    """Return a text without the mark of an earlier cut, that mark, and the first length.

    A mark that tells less than is there is none.
    """
    mark = _CUT_MARK.search(text, max(0, len(text) - _MAX_MARK_CHARACTERS))
    if mark is None or int(mark[1]) < mark.start():
        return text, "", len(text)
    return text[: mark.start()], mark[0], int(mark[1])


def shortened(text: str, max_characters: int) -> str:
    """Return a text of at most that many characters, and the mark where it is or was longer."""
    if len(text) <= max_characters:
        return text
    head, mark, length = split_mark(text)
    return whole_pairs(head[:max_characters]) + (mark or cut_mark(length, "characters"))


def joined(texts: Iterable[str], separator: str) -> str:
    """Join texts; where any of them was cut, the mark at the end tells the first length of all."""
    parts = [split_mark(text) for text in texts]
    whole = separator.join(text + mark for text, mark, _ in parts)
    if not any(mark for _, mark, _ in parts):
        return whole
    length = sum(length for *_, length in parts) + len(separator) * (len(parts) - 1)
    return whole.removesuffix(parts[-1][1]) + cut_mark(length, "characters")


def whole_pairs(head: str) -> str:
    """Take off a first half of a surrogate pair whose second half was cut away."""
    return head[:-1] if "\ud800" <= head[-1:] <= "\udbff" else head
