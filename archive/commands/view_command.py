"""``logs view``: the log as web pages, for this machine or with a key."""

import argparse
import asyncio
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_llm_proxy.archive.view.own_tables import OwnTables

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    EXIT_USAGE,
    ReadEnvironment,
    Redact,
    complain,
    environment_of,
)
from open_llm_proxy.archive.commands.options import add_source
from open_llm_proxy.archive.sources.opening import open_source
from open_llm_proxy.archive.sources.source import Environment, LogSource, LogSourceError

DEFAULT_PORT = 8899
INSTALL = "the pages need more libraries: pip install 'open-llm-proxy[archive]'"


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("view", help="the log as web pages, read-only")
    add_source(parser)
    group = parser.add_argument_group("pages")
    group.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"where to listen (default {DEFAULT_PORT})"
    )
    group.add_argument(
        "--address", default="127.0.0.1", help="needs --key-file unless it is this machine's own"
    )
    group.add_argument(
        "--key-file", metavar="FILE", help="a file with the key that browsers ask for as password"
    )
    parser.set_defaults(run=lambda chosen: _run(chosen, read_environment))


def _run(chosen: argparse.Namespace, read_environment: ReadEnvironment) -> int:
    try:
        from open_llm_proxy.archive.view.application import View, serve_until_signal
        from open_llm_proxy.archive.view.request import is_this_machine
    except ImportError:
        return complain(INSTALL, EXIT_USAGE)
    if find_spec("matplotlib") is None:  # it is imported with the first plot
        return complain(INSTALL, EXIT_USAGE)
    try:
        environment = environment_of(chosen, read_environment)
        key = None if chosen.key_file is None else _key(Path(chosen.key_file))
        with ExitStack() as stack:  # a mistake in the names is said here and not on a page
            source, _ = _opened(stack, chosen, environment)
    except LogSourceError as error:
        return complain(str(error), EXIT_USAGE)
    if key is None and not is_this_machine(chosen.address):
        return complain(
            f"{chosen.address} is not this machine alone: name a file with a key, --key-file FILE, "
            "or leave --address out",
            EXIT_USAGE,
        )

    def tell(port: int) -> None:
        host = f"[{chosen.address}]" if ":" in chosen.address else chosen.address
        print(f"{source.name} is shown at http://{host}:{port} (Ctrl-C ends it)", flush=True)

    try:
        own_tables = _own_tables(chosen, environment)
        view = View(lambda stack: _opened(stack, chosen, environment), source.name, key, own_tables)
        asyncio.run(serve_until_signal(view, chosen.port, chosen.address, tell))
    except LogSourceError as error:
        return complain(str(error), EXIT_FAILED)
    except (OSError, OverflowError) as error:
        return complain(f"cannot listen on {chosen.address}:{chosen.port}: {error}", EXIT_FAILED)
    return 0


def _opened(
    stack: ExitStack, chosen: argparse.Namespace, environment: Environment
) -> tuple[LogSource, LogSource | None]:
    source = stack.enter_context(open_source(chosen.source, environment))
    if not source.follows:
        raise LogSourceError("the pages need a folder or s3://bucket/prefix as the SOURCE")
    if chosen.tables is None:
        return source, None
    return source, stack.enter_context(open_source(chosen.tables, environment))


def _own_tables(chosen: argparse.Namespace, environment: Environment) -> "OwnTables | None":
    """Tables of the view's own, unless there are compacted ones."""
    from open_llm_proxy.archive.view.own_tables import OwnTables

    with ExitStack() as stack:
        source, tables = _opened(stack, chosen, environment)
        if tables is not None or any(source.parquet("entries", day) for day in source.days()):
            return None
    return OwnTables(lambda stack: _opened(stack, chosen, environment)[0], environment.cache_folder)


def _key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LogSourceError(f"cannot read the key in {path}: {error}") from None
    if not key:
        raise LogSourceError(f"{path} is empty: write a key into it (openssl rand -hex 24)")
    return key
