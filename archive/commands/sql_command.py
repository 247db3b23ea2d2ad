"""``logs sql``: any query over the views `entries`, `turns`, `sessions` and `session_rollup`."""

import argparse

from open_llm_proxy.archive.commands.context import (
    Context,
    ReadEnvironment,
    Redact,
    UsageError,
    command,
)
from open_llm_proxy.archive.commands.options import add_filters, add_json, add_source
from open_llm_proxy.archive.commands.terminal import result_table
from open_llm_proxy.archive.tables.connection import Tables
from open_llm_proxy.archive.tables.loading import duckdb_module

ROWS_AT_ONCE = 1000
ROWS_ON_A_TERMINAL = 1000


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser(
        "sql", help="a query over the views entries, turns, sessions, session_rollup"
    )
    parser.add_argument("statement", metavar="SQL", help='such as "FROM sessions LIMIT 5"')
    add_source(parser)
    add_filters(parser)
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _run(context: Context) -> int:
    duckdb = duckdb_module()
    with context.tables() as tables:
        try:
            return _answer(context, tables)
        except duckdb.Error as error:
            raise UsageError(f"the query failed: {error}") from None


def _answer(context: Context, tables: Tables) -> int:
    result = tables.connection.execute(context.chosen.statement)
    names = [column[0] for column in result.description or ()]
    limit = context.filters.limit
    if context.output.console is not None:
        rows = result.fetchmany(limit or ROWS_ON_A_TERMINAL)
        with context.output.paged() as console:
            result_table(console, names, rows)
        return 0
    left = limit
    while rows := result.fetchmany(min(ROWS_AT_ONCE, left or ROWS_AT_ONCE)):
        context.output.all_fields(dict(zip(names, row, strict=True)) for row in rows)
        if left is not None:
            left -= len(rows)
            if left <= 0:
                break
    return 0
