"""The command line: its options, their defaults, and what they come to.

Parsing needs none of the packages that a session needs, so that ``--help`` always works.
What argparse itself refuses ends with exit code 2; values that it cannot judge (a URL, a
missing key, a file) raise `InputError`.
"""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import (
    InputError,
    SessionSettings,
    file_name,
    header_value,
    http_url,
    new_session_id,
    tag,
    valid_text,
)

DEFAULT_MODEL = "nemotron"
DEFAULT_PROXY_URL = "https://open-llm-proxy.nrp-nautilus.io/v1"
DEFAULT_MCP_URL = "https://duckdb-mcp.nrp-nautilus.io/mcp"

EXIT_CODES = """\
exit codes: 0 answered; 1 failed (the reason is on standard error); 2 wrong command line;
3 turn limit reached; 130 stopped by Ctrl-C. A grid gives the worst of its cells: 1, then 3."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a grid; `name` stands for it in tables, session ids and file names."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """A session to ask again, and the log that has it."""

    session_id: str
    log: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the user asked for. `session` is complete but for the system prompt and the recording.

    A grid (`is_grid`) has the questions of a file, several models, several trials or a recorded
    session; each of its cells takes `session` with its own question, model, session id and origin.
    Without `models` the one of the recorded session is asked.
    """

    session: SessionSettings
    system_prompt: str | None
    models: tuple[str, ...]
    questions: tuple[Question, ...]
    is_grid: bool
    results: Path
    concurrency: int
    trials: int
    recorded: "RecordedSource | None"
    transcript: Path | None
    json_output: bool
    quiet: bool


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def size(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 (no limit) or more")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


def make_parser() -> argparse.ArgumentParser:
    """All options, in the order in which a user needs them."""
    parser = argparse.ArgumentParser(
        description="Answer a question with a model and the tools of an MCP server, "
        "every call going through the proxy.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", nargs="?", metavar="QUESTION", help="what to ask")
    add("--model", action="append", metavar="ID", help=f"default {DEFAULT_MODEL}; again for a grid")
    add("--proxy-url", default=DEFAULT_PROXY_URL, metavar="URL", help="default %(default)s")
    add("--api-key", metavar="KEY", help="the proxy's key; default $OPENAI_API_KEY")
    tools = parser.add_mutually_exclusive_group()
    tools.add_argument(
        "--mcp-url", default=DEFAULT_MCP_URL, metavar="URL", help="default %(default)s"
    )
    tools.add_argument("--mcp-command", metavar="COMMAND", help="run an MCP server over stdio")
    add(
        "--system-prompt", metavar="PATH|URL", help="default: the MCP server's instructions, if any"
    )
    add("--origin", default="agent-runner", help="tags the log entries; default %(default)s")
    add("--session-id", metavar="ID", help="default: a new one")
    add("--max-turns", type=positive_int, default=20, metavar="N", help="default %(default)s")
    add("--enable-thinking", action=argparse.BooleanOptionalAction, help="ask for reasoning or not")
    add("--temperature", type=float, metavar="T", help="default: the provider's")
    add(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="wait for the model's answer, in a stream for its next piece; default %(default)g",
    )
    add(
        "--tool-timeout",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="wait for one tool call; default %(default)g",
    )
    add(
        "--max-result-chars",
        type=size,
        default=20_000,
        metavar="N",
        help="cut longer tool results, with a mark; 0 is no limit; default %(default)s",
    )
    add("--stream", action="store_true", help="ask for a stream and show it as it comes")
    add("--transcript", type=Path, metavar="FILE", help="JSON of every turn; in a grid a folder")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object on standard output")
    shown.add_argument("--quiet", action="store_true", help="the answer and nothing else")
    grid = parser.add_argument_group("grids")
    grid.add_argument(
        "--questions", type=Path, metavar="FILE", help="one a line, or .jsonl with id and question"
    )
    grid.add_argument(
        "--results", type=Path, metavar="FILE", help="JSON lines; a second run does only the rest"
    )
    grid.add_argument("--concurrency", type=positive_int, default=4, metavar="N", help="default 4")
    grid.add_argument(
        "--trials", type=positive_int, default=1, metavar="N", help="ask each N times; default 1"
    )
    again = parser.add_argument_group("a recorded session (LOG_CAPTURE=full), asked again")
    again.add_argument("--from-session", metavar="ID", help="its session id in the log")
    again.add_argument("--log", metavar="SOURCE", help="a folder, a file or s3://bucket/prefix")
    again.add_argument(
        "--tools",
        choices=("recorded", "live"),
        default="recorded",
        help="give the recorded results, or call the MCP server; default %(default)s",
    )
    return parser


def parse(argv: Sequence[str] | None) -> CommandLine:
    """The command line as data. Raises InputError; argparse itself exits with 2."""
    parser = make_parser()
    given = parser.parse_args(argv)
    sources = (given.question, given.questions, given.from_session)
    if sum(source is not None for source in sources) != 1:
        parser.error("give one of QUESTION, --questions FILE and --from-session ID")
    if (given.from_session is None) != (given.log is None):
        parser.error("--from-session and --log go together")
    recorded = RecordedSource(given.from_session, given.log) if given.from_session else None
    models = tuple(dict.fromkeys(given.model or ([] if recorded else [DEFAULT_MODEL])))
    if given.questions is not None:
        questions = read_questions(given.questions)
    elif recorded is not None:
        questions = (Question(recorded.session_id, recorded.session_id),)
    else:
        questions = (Question("q1", question_text(given.question)),)
    if not all(model.strip() for model in models):
        raise InputError("--model must not be empty.")
    default_name = given.questions.name if given.questions else given.from_session or "agent"
    default_results = f"{file_name(default_name)}.results.jsonl"
    return CommandLine(
        session=session_settings(given, models[0] if models else "", questions[0].text),
        system_prompt=given.system_prompt,
        models=models,
        questions=questions,
        is_grid=recorded is not None
        or given.questions is not None
        or len(models) * given.trials > 1,
        results=given.results or Path(default_results),
        concurrency=given.concurrency,
        trials=given.trials,
        recorded=recorded,
        transcript=given.transcript,
        json_output=given.json,
        quiet=given.quiet,
    )


def session_settings(given: argparse.Namespace, model: str, question: str) -> SessionSettings:
    key = given.api_key if given.api_key is not None else os.environ.get("OPENAI_API_KEY", "")
    if not key.strip():
        raise InputError("There is no key: set OPENAI_API_KEY, or give --api-key, to a proxy key.")
    proxy_url = http_url(given.proxy_url, "--proxy-url").rstrip("/")
    return SessionSettings(
        question=question,
        model=model,
        proxy_url=proxy_url.removesuffix("/chat/completions"),
        api_key=header_value(key, "The API key"),
        mcp_url=http_url(given.mcp_url, "--mcp-url"),
        mcp_command=mcp_command(given.mcp_command),
        session_id=tag(given.session_id, "--session-id") if given.session_id else new_session_id(),
        origin=tag(given.origin, "--origin"),
        system_prompt=None,
        max_turns=given.max_turns,
        enable_thinking=given.enable_thinking,
        temperature=given.temperature,
        timeout_seconds=given.timeout,
        tool_timeout_seconds=given.tool_timeout,
        max_result_chars=given.max_result_chars,
        stream=given.stream,
        live_tools=given.from_session is None or given.tools == "live",
    )


def mcp_command(text: str | None) -> tuple[str, ...] | None:
    """The words of a command, split as a shell splits them."""
    if text is None:
        return None
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"--mcp-command cannot be split into words: {error}.") from error
    if not words:
        raise InputError("--mcp-command is empty.")
    return words


def question_text(text: str) -> str:
    if not text.strip():
        raise InputError("The question is empty.")
    return valid_text(text.strip())


def read_questions(path: Path) -> tuple[Question, ...]:
    """The questions of a file: one a line, empty lines and lines with ``#`` left out.

    In a ``.jsonl`` file each line is an object with `question` and, if wanted, `id`.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--questions: cannot read {path}: {reason(error)}.") from error
    as_json = path.suffix in (".jsonl", ".ndjson")
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or (line.startswith("#") and not as_json):
            continue
        name = f"q{len(questions) + 1}"
        where = f"{path}, line {number}"
        question = json_question(line, name, where) if as_json else Question(name, valid_text(line))
        if question.name in questions or any(q.text == question.text for q in questions.values()):
            raise InputError(f"{where}: this question or its id came before.")
        questions[question.name] = question
    if not questions:
        raise InputError(f"--questions: there is no question in {path}.")
    return tuple(questions.values())


def json_question(line: str, name: str, where: str) -> Question:
    try:
        item: Any = json.loads(line)
    except ValueError:
        item = None
    if not isinstance(item, dict) or not isinstance(item.get("question"), str):
        raise InputError(f'{where}: must be a JSON object with a text "question".')
    given = item.get("id", name)
    return Question(tag(str(given), f"{where}: the id"), question_text(item["question"]))


def reason(error: Exception) -> str:
    """Why a file cannot be used, without the path that the sentence already names."""
    return str(getattr(error, "strerror", None) or error)
