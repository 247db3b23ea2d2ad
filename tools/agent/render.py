"""A session as a person likes to read it: on a terminal with rich installed, and plain elsewhere.

Both views show the same: the question, each turn with its tool calls (SQL as SQL), result
previews and times, reasoning dimmed, the answer, and a line that sums up. What models and tools
send is shown without control characters, so that it cannot steer a terminal.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import TextIO

from .reply import PieceKind
from .session import parsed_arguments
from .settings import shown
from .transcript import ToolCall, Transcript, Turn

PREVIEW_LINES = 8
PREVIEW_LINE_CHARS = 160
REASONING_CHARS = 2000

SQL_NAMES = frozenset({"sql", "query", "sql_query", "statement"})
SQL_START = re.compile(
    r"[\s(]*(--|/\*|(select|with|from|describe|show|summarize|explain|create|copy|install|load|"
    r"attach|set|pragma|insert|update|delete|drop|alter|call|values)\b)",
    re.IGNORECASE,
)

OUTCOMES = {
    "answered": "answered",
    "turn_limit": "turn limit",
    "no_progress": "no progress",
    "failed": "failed",
    "interrupted": "interrupted",
    "running": "running",
}


class SilentView:
    """Shows nothing; also what the other views start from."""

    def started(self, transcript: Transcript) -> None:
        pass

    def waiting(self, turn: Turn) -> None:
        pass

    def piece(self, kind: PieceKind, text: str) -> None:
        pass

    def replied(self, turn: Turn) -> None:
        pass

    def tool_finished(self, turn: Turn, call: ToolCall) -> None:
        pass

    def finished(self, transcript: Transcript) -> None:
        pass


class QuietView(SilentView):
    """The answer as the model wrote it, so that it can be piped on."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def finished(self, transcript: Transcript) -> None:
        if transcript.answer:
            print(shown(transcript.answer), file=self._output)


class PlainView(SilentView):
    """Text alone. On a terminal streams are shown as they come, and reasoning is dimmed."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._live = output.isatty()
        self._dimmed = self._live and not os.environ.get("NO_COLOR")
        self._streaming: PieceKind | None = None
        self._answer_is_shown = False

    def started(self, transcript: Transcript) -> None:
        settings = transcript.settings
        self._line(f"Question: {settings.question}")
        self._line(f"Model:    {settings.model}")
        self._line(f"Session:  {settings.session_id}")
        self._line(f"Tools:    {', '.join(transcript.tools) or 'none'} ({settings.tool_server})")
        for note in transcript.notes:
            self._line(f"Note: {note}")

    def piece(self, kind: PieceKind, text: str) -> None:
        if not self._live:
            return
        if self._streaming != kind:
            self._output.write("\n")
            self._streaming = kind
        self._output.write(self._dim(shown(text)) if kind == "reasoning" else shown(text))
        self._output.flush()

    def replied(self, turn: Turn) -> None:
        if self._streaming:
            self._line("")
        self._line(f"\n{turn_line(turn)}")
        if not self._streaming:
            for line in shortened(turn.reasoning).splitlines():
                print(self._dim(f"  ~ {shown(line)}"), file=self._output)
            if turn.tool_calls:
                self._block("  ", turn.content)
        self._answer_is_shown = self._streaming == "content"
        self._streaming = None
        for number, call in enumerate(turn.tool_calls, start=1):
            self._line(f"  [{number}] {call.name}")
            for label, text in argument_lines(call):
                self._block("      ", f"{label}: {text}" if label else text)

    def tool_finished(self, turn: Turn, call: ToolCall) -> None:
        self._line(f"  [{turn.tool_calls.index(call) + 1}] {result_line(call)}")
        self._block("      | ", preview(call.result or ""))

    def finished(self, transcript: Transcript) -> None:
        if transcript.answer and not self._answer_is_shown:
            self._line(f"\n{transcript.answer}")
        self._line(f"\n{summary_line(transcript)}")

    def _block(self, margin: str, text: str) -> None:
        for line in text.splitlines():
            self._line(f"{margin}{line}")

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dimmed else text

    def _line(self, text: str) -> None:
        print(shown(text), file=self._output, flush=True)


def turn_line(turn: Turn) -> str:
    parts = [f"Turn {turn.number}", f"{turn.seconds:.1f} s"]
    if turn.usage:
        parts.append(f"{turn.usage.prompt_tokens:,} + {turn.usage.completion_tokens:,} tokens")
    if turn.retries:
        parts.append(f"after {turn.retries} {'retry' if turn.retries == 1 else 'retries'}")
    if turn.finish_reason == "length":
        parts.append("cut off at the token limit")
    if turn.proxy_warning:
        parts.append(f"proxy: {turn.proxy_warning}")
    return " · ".join(parts)


def result_line(call: ToolCall) -> str:
    size = f"{call.result_chars:,} characters"
    if call.result is not None and call.result_chars > len(call.result):
        size += ", cut"
    return f"{'error' if call.is_error else 'result'} · {call.seconds:.1f} s · {size}"


def summary_line(transcript: Transcript) -> str:
    usage = transcript.usage
    tokens = f"{usage.total_tokens:,} tokens"
    if usage.cached_tokens:
        tokens += f" ({usage.cached_tokens:,} cached)"
    turns = len(transcript.turns)
    parts = [
        OUTCOMES[transcript.status].capitalize(),
        f"{turns} {'turn' if turns == 1 else 'turns'}",
        f"{transcript.tool_call_count} tool calls",
        tokens,
        f"{transcript.seconds:.1f} s",
        f"session {transcript.settings.session_id}",
    ]
    return " · ".join(parts)


def argument_lines(call: ToolCall) -> Iterator[tuple[str, str]]:
    """The arguments of a call as (label, text); SQL has no label and keeps its lines."""
    try:
        arguments = parsed_arguments(call.arguments)
    except ValueError:
        yield "arguments", call.arguments
        return
    for name, value in arguments.items():
        if isinstance(value, str) and is_sql(name, value):
            yield "", value.strip("\n")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_sql(name: str, value: str) -> bool:
    return name.lower() in SQL_NAMES and SQL_START.match(value) is not None


def preview(text: str) -> str:
    """The first lines of a result, and how many are not shown."""
    lines = text.splitlines()
    head = [
        line if len(line) <= PREVIEW_LINE_CHARS else f"{line[:PREVIEW_LINE_CHARS]} …"
        for line in lines[:PREVIEW_LINES]
    ]
    if len(lines) > PREVIEW_LINES:
        head.append(f"… {len(lines) - PREVIEW_LINES:,} more lines")
    return "\n".join(head)


def shortened(text: str) -> str:
    """Reasoning of bounded length; the transcript has all of it."""
    text = text.strip()
    return text if len(text) <= REASONING_CHARS else f"{text[:REASONING_CHARS]} …"
