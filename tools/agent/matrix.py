"""A grid: every question put to every model, each cell a session of its own.

Finished cells are appended to a results file, one JSON object a line, so that a second run with
the same options does only what is left. A cell is finished once it has an answer or stopped by
the rules of the loop; failed and interrupted cells are tried again. A cell counts as the same
while its question, model and everything else that shapes the answer are the same.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from .options import Question, reason
from .render import SilentView
from .session import run_session
from .settings import InputError, SessionSettings, file_name
from .transcript import Transcript

FINISHED = frozenset({"answered", "turn_limit", "no_progress"})

RECORD_START = b'{"cell": '
RECORD_FIELDS = frozenset(
    {"cell", "question_id", "model", "status", "answer", "error", "turns", "total_tokens"}
    | {"seconds", "fingerprint", "trial", "answers"}
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One question for one model. `name` is fit for file names, headers and tables."""

    name: str
    question: Question
    settings: SessionSettings
    fingerprint: str


class GridView(Protocol):
    """Who watches a grid."""

    def grid_started(self, total: int, known: int) -> None: ...
    def cell_started(self, cell: Cell) -> None: ...
    def cell_finished(self, cell: Cell, record: dict[str, Any]) -> None: ...
    def grid_finished(self, records: Sequence[dict[str, Any]]) -> None: ...


async def run_grid(
    template: SessionSettings,
    questions: Sequence[Question],
    models: Sequence[str],
    results: "Results",
    view: GridView,
    concurrency: int,
    transcripts: Path | None,
    trials: int = 1,
) -> list[dict[str, Any]]:
    """Run all cells that are not finished and return the records of all, in the grid's order.

    The view also gets the record of a session that is asked again, in front of the others. At most
    `concurrency` sessions run at once; `transcripts` is the folder for one file a cell.
    """
    cells = make_cells(template, questions, models, trials)
    free = asyncio.Semaphore(concurrency)

    async def run(cell: Cell) -> None:
        async with free:
            view.cell_started(cell)
            path = transcripts / f"{cell.name}.json" if transcripts else None
            transcript = await run_session(cell.settings, SilentView(), path)
            view.cell_finished(cell, results.add(cell, transcript))

    left = [cell for cell in cells if cell.fingerprint not in results.finished]
    view.grid_started(total=len(cells), known=len(cells) - len(left))
    try:
        async with asyncio.TaskGroup() as running:
            for cell in left:
                running.create_task(run(cell))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        known = [results.latest[c.fingerprint] for c in cells if c.fingerprint in results.latest]
        recording = template.recording
        view.grid_finished(known if recording is None else [recording.record(), *known])
    return known


def make_cells(
    template: SessionSettings, questions: Sequence[Question], models: Sequence[str], trials: int = 1
) -> list[Cell]:
    """The grid, question by question. Each cell gets an origin and a session id of its own.

    The session id is another one each time: a cell that is tried again is a new session.
    """
    cells: dict[str, Cell] = {}
    for question, model, trial in product(questions, models, range(1, trials + 1)):
        name = base = f"{file_name(question.name)}-{file_name(model)}" + f"-t{trial}" * (trials > 1)
        while name in cells:
            name = f"{base}-{secrets.token_hex(2)}"
        settings = replace(
            template,
            question=question.text,
            model=model,
            trial=trial,
            session_id=f"{template.session_id}-{name}-{secrets.token_hex(3)}",
            origin=f"{template.origin.rstrip('/')}/{name}",
        )
        cells[name] = Cell(name, question, settings, settings.fingerprint())
    return [*cells.values()]


class Results:
    """The results file. Each line is synced; a last line that was cut short is taken away.

    `latest` holds the last record of each fingerprint.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file cannot be written or is something else."""
        self._path = path
        self.latest: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                lines = file.read().split(b"\n")
                for number, line in enumerate(lines[:-1], start=1):
                    self._read(line, number)
                self._mend(file, lines[-1], number=len(lines))
        except OSError as error:
            raise InputError(f"--results: cannot use {path}: {reason(error)}.") from error

    @property
    def finished(self) -> set[str]:
        return {key for key, record in self.latest.items() if record["status"] in FINISHED}

    def add(self, cell: Cell, transcript: Transcript) -> dict[str, Any]:
        """Append a cell's record. Raises OSError."""
        record = {
            "cell": cell.name,
            "question_id": cell.question.name,
            **transcript.summary(),
            "fingerprint": cell.fingerprint,
        }
        with self._path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.latest[cell.fingerprint] = record
        return record

    def _mend(self, file: BinaryIO, rest: bytes, number: int) -> None:
        """See to what follows the last line end: nothing, in a file that was closed in peace."""
        if rest.startswith(RECORD_START) and not rest.endswith(b"}"):
            file.truncate(file.tell() - len(rest))
        elif rest:
            self._read(rest, number)
            file.write(b"\n")

    def _read(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not record.keys() >= RECORD_FIELDS:
            raise InputError(f"--results: line {number} of {self._path} is no result of a grid.")
        self.latest[record["fingerprint"]] = record
