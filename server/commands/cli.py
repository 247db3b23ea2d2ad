"""The command line: ``open-llm-proxy serve | demo | check | replay | queue | logs``.

Exit codes: 0 done, 1 something is left or failed, 2 usage, settings or config.json, 3 an
environment that cannot work (port in use, folder not writable), 70 the queue's file failed.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from open_llm_proxy.archive import command as logs_command
from open_llm_proxy.queue.errors import QueueFolderUnusable
from open_llm_proxy.server.commands import queue_command, replay_command
from open_llm_proxy.server.commands.demo.command import demo
from open_llm_proxy.server.config import Config, ConfigError, load_config
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.serve import PortUnavailable, serve
from open_llm_proxy.server.settings import (
    Settings,
    SettingsError,
    from_process_environment,
    settings_help,
)
from open_llm_proxy.server.sink_choice import reader_environment

EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3
READ_BY_BOTO3 = """\
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
                            S3 credentials; any other source of boto3's chain works too,
                            but for the EC2 metadata address"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        code = chosen.run(chosen)
    except (SettingsError, ConfigError) as error:
        code = _complain(error, EXIT_USAGE)
    except (PortUnavailable, QueueFolderUnusable) as error:
        code = _complain(error, EXIT_ENVIRONMENT)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: an upload that hangs in a thread must not hold the process up.
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="open-llm-proxy",
        description="OpenAI-compatible LLM proxy that never loses a log line.",
        epilog="settings, from the environment:\n" + settings_help() + "\n" + READ_BY_BOTO3,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, text in (
        ("serve", _serve, "run the proxy"),
        ("demo", _demo, "run it with a built-in provider, nothing configured"),
        ("check", _check, "check settings and config.json, and say what they mean"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=parser.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        if name != "demo":
            command.add_argument("--config", type=Path, help="config.json (instead of CONFIG)")
    for module in (replay_command, queue_command):
        module.add_command(commands)
    logs_command.add_command(commands, lambda: reader_environment(from_process_environment()))
    return parser


def _serve(chosen: argparse.Namespace) -> int:
    settings, config = _loaded(chosen)
    return asyncio.run(serve(settings, config, os.environ))


def _demo(_: argparse.Namespace) -> int:
    return asyncio.run(demo(from_process_environment()))


def _check(chosen: argparse.Namespace) -> int:
    settings, config = _loaded(chosen)
    router = Router(config, os.environ)
    for name, provider in router.providers.items():
        key = "key set" if provider.is_configured else f"{provider.config.api_key_env} is not set"
        models = ", ".join([*provider.config.exact_models, *provider.config.prefixes])
        print(f"{name}: {provider.config.endpoint} ({key}): {models or 'no models of its own'}")
    print(f"other models: {config.default_provider or 'refused'}")
    print(f"proxy key: {'set' if settings.proxy_key else 'PROXY_KEY is not set'}")
    return 0


def _loaded(chosen: argparse.Namespace) -> tuple[Settings, Config]:
    settings = from_process_environment()
    return settings, load_config(chosen.config or settings.config)


def _complain(error: Exception, code: int) -> int:
    print(f"open-llm-proxy: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
