"""What every `logs` command is given, and how each of them ends.

A command is a function of a `Context` that returns an exit code. What it raises of its own kind
becomes a sentence on stderr, and what could not be read is said there in the end.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from open_llm_proxy.archive.commands.options import filters_of
from open_llm_proxy.archive.commands.output import Output, progress_bar
from open_llm_proxy.archive.sources.opening import open_source
from open_llm_proxy.archive.sources.source import Environment, LogSource, LogSourceError
from open_llm_proxy.archive.tables.connection import Tables, open_tables
from open_llm_proxy.archive.tables.filters import FilterError, Filters

EXIT_FAILED = 1  # nothing was found, or entries are missing or cannot be read
EXIT_USAGE = 2
ReadEnvironment = Callable[[], Environment]
Redact = Callable[[object], object]
"""Replaces the credentials in a JSON value; the server has one, archive/ none of its own."""


class UsageError(LogSourceError):
    """The options do not go together; one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Context:
    """The options of a command, and the source that it was named."""

    chosen: argparse.Namespace
    source: LogSource
    tables_source: LogSource | None
    filters: Filters
    output: Output

    @contextmanager
    def tables(
        self,
        filters: Filters | None = None,
        *,
        columns: Sequence[str] | None = None,
        only: str | None = None,
    ) -> Iterator[Tables]:
        """The views over the source, with the options' filters unless others are given."""
        with ExitStack() as stack:
            with progress_bar("Downloading") as progress:
                opened = open_tables(
                    self.source,
                    filters or self.filters,
                    tables=self.tables_source,
                    columns=columns,
                    only=only,
                    progress=progress,
                )
                tables = stack.enter_context(opened)
            yield tables


Run = Callable[[Context], int]


def command(read_environment: ReadEnvironment, run: Run) -> Callable[[argparse.Namespace], int]:
    """What argparse calls for `run`."""

    def called(chosen: argparse.Namespace) -> int:
        try:
            code = _run(chosen, read_environment, run)
            sys.stdout.flush()
            return code
        except (LogSourceError, FilterError) as error:
            return complain(str(error), EXIT_USAGE)
        except KeyboardInterrupt:
            return 0
        except RuntimeError as error:
            if "interrupted" not in str(error).lower():
                raise
            return 0  # what DuckDB makes of Ctrl-C
        except BrokenPipeError:
            # Whoever read the output has enough; what Python still flushes goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return called


def _run(chosen: argparse.Namespace, read_environment: ReadEnvironment, run: Run) -> int:
    environment = environment_of(chosen, read_environment)
    names = (chosen.source or environment.default_source or "", chosen.tables or "")
    if (chosen.cache or chosen.cache_max_bytes) and not any(n.startswith("s3:") for n in names):
        raise UsageError(
            "--cache and --cache-max-bytes are for a bucket: nothing is downloaded here"
        )
    filters = filters_of(chosen)
    output = Output(getattr(chosen, "json", False))
    with open_source(chosen.source, environment) as source:
        try:
            if chosen.tables is None:
                return _checked(source, run(Context(chosen, source, None, filters, output)))
            with open_source(chosen.tables, environment) as tables:
                return _checked(source, run(Context(chosen, source, tables, filters, output)))
        finally:
            sys.stdout.flush()
            for sentence in source.problems.sentences():
                print(f"open-llm-proxy logs: {sentence}", file=sys.stderr)


def environment_of(chosen: argparse.Namespace, read_environment: ReadEnvironment) -> Environment:
    """The environment with what the options change in it."""
    environment = read_environment()
    if chosen.cache is not None:
        environment = replace(environment, cache_folder=Path(chosen.cache))
    if chosen.cache_max_bytes is not None:
        environment = replace(environment, cache_max_bytes=chosen.cache_max_bytes)
    return environment


def _checked(source: LogSource, code: int) -> int:
    return max(code, EXIT_FAILED) if source.problems.is_short else code


def complain(text: str, code: int) -> int:
    """Say on stderr what is wrong; returns `code`."""
    print(f"open-llm-proxy logs: {text}", file=sys.stderr)
    return code
