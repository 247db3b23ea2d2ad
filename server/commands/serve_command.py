"""``open-llm-proxy serve``: check the configuration, then run the proxy until a signal ends it."""

import argparse
import asyncio
import contextlib
import logging
import os
import threading
from pathlib import Path

from open_llm_proxy.server.commands import console
from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.preflight.checks import check_offline
from open_llm_proxy.server.serve import report, serve
from open_llm_proxy.server.settings import Settings

log = logging.getLogger(__name__)

START_SECONDS = 10.0
HANGING_START = (
    "The start takes unusually long. If nothing follows, a disk does not answer: "
    "look at those of LOG_QUEUE_DIR and LOG_DIR"
)
TERMINATION_LOG_BYTES = 4096  # Kubernetes reads no more


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


def _serve(chosen: argparse.Namespace) -> ExitCode:
    patience = threading.Timer(START_SECONDS, log.error, [HANGING_START])
    patience.daemon = True
    patience.start()

    async def started(_port: int) -> None:
        patience.cancel()

    preflight = check_offline(os.environ, chosen.config)
    report(preflight.findings)
    try:
        settings, config = preflight.ready()
        # Not asyncio.run, which waits for all threads: one may wait for a disk that hangs.
        asyncio.Runner().run(serve(settings, config, os.environ, started))
    except Exception as error:
        tell_kubernetes(preflight.settings, error)
        raise
    return ExitCode.DONE


def tell_kubernetes(settings: Settings, error: Exception) -> None:
    """Write why the start failed where ``kubectl describe pod`` shows it.

    Only to a file that is there, as in every container of Kubernetes: elsewhere nobody reads it.
    """
    text = console.sentences(error) if console.exit_code(error) else f"{type(error).__name__}"
    path = settings.termination_log
    with contextlib.suppress(OSError):  # it is a copy of what stderr says
        if path.is_file():
            path.write_bytes(text.encode("utf-8", "replace")[:TERMINATION_LOG_BYTES])
