"""The command: reads the command line, runs one session or a grid, and says how it went.

Exit codes: 0 answered, 1 failed, 2 wrong command line, 3 turn limit, 130 stopped by Ctrl-C.
What went wrong is one sentence on standard error, never a traceback.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from .options import CommandLine, Question, RecordedSource, parse
from .settings import InputError, shown

if TYPE_CHECKING:
    from .session import View

INSTALL = "pip install --upgrade openai mcp httpx2 rich"
PACKAGES = ("openai", "mcp", "httpx2")
UPDATE = f"Update with: {INSTALL}"
OLDEST = {"openai": (1, 56), "mcp": (2, 3)}

ANSWERED, FAILED, TURN_LIMIT, INTERRUPTED = 0, 1, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        command_line = parse(argv)
        require_packages()
        silence_libraries()
        return run_command(command_line)
    except InputError as error:
        return complain(str(error))
    except ImportError as error:
        return complain(f"The installed packages do not fit ({error}). {UPDATE}")
    except KeyboardInterrupt:
        complain("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left; Python must not complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return complain(f"{error.filename or 'Output'}: {error.strerror or error}.")


def run_command(command_line: CommandLine) -> int:
    """Everything behind the packages."""
    from .prompt import load_system_prompt

    if command_line.recorded is not None:
        command_line = with_recording(command_line, command_line.recorded)
    if command_line.system_prompt is not None:
        prompt = load_system_prompt(command_line.system_prompt)
        session = replace(command_line.session, system_prompt=prompt)
        command_line = replace(command_line, session=session)
    return run_cells(command_line) if command_line.is_grid else run_one(command_line)


def with_recording(command_line: CommandLine, recorded: RecordedSource) -> CommandLine:
    """The command line with the session that is asked again. Raises InputError."""
    from .recorded_log import read_recording

    recording = read_recording(recorded.session_id, recorded.log)
    session = replace(command_line.session, recording=recording)
    return replace(
        command_line,
        session=session,
        questions=(Question(recording.session_id, recording.question),),
        models=command_line.models or (recording.model,),
    )


def make_view(command_line: CommandLine, output: TextIO) -> "View":
    """The view for a terminal, a file or a pipe, or for a program that reads JSON."""
    from .render import PlainView, QuietView, SilentView

    if command_line.json_output:
        return SilentView()
    if command_line.quiet:
        return QuietView(output)
    if output.isatty() and importlib.util.find_spec("rich") is not None:
        from .render_rich import RichView

        return RichView(output)
    return PlainView(output)


def run_one(command_line: CommandLine) -> int:
    from .session import run_session

    view = make_view(command_line, sys.stdout)
    run = run_session(command_line.session, view, command_line.transcript)
    transcript = asyncio.run(run)
    if command_line.json_output:
        print(json.dumps(transcript.summary(), ensure_ascii=False))
    if transcript.error:
        complain(transcript.error)
    return exit_code([transcript.status])


def run_cells(command_line: CommandLine) -> int:
    from .matrix import Results, run_grid
    from .render_grid import make_grid_view

    view = make_grid_view(
        sys.stdout,
        command_line.json_output,
        command_line.quiet,
        command_line.session.recording,
    )
    grid = run_grid(
        command_line.session,
        command_line.questions,
        command_line.models,
        Results(command_line.results),
        view,
        command_line.concurrency,
        command_line.transcript,
        command_line.trials,
    )
    return exit_code(record["status"] for record in asyncio.run(grid))


def exit_code(statuses: Iterable[str]) -> int:
    """The worst of how sessions ended."""
    found = set(statuses)
    if found <= {"answered"}:
        return ANSWERED
    return TURN_LIMIT if found <= {"answered", "turn_limit"} else FAILED


def require_packages() -> None:
    """Raise InputError with the command that installs what is missing or too old."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{names} {verb} not installed. Install with: {INSTALL}")
    for name, oldest in OLDEST.items():
        version = importlib.metadata.version(name)
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            needed = ".".join(map(str, oldest))
            raise InputError(f"{name} {version} is too old, {needed} is needed. {UPDATE}")


def silence_libraries() -> None:
    """The SDKs log what they also raise; it is said once, in a sentence."""
    for name in ("mcp", "openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def complain(sentence: str) -> int:
    print(f"agent_runner: {shown(' '.join(sentence.split()))}", file=sys.stderr)
    return FAILED
