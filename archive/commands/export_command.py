"""``logs export``: training sets for OpenAI's and ShareGPT's tools, or the calls as a table."""

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    UsageError,
    command,
    complain,
)
from open_llm_proxy.archive.commands.options import add_filters, add_source
from open_llm_proxy.archive.exports import examples, tabular
from open_llm_proxy.archive.exports.training_set import FORMATS, training_set


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser(
        "export", help="training sets (openai, sharegpt) or a table (parquet, csv)"
    )
    parser.add_argument("--format", required=True, choices=[*FORMATS, *tabular.OPTIONS])
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: stdout")
    parser.add_argument(
        "--per", choices=["session", "turn"], default="session",
        help="training sets: one line a session (default) or one a turn",
    )  # fmt: skip
    if redact is not None:
        parser.add_argument(
            "--redact", action="store_true", help="take credentials out, with today's rules"
        )
    add_source(parser)
    add_filters(parser)
    parser.set_defaults(
        run=command(read_environment, lambda context: _run(context, redact)), redact=False
    )


def _run(context: Context, redact: Redact | None) -> int:
    chosen = context.chosen
    if chosen.format == "parquet" and chosen.output is None:
        raise UsageError("a Parquet file cannot go to stdout: name it with --output")
    if not chosen.redact:
        redact = None
    if chosen.format in FORMATS:
        return _training_set(context, redact)
    with context.tables() as tables, ExitStack() as stack:
        path = chosen.output
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="open-llm-proxy-"))
            path = Path(folder, "turns.csv")
        limit = context.filters.limit
        written = tabular.write_table(tables, chosen.format, path, redact, limit)
        if chosen.output is None:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    complain(f"{written:,} calls", 0)
    return 0 if written else EXIT_FAILED


def _training_set(context: Context, redact: Redact | None) -> int:
    chosen = context.chosen
    left = examples.Left()
    with ExitStack() as stack:
        tables = stack.enter_context(context.tables(columns=examples.COLUMNS))
        try:
            file = sys.stdout.buffer
            if chosen.output is not None:
                file = stack.enter_context(open(chosen.output, "wb"))
        except OSError as error:
            raise UsageError(f"{chosen.output} cannot be written: {error.strerror}") from None
        limit = context.filters.limit
        for line in training_set(tables, chosen.format, chosen.per, redact, left, limit):
            file.write(line + b"\n")
    complain(f"{left.written:,} examples", 0)
    for reason, count in left.reasons.most_common():
        complain(f"left out: {count:,} {reason}", 0)
    return 0 if left.written else EXIT_FAILED
