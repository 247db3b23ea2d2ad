"""``logs compact``: days of objects as Parquet tables, for readers of many days.

    open-llm-proxy logs compact s3://logs-ns --to s3://logs-ns/tables --day yesterday
    open-llm-proxy logs compact ./logs --to ./tables

Days are independent of each other: each can be compacted by another process, at any time and as
often as one likes. `--day 2026-04-01+3` is the third day after the first of April, for the pods of
an Indexed Job. Without `--day`, every day before today is brought up to date.
"""

import argparse
import re
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    UsageError,
    command,
    complain,
    environment_of,
)
from open_llm_proxy.archive.commands.options import add_json, add_source
from open_llm_proxy.archive.commands.output import progress_bar
from open_llm_proxy.archive.compaction.day import DayResult, compact_day
from open_llm_proxy.archive.compaction.destination import Destination, open_destination
from open_llm_proxy.archive.compaction.raw import delete_raw
from open_llm_proxy.archive.sources.opening import open_source
from open_llm_proxy.archive.sources.source import LogSource, LogSourceError

_DAY = re.compile(r"(\d{4}-\d\d-\d\d|yesterday|today)(?:\+(\d{1,5}))?")


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser(
        "compact",
        help="days of objects as Parquet tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source(parser)
    group = parser.add_argument_group("tables")
    group.add_argument(
        "--to", metavar="DEST", help="a folder or s3://bucket/prefix (default SOURCE)"
    )
    group.add_argument(
        "--day", type=day_of, metavar="D", help="2026-04-07, yesterday, or either +N"
    )
    group.add_argument(
        "--delete-raw",
        action="store_true",
        help="delete each object whose rows the published table was seen to give back",
    )
    add_json(parser)
    parser.set_defaults(
        run=command(read_environment, lambda context: _run(context, read_environment))
    )


def day_of(text: str) -> str:
    """A day, for argparse."""
    found = _DAY.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: 2026-04-07, yesterday, 2026-04-07+3")
    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        first = named.get(found[1]) or date.fromisoformat(found[1])
        return (first + timedelta(days=int(found[2] or 0))).isoformat()
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: {error}") from None


def _run(context: Context, read_environment: ReadEnvironment) -> int:
    source = context.source
    if not source.follows or source.name == "stdin":
        raise UsageError("logs compact needs a folder or s3://bucket/prefix as the SOURCE")
    environment = environment_of(context.chosen, read_environment)
    destination = open_destination(context.chosen.to or source.name, environment)
    originals = open_destination(source.name, environment) if context.chosen.delete_raw else None
    days = [context.chosen.day] if context.chosen.day else _days_before_today(context, destination)
    if not days:
        return complain(f"{source.name} has no day before today: name one with --day", EXIT_FAILED)
    code = 0
    for day in days:
        # Opened anew, as what cannot be read of one day says nothing about the others.
        with open_source(source.name, environment) as one:
            try:
                with progress_bar(day) as progress:
                    result = compact_day(one, destination, day, progress)
                code = max(code, _tell(context, result))
                if originals is not None and result.outcome != "left":
                    code = max(code, _delete_raw(context, one, originals, destination, day))
            except LogSourceError as error:
                return complain(f"{day}: {error}", EXIT_FAILED)
    return code


def _days_before_today(context: Context, destination: Destination) -> list[str]:
    today = datetime.now(UTC).date().isoformat()
    days = {*context.source.days(), *destination.source().days()}
    return sorted(day for day in days if day and day < today)


def _tell(context: Context, result: DayResult) -> int:
    if context.output.console is None:
        context.output.fields(asdict(result), is_sparse=True)
    elif result.outcome == "compacted":
        text = f"{result.day}: {result.calls:,} calls, {result.rows:,} rows"
        context.output.console.print(f"{text} of {result.objects:,} objects")
    elif result.outcome == "unchanged":
        context.output.console.print(f"{result.day}: nothing new")
    if result.outcome != "left":
        return 0
    return complain(f"{result.day} is left as it was: {result.reason}", EXIT_FAILED)


def _delete_raw(
    context: Context,
    source: LogSource,
    originals: Destination,
    destination: Destination,
    day: str,
) -> int:
    done = delete_raw(source, originals, destination, day)
    if context.output.console is None:
        context.output.fields({"day": day, "deleted": done.deleted, "differing": done.differing})
    else:
        context.output.console.print(f"{day}: {done.deleted:,} raw objects deleted")
    for key in done.differing:
        complain(f"{key} is left: the table does not give back its rows", EXIT_FAILED)
    return EXIT_FAILED if done.differing else 0
