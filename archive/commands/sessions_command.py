"""``logs sessions``: one line a session, the newest first."""

import argparse
from collections.abc import Sequence
from typing import Any

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    command,
    complain,
)
from open_llm_proxy.archive.commands.options import add_filters, add_json, add_source
from open_llm_proxy.archive.commands.terminal import Column, count, dollars, print_table

SHORT_ID = 8
LISTED = 50
LOADED = (
    "user_question", "user_message_this_turn", "tool_calls", "prompt_tokens", "completion_tokens",
    "total_tokens", "cost_usd",
)  # fmt: skip


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("sessions", help="one line a session, the newest first")
    add_source(parser)
    add_filters(parser, limit=LISTED)
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _run(context: Context) -> int:
    with context.tables(columns=LOADED) as tables:
        rows = tables.rows(
            "SELECT * FROM sessions ORDER BY started DESC, session_key "
            f"LIMIT {context.filters.limit}"
        )
    if not rows:
        return complain(f"{context.source.name} has no such sessions", EXIT_FAILED)
    if context.output.console is None:
        context.output.all_fields(rows)
        return 0
    shorts = short_ids([row["session_key"] or "" for row in rows])
    with context.output.paged() as console:
        print_table(console, _COLUMNS, [_cells(row, shorts) for row in rows])
    return 0


_COLUMNS = (
    Column("session", style="bold"),
    Column("started", style="dim", min_width=11),
    Column("app", max_width=16),
    Column("model", max_width=16, style="magenta", from_width=110),
    Column("turns", is_number=True),
    Column("tools", is_number=True, from_width=120),
    Column("tokens", is_number=True, from_width=100),
    Column("cost", is_number=True, from_width=120),
    Column("outcome", max_width=20),
    Column("first question", takes_rest=True, min_width=20),
)


def _cells(row: dict[str, Any], shorts: dict[str, str]) -> list[str]:
    failed = row["failed_turns"]
    outcome = row["outcome"] or "?"
    if failed and outcome == "ok":
        outcome = f"ok, {failed} failed"
    return [
        shorts[row["session_key"] or ""],
        f"{row['started']:%m-%d %H:%M}" if row["started"] else "",
        row["app"] or "",
        row["models"] or "",
        count(row["turns"]),
        count(row["tool_calls"]),
        count(row["tokens"]),
        dollars(row["cost_usd"]),
        outcome,
        row["first_question"] or "",
    ]


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Ids as they are listed: their beginning where that tells them apart, else in full."""
    by_start: dict[str, set[str]] = {}
    for name in ids:
        by_start.setdefault(name[:SHORT_ID], set()).add(name)
    return {name: name[:SHORT_ID] if len(by_start[name[:SHORT_ID]]) == 1 else name for name in ids}
