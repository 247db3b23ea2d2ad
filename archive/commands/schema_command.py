"""``logs schema``: a head, to put in front of a capture of stdout; or the JSON Schema of a line."""

import argparse
import sys
import time

from open_llm_proxy.archive.commands.context import ReadEnvironment, Redact
from open_llm_proxy.archive.entry import head_line
from open_llm_proxy.archive.json_schema import schema_text


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("schema", help="a head, to put in front of a capture of stdout")
    parser.add_argument("--json-schema", action="store_true", help="the JSON Schema of a line")
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.json_schema:
        sys.stdout.write(schema_text())
    else:
        sys.stdout.buffer.write(head_line("0" * 16, time.time_ns() // 1_000_000))
    return 0
