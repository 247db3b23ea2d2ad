"""Progress of a replay: a bar on a terminal, elsewhere a plain line every few seconds.

Both go to stderr. Log messages of the queue's code are printed above the bar, one a line.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.uploads import UploadCounts
from open_llm_proxy.server.commands.console import size

PLAIN_SECONDS = 10.0
BAR_SECONDS = 0.2
# Leaves room in 80 columns for millions of rows and the time left.
BAR_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows and bytes in the queues to replay, as far as an inspection shows them."""

    rows: int
    bytes: int

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Self:
        looks = [inspection.inspect(path) for path in paths]
        return cls(
            rows=sum((look.rows or 0) + (look.open_calls or 0) for look in looks),
            bytes=sum(look.queued_bytes or 0 for look in looks),
        )


class Progress:
    """Shows `counts` against `totals` during a ``with`` block; call `show` repeatedly."""

    def __init__(self, counts: UploadCounts, totals: Totals) -> None:
        self._counts = counts
        self._totals = totals
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._began = self._shown_at = time.monotonic()
        self._handler = _Lines(self)
        self._former: list[logging.Handler] = []
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(BAR_WIDTH),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[done]}"),
                console=self._console,
            )
        self.every_seconds = PLAIN_SECONDS if self._bar is None else BAR_SECONDS

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._former = root.handlers[:]
        root.handlers[:] = [self._handler]
        logging.getLogger("open_llm_proxy.queue.orphans.replay").setLevel(logging.INFO)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("replay", total=self._totals.rows, done="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self.show()
            self._bar.stop()
        logging.getLogger().handlers[:] = self._former

    def say(self, text: str) -> None:
        """Print `text` as a line of its own."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._console.print(text, soft_wrap=True)

    def show(self) -> None:
        """Update the bar, or print a line if the last one is PLAIN_SECONDS old."""
        counts, totals = self._counts, self._totals
        rate = counts.uploaded_bytes / max(time.monotonic() - self._began, 0.001)
        done = (
            f"{counts.uploaded_rows:,} of {totals.rows:,} rows, {size(round(rate))}/s"
            f"{self._time_left()}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=counts.uploaded_rows, done=done)
        elif time.monotonic() - self._shown_at >= PLAIN_SECONDS:
            self._shown_at = time.monotonic()
            self.say(done)

    def _time_left(self) -> str:
        """From the average rate of the whole run: single objects are too far apart."""
        rows, total = self._counts.uploaded_rows, self._totals.rows
        if not 0 < rows < total:
            return ""
        seconds = (time.monotonic() - self._began) / rows * (total - rows)
        return f", {timedelta(seconds=round(seconds))} left"


class _Lines(logging.Handler):
    """Log records as plain lines."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(record.getMessage())
