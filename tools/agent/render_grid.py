"""A grid as it runs and its table: a progress bar with rich on a terminal, lines elsewhere."""

import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .matrix import Cell, GridView
from .render import OUTCOMES
from .settings import shown

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_CHARS = 60
COLUMNS = ("question", "model", "status", "turns", "tokens", "seconds", "answer")
NUMBERS = frozenset({"turns", "tokens", "seconds"})
COLOURS = {"answered": "green", "turn_limit": "yellow", "no_progress": "yellow"}


def make_grid_view(output: TextIO, json_output: bool, quiet: bool) -> GridView:
    if json_output:
        return JsonGridView(output)
    if output.isatty() and importlib.util.find_spec("rich") is not None:
        return RichGridView(output, quiet)
    return PlainGridView(output, quiet)


class JsonGridView:
    """One JSON object a cell, in the grid's order, once all are there."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def grid_started(self, total: int, known: int) -> None:
        pass

    def cell_started(self, cell: Cell) -> None:
        pass

    def cell_finished(self, cell: Cell, record: dict[str, Any]) -> None:
        pass

    def grid_finished(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            print(json.dumps(record, ensure_ascii=False), file=self._output)


class PlainGridView:
    """A line for each cell as it finishes, then the table; `quiet` leaves the lines out."""

    def __init__(self, output: TextIO, quiet: bool) -> None:
        self._output = output
        self._quiet = quiet
        self._total = self._done = 0

    def grid_started(self, total: int, known: int) -> None:
        self._total, self._done = total, known
        if known:
            self._line(f"{known} of {total} cells are known from an earlier run.")

    def cell_started(self, cell: Cell) -> None:
        pass

    def cell_finished(self, cell: Cell, record: dict[str, Any]) -> None:
        self._done += 1
        self._line(f"[{self._done}/{self._total}] {cell_line(record)}")

    def grid_finished(self, records: Sequence[dict[str, Any]]) -> None:
        rows = [COLUMNS, *(table_row(record) for record in records)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        print(file=self._output)
        for row in rows:
            cells = [
                text.rjust(width) if name in NUMBERS else text.ljust(width)
                for name, text, width in zip(COLUMNS, row, widths, strict=True)
            ]
            print("  ".join(cells).rstrip(), file=self._output)

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(shown(text), file=self._output, flush=True)


class RichGridView:
    """A progress bar that names the cells under way, and a table in colours."""

    def __init__(self, output: TextIO, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(file=output, highlight=False)
        self._quiet = quiet
        self._progress: Progress | None = None
        self._running: list[str] = []

    def grid_started(self, total: int, known: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(),
            Elapsed(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            disable=self._quiet,
        )
        self._progress.add_task("", total=total, completed=known)
        self._progress.start()

    def cell_started(self, cell: Cell) -> None:
        self._running.append(cell.name)
        self._show(advance=0)

    def cell_finished(self, cell: Cell, record: dict[str, Any]) -> None:
        self._running.remove(cell.name)
        if not self._quiet:
            from rich.text import Text

            colour = COLOURS.get(record["status"], "red")
            self._console.print(Text("● ", colour) + Text(shown(cell_line(record))))
        self._show(advance=1)

    def grid_finished(self, records: Sequence[dict[str, Any]]) -> None:
        from rich.table import Table
        from rich.text import Text

        if self._progress is not None:
            self._progress.stop()
        table = Table()
        for name in COLUMNS:
            table.add_column(name, justify="right" if name in NUMBERS else "left")
        for record in records:
            style = COLOURS.get(record["status"], "red")
            row = zip(COLUMNS, table_row(record), strict=True)
            table.add_row(*(Text(text, style if name == "status" else "") for name, text in row))
        self._console.print(table)

    def _show(self, advance: int) -> None:
        if self._progress is not None:
            for task in self._progress.task_ids:
                names = ", ".join(self._running)
                self._progress.update(task, advance=advance, description=names)


def cell_line(record: dict[str, Any]) -> str:
    """A finished cell in one line."""
    turns, seconds = record["turns"], record["seconds"]
    why = f": {record['error']}" if record["error"] else ""
    status = OUTCOMES[record["status"]]
    return f"{record['cell']} · {status} · {turns} turns · {seconds:.1f} s{why}"


def table_row(record: dict[str, Any]) -> tuple[str, ...]:
    """A record in the order of COLUMNS; without an answer the column says why."""
    answer = " ".join(shown(record["answer"] or record["error"] or "").split())
    if len(answer) > ANSWER_CHARS:
        answer = f"{answer[: ANSWER_CHARS - 1]}…"
    return (
        record["question_id"],
        record["model"],
        OUTCOMES[record["status"]],
        str(record["turns"]),
        f"{record['total_tokens']:,}",
        f"{record['seconds']:.1f}",
        answer,
    )
