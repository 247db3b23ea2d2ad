"""What one session is asked to do, and what a user's input may get wrong.

`SessionSettings` is the whole description of a session: with an equal one, an equal
conversation starts. It is built by `options` from the command line, and by `matrix` once for
each cell of a grid.
"""

import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from .recording import Recording

MAX_NAME_CHARS = 200
MAX_FILE_NAME_CHARS = 60
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class InputError(Exception):
    """Something the user gave cannot be used; the message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """The text of a system prompt and where it came from: a path, a URL or "mcp server"."""

    text: str
    source: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """One session. `mcp_command`, where given, is run instead of connecting to `mcp_url`.

    With a `recording` its questions are asked, and `live_tools` says whether tools are called or
    recorded results given. `trial` counts the repetitions of what is otherwise equal.
    """

    question: str
    model: str
    proxy_url: str
    api_key: str = field(repr=False)
    mcp_url: str
    mcp_command: tuple[str, ...] | None
    session_id: str
    origin: str
    system_prompt: SystemPrompt | None
    max_turns: int
    enable_thinking: bool | None
    temperature: float | None
    timeout_seconds: float
    tool_timeout_seconds: float
    max_result_chars: int
    stream: bool
    recording: "Recording | None" = field(default=None, repr=False)
    live_tools: bool = True
    trial: int = 1

    @property
    def tool_server(self) -> str:
        """The MCP server's name for people and files: its URL or its program, without secrets."""
        if not self.live_tools:
            return "recorded results"
        return self.mcp_command[0] if self.mcp_command else public_url(self.mcp_url)

    def fingerprint(self) -> str:
        """16 hex that are equal for two sessions whose answers can be compared.

        Identity (session, origin) and waiting times do not count: they change no answer.
        """
        asked: dict[str, Any] = {
            "question": self.question,
            "model": self.model,
            "proxy_url": public_url(self.proxy_url),
            "tool_server": self.mcp_command or self.mcp_url,
            "system_prompt": self.system_prompt.sha256 if self.system_prompt else None,
            "max_turns": self.max_turns,
            "enable_thinking": self.enable_thinking,
            "temperature": self.temperature,
            "max_result_chars": self.max_result_chars,
        }
        if self.recording is not None:
            asked |= {"recording": self.recording.sha256, "live_tools": self.live_tools}
        if self.trial > 1:
            asked["trial"] = self.trial
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def new_session_id() -> str:
    """A session id that no other run has, and that a person can find again in the log."""
    return f"agent-{secrets.token_hex(8)}"


def header_value(text: str, option: str) -> str:
    """`text` as an HTTP header's value (RFC 9110, section 5.5: visible ASCII and spaces)."""
    text = text.strip()
    if not re.fullmatch(r"[\x20-\x7e]+", text):
        raise InputError(f"{option} must be plain ASCII text on one line, and not empty.")
    return text


def tag(text: str, option: str) -> str:
    """`text` as a session id or origin: a header's value of bounded length."""
    if len(text) > MAX_NAME_CHARS:
        raise InputError(f"{option} is longer than {MAX_NAME_CHARS} characters.")
    return header_value(text, option)


def http_url(text: str, option: str) -> str:
    """`text` if it is an absolute http or https URL."""
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises on a port that is no number
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"{option} must be a URL that starts with http:// or https://.")
    return text.strip()


def public_url(url: str) -> str:
    """`url` without user, password, query and fragment: fit for files and screens."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def file_name(text: str) -> str:
    """`text` in letters, digits, dots, dashes and underscores, short enough for a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:MAX_FILE_NAME_CHARS] or "x"


def valid_text(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 request can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shown(text: str) -> str:
    """`text` with tabs and line ends, but nothing else that steers a terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
