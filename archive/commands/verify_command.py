"""``logs verify``: whether anything is missing, per queue and day; exit code 1 where it is."""

import argparse
from datetime import timedelta
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
from open_llm_proxy.archive.commands.options import add_json, add_source, add_times, positive
from open_llm_proxy.archive.commands.terminal import Column, count, print_table
from open_llm_proxy.archive.integrity import bill
from open_llm_proxy.archive.integrity.report import (
    COLUMNS,
    SETTLING,
    Report,
    changed_objects,
    findings,
    integrity,
)
from open_llm_proxy.archive.sources.stream import StreamSource
from open_llm_proxy.archive.tables.connection import Tables

_ALWAYS = ("rows", "calls", "missing", "unpaired")
_SELDOM = ("doubles", "damaged", "misplaced", "open_calls")


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser(
        "verify", help="whether anything is missing: exit code 1 if so", description=__doc__
    )
    add_source(parser)
    add_times(parser)
    minutes = round(SETTLING.total_seconds() / 60)
    parser.add_argument(
        "--settling-minutes", type=positive, default=minutes, metavar="N",
        help=f"younger calls and queues are open, not missing (default {minutes})",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="CSV", help="a provider's bill: day, model, tokens, cost"
    )
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _run(context: Context) -> int:
    if isinstance(context.source, StreamSource):
        raise UsageError(
            f"{context.source.name} is a stream: verify takes the folder or the bucket of a log"
        )
    with context.tables(columns=(*COLUMNS, *bill.COLUMNS)) as tables:
        if context.chosen.against is not None:
            return _compare(context, tables)
        changed = changed_objects(context.source, tables.listed)
        report = integrity(
            tables,
            first_day=context.filters.first_day,
            settling=timedelta(minutes=context.chosen.settling_minutes),
            changed=changed,
        )
    if not report.days:
        return complain(f"{context.source.name} has no rows of these days", EXIT_FAILED)
    if context.output.console is None:
        context.output.all_fields(report.days)
    else:
        with context.output.paged() as console:
            _print_days(console, report)
    for sentence in findings(report):
        complain(sentence, 0)
    return 0 if report.is_complete else EXIT_FAILED


def _print_days(console: Console, report: Report) -> None:
    """A line for each queue and day; of what is seldom only what there is."""
    names = [*_ALWAYS, *(name for name in _SELDOM if report.total(name))]
    columns = [Column("day", min_width=10), Column("queue", style="dim", min_width=16)]
    columns += [Column(name.replace("_", " "), is_number=True) for name in names]
    rows = [
        [str(day["day"]), day["queue_id"] or "-", *(count(day[name]) for name in names)]
        for day in report.days
    ]
    print_table(console, columns, rows)


def _compare(context: Context, tables: Tables) -> int:
    rows = bill.against_bill(tables, context.chosen.against)
    if context.output.console is None:
        context.output.all_fields(rows)
        return 0
    names = list(rows[0]) if rows else []
    columns = [
        Column(name.replace("_", " "), is_number=name not in ("day", "model")) for name in names
    ]
    with context.output.paged() as console:
        print_table(console, columns, [[_cell(row[name]) for name in names] for row in rows])
    return 0


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else str(value)
