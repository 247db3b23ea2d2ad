"""What every command shares: exit codes, errors as sentences, log lines, sizes and times.

A command returns an `ExitCode` or raises. `run` turns what it raises into one line per mistake on
stderr and the exit code, so that no command has an error ladder of its own.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from enum import IntEnum

from rich.filesize import decimal

from open_llm_proxy.queue.batches import utc_moment
from open_llm_proxy.queue.errors import NotAQueue, QueueBroken, QueueFolderUnusable
from open_llm_proxy.queue.s3 import S3SettingsError
from open_llm_proxy.server.config import ConfigError
from open_llm_proxy.server.preflight.findings import PreflightFailed
from open_llm_proxy.server.serve import PortUnavailable
from open_llm_proxy.server.settings import SettingsError


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAILED = 1  # something failed, is damaged or is left to do
    USAGE = 2  # command line, settings or config.json
    ENVIRONMENT = 3  # port in use, directory not writable
    QUEUE_BROKEN = 70  # the server's own queue file failed; the next start recovers it


EXIT_CODES_HELP = """\
Exit codes: 0 done; 1 something failed or is left to do; 2 mistake in the command line, the settings
or config.json; 3 the environment cannot work (port in use, directory not writable); 70 the log
queue's file failed, and the next start recovers it."""

_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (SettingsError, ExitCode.USAGE),
    (ConfigError, ExitCode.USAGE),
    (S3SettingsError, ExitCode.USAGE),
    (NotAQueue, ExitCode.USAGE),
    (PortUnavailable, ExitCode.ENVIRONMENT),
    (QueueFolderUnusable, ExitCode.ENVIRONMENT),
    (QueueBroken, ExitCode.QUEUE_BROKEN),
)


def run(command: Callable[[], int]) -> int:
    """Run a command; returns its exit code, or that of the error that it raised.

    Expected errors are printed to stderr as sentences, any other is raised.
    """
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed it; what Python still flushes must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:
        failed = exit_code(error)
        if failed is None:
            raise
        return complain(sentences(error), failed)
    return code


def complain(text: str, code: ExitCode) -> ExitCode:
    """Print each line of `text` to stderr after the program's name; returns `code`."""
    for sentence in text.splitlines():
        print(f"open-llm-proxy: {sentence}", file=sys.stderr)
    return code


def exit_code(error: Exception) -> ExitCode | None:
    """The exit code of an expected error, None for a defect."""
    if isinstance(error, PreflightFailed):
        return ExitCode.USAGE if error.is_mistake else ExitCode.ENVIRONMENT
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    # Without a file's name it is no directory of the user's that failed, but a defect.
    return ExitCode.ENVIRONMENT if isinstance(error, OSError) and error.filename else None


def sentences(error: Exception) -> str:
    """What an expected error says, a line for each mistake."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def log_to_stderr() -> None:
    """Log lines as ``2026-11-26T01:58:51Z INFO Listening on …``; libraries only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("open_llm_proxy").setLevel(logging.INFO)


def size(size_bytes: int) -> str:
    """``12.3 MB``, in powers of 1000."""
    return decimal(size_bytes)


def iso_time(timestamp_ms: int | None) -> str | None:
    """UTC, ISO 8601, to the second."""
    if timestamp_ms is None:
        return None
    return utc_moment(timestamp_ms).isoformat(timespec="seconds").replace("+00:00", "Z")
