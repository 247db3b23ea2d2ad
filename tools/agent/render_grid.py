"""A grid as it runs and its table: a progress bar with rich on a terminal, lines elsewhere."""

import importlib.util
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .columns import table
from .matrix import Cell, GridView
from .recording import Recording, question_text
from .render import OUTCOMES
from .render_side import comparison
from .settings import shown

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_CHARS = 60
PIPE_WIDTH = 100
COLUMNS = ("question", "model", "status", "turns", "tokens", "seconds", "answer")
NUMBERS = frozenset({"turns", "tokens", "seconds"})
COLOURS = {"answered": "green", "turn_limit": "yellow", "no_progress": "yellow"}


def make_grid_view(
    output: TextIO, json_output: bool, quiet: bool, recording: Recording | None
) -> GridView:
    if json_output:
        return JsonGridView(output)
    if output.isatty() and importlib.util.find_spec("rich") is not None:
        return RichGridView(output, quiet, recording)
    return PlainGridView(output, quiet, recording)


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

    def __init__(self, output: TextIO, quiet: bool, recording: Recording | None) -> None:
        self._output = output
        self._quiet = quiet
        self._recording = recording
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
        print(file=self._output)
        width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
        if self._recording is not None:
            print(compared(self._recording, records, width), file=self._output)
            return
        rows = [COLUMNS, *map(table_row, records)]
        fit = width if self._output.isatty() else None
        for line in table(rows, [name in NUMBERS for name in COLUMNS], fit):
            print(line, file=self._output)
        for line in spreads(records):
            print(line, file=self._output)

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(shown(text), file=self._output, flush=True)


class RichGridView:
    """A progress bar that names the cells under way, and a table in colours."""

    def __init__(self, output: TextIO, quiet: bool, recording: Recording | None) -> None:
        from rich.console import Console

        self._console = Console(file=output, highlight=False)
        self._recording = recording
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
        if self._recording is not None:
            width = self._console.width
            self._console.print(Text(compared(self._recording, records, width)))
            return
        table = Table()
        for name in COLUMNS:
            table.add_column(name, justify="right" if name in NUMBERS else "left")
        for record in records:
            style = COLOURS.get(record["status"], "red")
            row = zip(COLUMNS, table_row(record), strict=True)
            table.add_row(*(Text(text, style if name == "status" else "") for name, text in row))
        self._console.print(table)
        for line in spreads(records):
            self._console.print(Text(line))

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


def compared(recording: Recording, records: Sequence[dict[str, Any]], width: int) -> str:
    return comparison(records, [question_text(asked) for asked in recording.questions], width)


def spreads(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of what was asked more than once, how far the trials lie apart."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["question_id"], record["model"]].append(record)
    for (question, model), trials in groups.items():
        if len(trials) == 1:
            continue
        answered = sum(record["status"] == "answered" for record in trials)
        ranges = [
            f"{spread([record[key] for record in trials], form)} {key.replace('total_', '')}"
            for key, form in (("turns", "d"), ("total_tokens", ",d"), ("seconds", ".1f"))
        ]
        parts = [f"{question} {model}: {answered} of {len(trials)} answered", *ranges]
        yield shown(" · ".join(parts))


def spread(values: Sequence[float], form: str) -> str:
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"
