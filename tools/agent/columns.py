"""Text in columns on a screen of limited width, without a library.

Widths are counted in the cells of a terminal: East Asian characters take two, accents none.
"""

import unicodedata
from collections.abc import Sequence

GAP = "  "


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, width: int) -> str:
    """`text` in at most `width` cells, with an ellipsis where it is cut."""
    if cells(text) <= width:
        return text
    return _head(text, max(0, width - 1)) + "…"


def _head(text: str, width: int) -> str:
    used = 0
    for position, character in enumerate(text):
        used += _cells(character)
        if used > width:
            return text[:position]
    return text


def padded(text: str, width: int, right: bool = False) -> str:
    fill = " " * (width - cells(text))
    return fill + text if right else text + fill


def wrapped(text: str, width: int) -> list[str]:
    """The lines of `text`, none of them wider than `width`."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while cells(word) > width:
                head = _head(word, width) or word[0]
                lines += [line, head] if line else [head]
                line, word = "", word[len(head) :]
            if line and cells(line) + 1 + cells(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines


def table(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int | None) -> list[str]:
    """Rows in columns. Where `width` is too small, the widest columns are cut first."""
    widths = [max(cells(row[column]) for row in rows) for column in range(len(right))]
    while width is not None and sum(widths) + len(GAP) * (len(right) - 1) > width:
        widest = widths.index(max(widths))
        if widths[widest] <= 4:
            break
        widths[widest] -= 1
    return [
        GAP.join(
            padded(fitted(text, w), w, is_right)
            for text, w, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def side_by_side(texts: Sequence[str], width: int) -> list[str]:
    """Texts in columns of `width` cells each, wrapped."""
    columns = [wrapped(text, width) for text in texts]
    height = max(map(len, columns), default=0)
    return [
        (GAP + " ")
        .join(padded(column[line] if line < len(column) else "", width) for column in columns)
        .rstrip()
        for line in range(height)
    ]
