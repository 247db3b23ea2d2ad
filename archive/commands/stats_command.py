"""``logs stats``: calls, errors, latency, tokens and cost by any of app, model, key, day, ..."""

import argparse

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    command,
    complain,
)
from open_llm_proxy.archive.commands.options import add_filters, add_json, add_source
from open_llm_proxy.archive.commands.terminal import (
    Column,
    count,
    dollars,
    milliseconds,
    print_table,
)
from open_llm_proxy.archive.tables.usage import GROUPS, LOADED, usage_sql


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("stats", help="calls, tokens, latency, cost and errors by ...")
    add_source(parser)
    parser.add_argument(
        "--by",
        type=_groups,
        default=["app", "model"],
        metavar="NAMES",
        help=f"some of {', '.join(GROUPS)}, with commas between (default app,model)",
    )
    add_filters(parser)
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return names


def _run(context: Context) -> int:
    by: list[str] = context.chosen.by
    with context.tables(columns=LOADED) as tables:
        groups = tables.rows(usage_sql(by, context.filters.limit))
        (total,) = tables.rows(usage_sql([]))
    if not total["calls"]:
        return complain(f"{context.source.name} has no such calls", EXIT_FAILED)
    if context.output.console is None:
        context.output.all_fields(groups)
        return 0
    columns = [Column(name, max_width=32) for name in by] + _COLUMNS
    rows = [[str(group[name] or "-") for name in by] + _cells(group) for group in groups]
    sums = [["all", *[""] * (len(by) - 1), *_cells(total)]] if len(groups) > 1 else []
    with context.output.paged() as console:
        print_table(console, columns, rows, sums)
    return 0


_COLUMNS = [
    Column(name, is_number=True)
    for name in ("calls", "errors", "p50", "p95", "ttft", "tokens in", "out", "cost")
]


def _cells(group: dict[str, object]) -> list[str]:
    return [
        count(group["calls"]),
        count(group["errors"]),
        *map(milliseconds, (group["latency_ms_p50"], group["latency_ms_p95"])),
        milliseconds(group["ttft_ms_p50"]),
        count(group["prompt_tokens"]),
        count(group["completion_tokens"]),
        dollars(group["cost_usd"]),
    ]
