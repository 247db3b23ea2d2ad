"""``logs tail``: the newest calls, one a line, and with ``-f`` those that follow."""

import argparse
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    UsageError,
    command,
    complain,
)
from open_llm_proxy.archive.commands.options import add_filters, add_json, add_source
from open_llm_proxy.archive.commands.terminal import Shown, count, milliseconds, one_line
from open_llm_proxy.archive.sources.source import LogObject
from open_llm_proxy.archive.sources.stream import StreamSource
from open_llm_proxy.archive.tables.connection import Tables

FOLLOW_SECONDS = 5.0
NEWEST = 20
LINES_AT_ONCE = 10_000
_DAYS_AT_ONCE = (1, 2, 7, 31)
_ORDER = "ORDER BY coalesce(ended, started), queue_id, request_seq"


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("tail", help="the newest calls, one a line")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with those that follow")
    add_source(parser)
    add_filters(parser, limit=NEWEST)
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _run(context: Context) -> int:
    if context.chosen.follow:
        if not context.source.follows:
            raise UsageError(
                f"{context.source.name} does not grow: -f takes a folder, a bucket or stdin"
            )
        if isinstance(context.source, StreamSource):
            return _follow_stream(context, context.source)
    with ExitStack() as stack:
        tables = _newest(context, stack)
        found = tables.rows(
            "SELECT * FROM (SELECT * FROM turns ORDER BY coalesce(ended, started) DESC, queue_id, "
            f"request_seq DESC LIMIT {context.filters.limit}) {_ORDER}"
        )
        _print(context, found)
        if not context.chosen.follow:
            return 0 if found else complain(f"{context.source.name} has no such calls", EXIT_FAILED)
        return _follow_objects(context, tables)


def _newest(context: Context, stack: ExitStack) -> Tables:
    """Tables of as many of the newest days as it takes to find so many calls."""
    filters = context.filters
    days = [day for day in context.source.days() if day]
    limit = filters.limit or NEWEST
    for number in _DAYS_AT_ONCE:
        if filters.since is not None or number >= len(days):
            break
        since = datetime.fromisoformat(days[-number])
        tables = stack.enter_context(context.tables(replace(filters, since=since)))
        (found,) = tables.rows("SELECT count(*) AS calls FROM turns")
        if found["calls"] >= limit:
            return tables
        stack.close()
    return stack.enter_context(context.tables())


def _follow_objects(context: Context, tables: Tables) -> int:
    _forget_ended(tables)
    first_day = tables.days[-1] if tables.days else ""
    while True:
        time.sleep(FOLLOW_SECONDS)
        fresh = [item for item in _newest_objects(context, first_day) if item not in tables.listed]
        tables.listed.update(fresh)
        if fresh:
            tables.loader.load_objects(fresh)
            _print_ended(context, tables)


def _newest_objects(context: Context, first_day: str) -> Iterator[LogObject]:
    """Of two days, so that those who follow see the last of one and the first of the next."""
    for day in context.source.days()[-2:]:
        if day >= first_day:
            yield from context.source.objects(day)


def _follow_stream(context: Context, source: StreamSource) -> int:
    """The calls of a stream, each as soon as its response is there."""
    with tempfile.TemporaryDirectory(prefix="open-llm-proxy-") as folder, ExitStack() as stack:
        empty = StreamSource(source.name, lambda size: b"", follows=True)
        stack.callback(empty.close)
        tables = stack.enter_context(replace(context, source=empty).tables())
        file = Path(folder, "lines.jsonl")
        for lines in _batches(source):
            file.write_bytes(b"".join(lines))
            tables.loader.load_file(file)
            _print_ended(context, tables)
    return 0


def _batches(source: StreamSource) -> Iterator[list[bytes]]:
    """The entries of a stream as they come, as many at once as there are."""
    entries: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in source.entries():
                entries.put(line + b"\n")
        finally:
            entries.put(None)

    threading.Thread(target=read, daemon=True).start()
    line = entries.get()
    while line is not None:
        lines = [line]
        while len(lines) < LINES_AT_ONCE and not entries.empty() and (line := entries.get()):
            lines.append(line)
        yield lines
        line = entries.get() if line is not None else None


def _print_ended(context: Context, tables: Tables) -> None:
    """Print the calls that have ended, and forget them."""
    _print(context, tables.rows(f"SELECT * FROM turns WHERE ended IS NOT NULL {_ORDER}"))
    _forget_ended(tables)


def _forget_ended(tables: Tables) -> None:
    tables.connection.execute(
        "DELETE FROM loaded WHERE type <> 'request' OR request_id IN "
        "(SELECT request_id FROM loaded WHERE type = 'response')"
    )


def _print(context: Context, turns: list[dict[str, Any]]) -> None:
    output = context.output
    for turn in turns:
        if output.console is None:
            output.fields(turn, is_sparse=True)
        else:
            print_turn(output.console, turn)
    output.flush()


def print_turn(console: Console, turn: dict[str, Any]) -> None:
    """One call as one line: when, who, how long, how many tokens, how it ended, the question."""
    moment = turn["ended"] or turn["started"]
    is_ok = turn["outcome"] == "ok"
    line = Shown()
    line.append(f"{moment:%H:%M:%S} " if moment else "", style="dim")
    line.append(_cut(turn["app"] or "-", 14) + " ")
    line.append(_cut(turn["model"] or "-", 12) + " ", style="magenta")
    line.append(f"{milliseconds(turn['latency_ms']):>7} ", style="dim")
    line.append(f"{count(turn['total_tokens']):>6} ", style="dim")
    line.append(f"{turn['outcome']} ", style="green" if is_ok else "bold red")
    for call in turn["tool_calls"] or ():
        line.append(f"→{call['name'] or '?'} ", style="yellow")
    asked = turn["user_message_this_turn"] or turn["user_question"] or turn["error"] or ""
    line.append(one_line(asked))
    line.plain = line.plain.replace("\n", " ").replace("\t", " ")
    console.print(line, no_wrap=True, overflow="ellipsis")


def _cut(text: str, width: int) -> str:
    text = one_line(text, 2 * width)
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "…"
