"""The record of one session: every turn, every tool call, and how it ended.

Filled while the session runs and saved after each turn, so that a run that is cut short
leaves all that happened. Texts stand here exactly as they went over the wire, and the ids
(`session_id`, `proxy_request_id`, tool call ids) are those of the proxy's log.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .provenance import Provenance
from .settings import SessionSettings, public_url

FORMAT = "open-llm-proxy-agent/2"

Status = Literal["running", "answered", "turn_limit", "no_progress", "failed", "interrupted"]


@dataclass(slots=True)
class Usage:
    """Tokens, as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(slots=True)
class ToolCall:
    """One tool call. `arguments` is what the model wrote; `result` is what it got to read.

    `result` is None while the call runs and where it was never made. `result_chars` is the
    length of the whole result, also where `result` was cut. `not_recorded` is a call that a
    recorded session did not make, so that there is no result to give.
    """

    id: str
    name: str
    arguments: str
    result: str | None = None
    result_chars: int = 0
    is_error: bool = False
    not_recorded: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Turn:
    """One call of the model and the tool calls that it asked for. `usage` is None if unknown."""

    number: int
    started_at: str
    seconds: float = 0.0
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    usage: Usage | None = None
    retries: int = 0
    proxy_request_id: str | None = None
    proxy_warning: str | None = None


@dataclass(slots=True)
class Transcript:
    """A session's course. `path` is where `save` puts it; without one `save` does nothing.

    `answers` has one for each question of a recorded session that is asked again.
    """

    settings: SessionSettings
    path: Path | None
    started_at: str
    status: Status = "running"
    answers: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    provenance: Provenance = field(default_factory=Provenance)
    notes: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    system_prompt: str | None = None
    system_prompt_source: str | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """The last answer, if the session got to one."""
        return self.answers[-1] if self.answers and self.status == "answered" else ""

    @property
    def usage(self) -> Usage:
        return sum((turn.usage for turn in self.turns if turn.usage), Usage())

    @property
    def tool_call_count(self) -> int:
        return sum(call.result is not None for turn in self.turns for call in turn.tool_calls)

    def summary(self) -> dict[str, Any]:
        """The outcome in one flat object, for scripts."""
        return {
            "status": self.status,
            "answer": self.answer,
            "answers": self.answers,
            "error": self.error,
            "session_id": self.settings.session_id,
            "origin": self.settings.origin,
            "model": self.settings.model,
            "trial": self.settings.trial,
            "question": self.settings.question,
            "turns": len(self.turns),
            "tool_calls": self.tool_call_count,
            "not_recorded": sum(call.not_recorded for t in self.turns for call in t.tool_calls),
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "total_tokens": self.usage.total_tokens,
            "seconds": round(self.seconds, 3),
            "started_at": self.started_at,
        }

    def as_json(self) -> dict[str, Any]:
        """The whole record; documented in docs/agent-runner.md. It holds no key."""
        settings = self.settings
        return {
            "format": FORMAT,
            "status": self.status,
            "question": settings.question,
            "answer": self.answer,
            "answers": self.answers,
            "error": self.error,
            "session_id": settings.session_id,
            "origin": settings.origin,
            "model": settings.model,
            "proxy_url": public_url(settings.proxy_url),
            "tool_server": settings.tool_server,
            "recorded_session": settings.recording.session_id if settings.recording else None,
            "provenance": asdict(self.provenance),
            "notes": self.notes,
            "tools": self.tools,
            "system_prompt": self.system_prompt,
            "system_prompt_source": self.system_prompt_source,
            "enable_thinking": settings.enable_thinking,
            "temperature": settings.temperature,
            "stream": settings.stream,
            "max_turns": settings.max_turns,
            "started_at": self.started_at,
            "seconds": round(self.seconds, 3),
            "usage": asdict(self.usage),
            "turns": [asdict(turn) for turn in self.turns],
        }

    def save(self) -> None:
        """Write the record, whole or not at all. Raises OSError."""
        if self.path is not None:
            write_whole(self.path, json.dumps(self.as_json(), ensure_ascii=False, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that no reader and no crash ever sees half of it; it is the owner's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def now() -> str:
    """The present time in UTC, ISO 8601 with milliseconds, as in the proxy's log."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
