"""The log on a terminal, for people.

What a client or a model wrote is data: control characters in it are shown and never sent to the
terminal, and nothing in it is read as markup.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

CELL_CHARACTERS = 300
MIN_COLUMN_WIDTH = 8
# C0 and C1 controls but for line end and tab, separators of lines, what changes the direction of
# text, and lone surrogates, which cannot be written.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """A text that a terminal only shows: control characters as their pictures."""
    return _UNSAFE.sub(_picture, text)


def one_line(text: str, max_characters: int = CELL_CHARACTERS) -> str:
    """The beginning of a text on one line, made visible."""
    return visible(" ".join(text[:max_characters].split()))


def terminal_json(line: bytes) -> bytes:
    """A JSON line for a terminal: the same JSON, with unsafe characters as its escapes."""
    text = line.decode("utf-8", "surrogatepass")
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text).encode()


class Shown(Text):
    """A text that may be put together from anything: each part is made visible."""

    def __init__(self, text: str = "", style: str = "") -> None:
        super().__init__(visible(text), style)

    def append(self, text: Text | str, style: Any = None) -> Text:
        return super().append(visible(text) if isinstance(text, str) else text, style)


def _picture(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `takes_rest`: as wide as the terminal allows. `from_width`: left out on narrower terminals.
    """

    name: str
    max_width: int | None = None
    style: str = ""
    is_number: bool = False
    takes_rest: bool = False
    from_width: int = 0
    min_width: int = 6


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    sums: Sequence[Sequence[str]] = (),
) -> None:
    """A line for each row, cut to the terminal's width; `sums` below a rule."""
    shown = [n for n, column in enumerate(columns) if column.from_width <= console.width]
    columns = [columns[n] for n in shown]
    rest = any(column.takes_rest for column in columns)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=rest, padding=(0, 1, 0, 0))
    for number, column in zip(shown, columns, strict=True):
        widest = max((len(row[number]) for row in (*rows, *sums)), default=0)
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            style=column.style,
            no_wrap=True,
            overflow="ellipsis",
            max_width=column.max_width,
            ratio=1 if column.takes_rest else None,
            min_width=widest if column.is_number else column.min_width,
        )
    for row in rows:
        table.add_row(*(Text(one_line(row[n])) for n in shown))
    for row in sums:
        table.add_section()
        table.add_row(*(Text(one_line(row[n])) for n in shown), style="bold")
    console.print(table)


def result_table(console: Console, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """What a query found; nulls are empty. What is too wide is shown one value a line."""
    if len(names) * MIN_COLUMN_WIDTH > console.width:
        for row in rows:
            for name, cell in zip(names, row, strict=True):
                if cell is not None:
                    console.print(Shown(name + ": ", "bold") + Text(one_line(str(cell))))
            console.print()
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(names):
        are_numbers = all(isinstance(row[number], int | float | None) for row in rows)
        table.add_column(visible(name), justify="right" if are_numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else one_line(str(cell))) for cell in row))
    console.print(table)


def count(number: Any) -> str:
    """A count; nothing where it is not known."""
    return "" if number is None else f"{number:,}"


def dollars(amount: Any) -> str:
    """An amount of money; nothing where it is not known."""
    return "" if amount is None else f"${amount:.4f}" if amount < 1 else f"${amount:,.2f}"


def milliseconds(value: Any) -> str:
    """A time as people read it; nothing where it is not known."""
    if value is None:
        return ""
    return f"{value} ms" if value < 1000 else f"{value / 1000:.1f} s"
