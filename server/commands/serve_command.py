"""``open-llm-proxy serve``: run the proxy until a signal ends it."""

import argparse
import asyncio
import os
from dataclasses import replace
from pathlib import Path

from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.config import load_config
from open_llm_proxy.server.serve import serve
from open_llm_proxy.server.settings import Settings, from_process_environment


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str
) -> None:
    """Add ``serve`` to the program's commands; `epilog` lists the settings."""
    text = "run the proxy"
    parser = commands.add_parser(
        "serve",
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.set_defaults(run=_serve)


def add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="path of config.json; overrides CONFIG"
    )


def with_config_option(settings: Settings, chosen: argparse.Namespace) -> Settings:
    """`settings` with the path that ``--config`` gave, if it did."""
    return replace(settings, config=chosen.config) if chosen.config else settings


def _serve(chosen: argparse.Namespace) -> ExitCode:
    settings = with_config_option(from_process_environment(), chosen)
    asyncio.run(serve(settings, load_config(settings.config), os.environ))
    return ExitCode.DONE
