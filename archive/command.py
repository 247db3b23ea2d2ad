"""``open-llm-proxy logs tail | show | stats | schema``: the log for people without SQL at hand.

    open-llm-proxy logs tail -f                       the newest rows, and those that follow
    open-llm-proxy logs show SESSION s3://logs-ns     a conversation, tools included
    open-llm-proxy logs stats ./logs --day 2026-04-07
    kubectl logs -f deployment/open-llm-proxy | open-llm-proxy logs tail -f -

On a terminal the output is made for reading; piped it is JSON, one object a line.
"""

import argparse
import functools
import heapq
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console

from open_llm_proxy.archive.conversation import conversation
from open_llm_proxy.archive.entry import head_line
from open_llm_proxy.archive.printing import (
    print_groups,
    print_row,
    print_utterance,
    terminal_json,
)
from open_llm_proxy.archive.rows import LogRow, RowReader
from open_llm_proxy.archive.sources import (
    Environment,
    LogObject,
    LogSource,
    LogSourceError,
    open_source,
    stdin_lines,
)
from open_llm_proxy.archive.usage_stats import UsageStats

EXIT_FOUND_NOTHING = 1
EXIT_USAGE = 2
FOLLOW_SECONDS = 5.0


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: Callable[[], Environment],
) -> None:
    """Add ``logs`` and its views to the program's commands.

    `read_environment` is called when one of them runs, and may raise for settings that are wrong.
    """
    text = "read the log: newest rows, a conversation, usage"
    parser = commands.add_parser(
        "logs", help=text, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    views = parser.add_subparsers(title="views", required=True, metavar="VIEW")
    tail = views.add_parser("tail", help="the newest rows")
    tail.add_argument("-n", "--lines", type=int, default=20, help="how many (default 20)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with those that follow")
    show = views.add_parser("show", help="a conversation as people read one")
    show.add_argument("session", metavar="SESSION", help="session_id, or a call's request_id")
    show.add_argument("--whole", action="store_true", help="tool results in their full length")
    stats = views.add_parser("stats", help="calls, tokens, latency and errors by app and model")
    schema = views.add_parser("schema", help="a head, to put in front of a capture of stdout")
    schema.set_defaults(run=_schema)
    for view, run in ((tail, _tail), (show, _show), (stats, _stats)):
        view.set_defaults(run=functools.partial(_guarded, read_environment), view=run)
        view.add_argument(
            "source",
            nargs="?",
            metavar="SOURCE",
            help="a folder, a file, s3://bucket/prefix or - for stdin "
            "(default: LOG_DIR or LOG_BUCKET, else stdin)",
        )
        view.add_argument(
            "--day",
            action="append",
            metavar="DAY",
            help="YYYY-MM-DD in UTC, more than once if need be, or all (default: the newest day)",
        )
        view.add_argument("--json", action="store_true", help="JSON also on a terminal")


def _guarded(read_environment: Callable[[], Environment], chosen: argparse.Namespace) -> int:
    try:
        log = _Log(open_source(chosen.source, read_environment()), chosen.day)
        code: int = chosen.view(chosen, log, _Output(chosen.json))
        sys.stdout.flush()
    except LogSourceError as error:
        print(f"open-llm-proxy logs: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Whoever read the output has enough; what Python still flushes goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if log.reader.skipped:
        print(f"lines that were no log entries: {log.reader.skipped:,}", file=sys.stderr)
    return code


def _schema(_: argparse.Namespace) -> int:
    sys.stdout.buffer.write(head_line("0" * 16, time.time_ns() // 1_000_000))
    return 0


class _Output:
    """Where a view writes: to people, or JSON lines to a program."""

    def __init__(self, wants_json: bool) -> None:
        self.console: Console | None = None
        self._is_terminal = sys.stdout.isatty()
        if self._is_terminal and not wants_json:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # not every terminal has every letter
            self.console = Console(highlight=False, markup=False, emoji=False)

    def line(self, line: bytes) -> None:
        sys.stdout.buffer.write((terminal_json(line) if self._is_terminal else line) + b"\n")

    def fields(self, fields: dict[str, Any]) -> None:
        self.line(json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace"))

    def row(self, line: bytes, row: LogRow) -> None:
        if self.console is None:
            self.line(line)
        else:
            print_row(self.console, row)

    def flush(self) -> None:
        sys.stdout.flush()


class _Log:
    """The chosen days of a source, or stdin."""

    def __init__(self, source: LogSource | None, days: list[str] | None) -> None:
        self.source = source
        self.reader = RowReader()
        self._days = days

    @property
    def name(self) -> str:
        days = "" if self.source is None else ", ".join(filter(None, self.days()))
        return " ".join(filter(None, ("stdin" if self.source is None else self.source.name, days)))

    def days(self, newest: int = 1) -> list[str]:
        """The days to read: the chosen ones, else so many of the newest.

        Raises `LogSourceError` where there is none, or a chosen one has no objects.
        """
        assert self.source is not None, "stdin has no days"
        known = self.source.days()
        if not known:
            raise LogSourceError(f"{self.source.name} holds no log objects")
        if self._days is None:
            return known[-newest:]
        if "all" in self._days:
            return known
        for day in self._days:
            if day not in known:
                raise LogSourceError(
                    f"{self.source.name} has no objects of {day}; it has {', '.join(known[-5:])}"
                )
        return sorted(set(self._days))

    def objects(self, newest: int = 1) -> list[LogObject]:
        assert self.source is not None, "stdin has no objects"
        return [item for day in self.days(newest) for item in self.source.objects(day)]

    def lines(self) -> Iterator[bytes]:
        if self.source is None:
            yield from stdin_lines()
            return
        for item in self.objects():
            yield from self.source.lines(item)

    def rows(self) -> Iterator[tuple[bytes, LogRow]]:
        return self.reader.rows(self.lines())


def _tail(chosen: argparse.Namespace, log: _Log, output: _Output) -> int:
    if log.source is None:
        rows = log.rows()
        newest: Iterable[tuple[bytes, LogRow]] = rows
        if not chosen.follow:
            newest = deque(rows, maxlen=max(0, chosen.lines))
        for line, row in newest:
            output.row(line, row)
            if chosen.follow:
                output.flush()
        return 0
    # Two days, so that those who follow see the last objects of one and the first of the next.
    objects = log.objects(newest=2)
    for line, row in _newest_rows(log, objects, max(0, chosen.lines)):
        output.row(line, row)
    output.flush()
    seen = set(objects)
    while chosen.follow:
        time.sleep(FOLLOW_SECONDS)
        for item in log.objects(newest=2):
            if item not in seen:
                seen.add(item)
                for line, row in log.reader.rows(log.source.lines(item)):
                    output.row(line, row)
        output.flush()
    return 0


def _newest_rows(log: _Log, objects: list[LogObject], count: int) -> list[tuple[bytes, LogRow]]:
    """The last rows by their own time; only as many windows are read as it takes."""
    assert log.source is not None
    found: list[tuple[bytes, LogRow]] = []
    windows: dict[tuple[str, str], list[LogObject]] = {}
    for item in objects:
        windows.setdefault((item.key.rpartition("/")[0], item.window), []).append(item)
    for _, items in sorted(windows.items(), reverse=True):
        if len(found) >= count:
            break
        rows = (pair for item in items for pair in log.reader.rows(log.source.lines(item)))
        missing = count - len(found)
        newest = heapq.nlargest(missing, rows, key=lambda pair: pair[1].order)
        found = newest[::-1] + found
    return found


def _show(chosen: argparse.Namespace, log: _Log, output: _Output) -> int:
    wanted = json.dumps(chosen.session, ensure_ascii=False)[1:-1].encode("utf-8", "surrogateescape")
    rows = log.reader.rows(line for line in log.lines() if wanted in line)
    said = list(conversation(row for _, row in rows if row.belongs_to(chosen.session)))
    if not said:
        print(f"{log.name} says nothing of {chosen.session!r}", file=sys.stderr)
        return EXIT_FOUND_NOTHING
    for utterance in said:
        if output.console is None:
            output.fields(utterance.as_fields())
        else:
            print_utterance(output.console, utterance, chosen.whole)
    return 0


def _stats(chosen: argparse.Namespace, log: _Log, output: _Output) -> int:
    stats = UsageStats()
    for _, row in log.rows():
        stats.add(row)
    groups = stats.groups()
    if not groups:
        print(f"{log.name} holds no calls", file=sys.stderr)
        return EXIT_FOUND_NOTHING
    if output.console is not None:
        print_groups(output.console, groups, log.name)
        return 0
    for group in groups:
        output.fields(group.as_fields())
    return 0
