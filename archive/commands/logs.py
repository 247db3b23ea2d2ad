"""``open-llm-proxy logs``: the log for people, with and without SQL.

    open-llm-proxy logs sessions                      one line a session
    open-llm-proxy logs show SESSION s3://logs-ns     a conversation, tools included
    open-llm-proxy logs tail -f                       the newest calls, and those that follow
    open-llm-proxy logs stats ./logs --since 7d --by model,day
    open-llm-proxy logs verify s3://logs-ns           whether anything is missing
    open-llm-proxy logs sql "SELECT model, count(*) FROM turns GROUP BY ALL"
    open-llm-proxy logs view                          sessions, usage and search as web pages
    kubectl logs -f deployment/open-llm-proxy | open-llm-proxy logs tail -f -

On a terminal the output is made for reading; piped it is JSON, one object a line. Exit codes: 0
done; 1 nothing found, or something is missing or cannot be read; 2 a mistake in the command line.
"""

import argparse
from typing import Protocol

from open_llm_proxy.archive.commands import (
    compact_command,
    export_command,
    schema_command,
    sessions_command,
    show_command,
    sql_command,
    stats_command,
    tail_command,
    verify_command,
    view_command,
)
from open_llm_proxy.archive.commands.context import ReadEnvironment, Redact


class CommandModule(Protocol):
    """A file of this folder: `add` makes the parser of its command, `logs CHILD`."""

    def add(
        self,
        commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
        read_environment: ReadEnvironment,
        redact: Redact | None,
    ) -> None: ...


COMMANDS: tuple[CommandModule, ...] = (
    sessions_command,
    show_command,
    tail_command,
    stats_command,
    sql_command,
    compact_command,
    verify_command,
    export_command,
    schema_command,
    view_command,
)


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None = None,
) -> None:
    """Add ``logs`` and its commands to the program's.

    `read_environment` is called when one of them runs, and may raise for settings that are wrong.
    `redact` takes credentials out of a text, for exports.
    """
    parser = commands.add_parser(
        "logs",
        help="read the log: sessions, conversations, usage, SQL",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    children = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(children, read_environment, redact)
