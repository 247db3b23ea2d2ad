"""The command line: ``open-llm-proxy serve | demo | check | replay | queue | logs | keys``.

Each command module adds its own parser; `main` runs the chosen one and ends the process with its
exit code, see console.py. ``serve`` does without the others, whose libraries would double the time
of its start and its memory.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from open_llm_proxy.server.commands import console, serve_command
from open_llm_proxy.server.commands.parser import Parser
from open_llm_proxy.server.settings import from_process_environment, settings_help
from open_llm_proxy.server.sink_choice import reader_environment

READ_BY_BOTO3 = """\
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
                            S3 credentials; every other source of boto3's credential
                            chain works too, except the EC2 metadata service"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    console.log_to_stderr()
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: an upload that hangs in a thread must not delay the end.
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command in this process; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser(only_serve=given[:1] == ["serve"])
    chosen = parser.parse_args(given)
    if not hasattr(chosen, "run"):
        parser.error("name a command, such as serve; --help lists them")
    return console.run(lambda: chosen.run(chosen))


def _parser(only_serve: bool) -> argparse.ArgumentParser:
    epilog = f"Settings (environment variables):\n{settings_help()}\n{READ_BY_BOTO3}"
    parser: argparse.ArgumentParser = Parser(
        prog="open-llm-proxy",
        description="OpenAI-compatible LLM proxy that never loses a log entry.",
        epilog=f"{console.EXIT_CODES_HELP}\n\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"open-llm-proxy {version('open-llm-proxy')}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    serve_command.add_command(commands, epilog)
    if not only_serve:
        _add_others(commands, epilog)
    return parser


def _add_others(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str
) -> None:
    from open_llm_proxy.archive.commands import logs as logs_command
    from open_llm_proxy.server.commands import (
        check_command,
        keys_command,
        queue_command,
        replay_command,
    )
    from open_llm_proxy.server.commands.demo import command as demo_command
    from open_llm_proxy.server.redaction.redactor import Redactor

    for module in (demo_command, check_command):
        module.add_command(commands, epilog)
    for module in (replay_command, queue_command):
        module.add_command(commands)
    logs_command.add_command(
        commands, lambda: reader_environment(from_process_environment()), Redactor().value
    )
    keys_command.add_command(commands)


if __name__ == "__main__":
    main()
