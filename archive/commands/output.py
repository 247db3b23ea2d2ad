"""Where a command writes: to people, or JSON lines to a program; and its progress."""

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from open_llm_proxy.archive.commands.terminal import terminal_json
from open_llm_proxy.archive.sources.source import Progress


class Output:
    """Standard output. `console` is None where the output is JSON lines."""

    def __init__(self, wants_json: bool) -> None:
        self.console: Console | None = None
        self.is_terminal = sys.stdout.isatty()
        if self.is_terminal and not wants_json:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # not every terminal has every letter
            self.console = Console(highlight=False, markup=False, emoji=False)

    def line(self, line: bytes) -> None:
        """Write a line of JSON."""
        sys.stdout.buffer.write((terminal_json(line) if self.is_terminal else line) + b"\n")

    def fields(self, fields: Mapping[str, Any], *, is_sparse: bool = False) -> None:
        """Write an object as a line of JSON; `is_sparse` leaves nulls out."""
        if is_sparse:
            fields = {name: value for name, value in fields.items() if value is not None}
        text = json.dumps(fields, ensure_ascii=False, default=json_value)
        self.line(text.encode("utf-8", "replace"))

    def all_fields(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write each object as a line of JSON."""
        for row in rows:
            self.fields(row)

    @contextmanager
    def paged(self) -> Iterator[Console]:
        """A console whose output is shown in the pager if it is longer than the terminal."""
        assert self.console is not None
        os.environ.setdefault("LESS", "-FRX")
        with self.console.pager(styles=True):
            yield self.console

    def flush(self) -> None:
        """Let go of what is written."""
        sys.stdout.flush()


def json_value(value: Any) -> Any:
    """What JSON has no type for."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds") + ("Z" if value.tzinfo is None else "")
    if isinstance(value, date):
        return value.isoformat()
    return str(value)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Shows on a terminal's stderr how much of a download is done; elsewhere nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, in_all: None
        return
    columns: Sequence[Any] = (
        TextColumn("{task.description}"), BarColumn(20), DownloadColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Bar(*columns, console=console, transient=True)
    tasks: list[TaskID] = []

    def show(done: int, in_all: int) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task(what))
        bar.update(tasks[0], completed=done, total=in_all)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()
