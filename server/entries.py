"""The log entry: one typed definition for every row of every kind.

From `LogEntry` come the order of the JSON fields, the published schema and the field table of
LOGGING.md. Every row has every field, in this order, behind the queue_id and seq that the queue
puts in front; what does not apply is null. So any mix of objects reads as one table.
"""

import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from open_llm_proxy.queue.entry import Entry

RowType = Literal["request", "response", "system_prompt", "damaged"]
Outcome = Literal[
    "ok",
    "upstream_error",
    "upstream_unreachable",
    "upstream_timeout",
    "client_disconnected",
    "rejected",
    "interrupted",
]


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool gave back, as the client sent it on."""

    tool_call_id: str | None
    content: str | None


class LoggedToolCall(msgspec.Struct, frozen=True):
    """A call of a tool that the model asked for; `arguments` is JSON in a string."""

    id: str | None
    name: str | None
    arguments: str | None


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Identity stands in all rows, the question's fields in request rows only, the
    answer's in response rows only."""

    timestamp: str | None = None
    type: RowType
    request_id: str | None = None
    session_id: str | None = None
    origin: str | None = None
    client: str | None = None
    key_name: str | None = None
    provider: str | None = None
    model: str | None = None
    endpoint: str | None = None
    stream: bool | None = None
    retry_count: int | None = None
    proxy_version: str | None = None
    config_sha256: str | None = None
    instance: str | None = None

    enable_thinking: bool | None = None
    thinking_applied: bool | None = None
    message_count: int | None = None
    tools_count: int | None = None
    user_question: str | None = None
    user_message_this_turn: str | None = None
    tool_results_this_turn: list[ToolResult] | None = None
    system_sha256: str | None = None
    messages_json: str | None = None

    outcome: Outcome | None = None
    deadline: str | None = None
    status: int | None = None
    latency_ms: int | None = None
    ttft_ms: int | None = None
    has_content: bool | None = None
    has_tool_calls: bool | None = None
    has_reasoning_content: bool | None = None
    content: str | None = None
    content_preview: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[LoggedToolCall] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_json: str | None = None
    error: str | None = None
    upstream_headers_json: str | None = None
    upstream_request_id: str | None = None


_LOOKS_TYPED = re.compile(
    r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}|\{[0-9a-fA-F-]{32,36}\}"
    r"|\d{1,6}[-/:.]\d{1,2}([-/:.].*)?",
    re.DOTALL,
)
_UNWRITABLE = re.compile("[\ud800-\udfff\0]")


def encode(entry: LogEntry, timestamp_ms: int) -> Entry:
    """The entry as the queue takes it: one line of JSON without its queue_id and seq.

    Text that JSON cannot carry to every reader never stops an entry: a lone surrogate becomes
    its six-character escape as literal text, and so does NUL.
    """
    try:
        body = msgspec.json.encode(entry)
        if b"\\u0000" in body:
            body = msgspec.json.encode(_writable(msgspec.to_builtins(entry)))
    except UnicodeEncodeError:
        body = msgspec.json.encode(_writable(msgspec.structs.asdict(entry)))
    return Entry(body, timestamp_ms)


def outside_id(value: str | None) -> str | None:
    """An id from outside, marked with ``id:`` where DuckDB could take it for a UUID or a date.

    DuckDB types a column by the first files it samples, and a later id of another shape would
    then make the whole query fail.
    """
    if value is not None and _LOOKS_TYPED.fullmatch(value.strip()):
        return f"id:{value}"
    return value


def iso_timestamp(timestamp_ms: int) -> str:
    """UTC, ISO 8601, milliseconds, ``Z``."""
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{timestamp_ms % 1000:03d}Z"


def _writable(value: object) -> object:
    if isinstance(value, str):
        return _UNWRITABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {name: _writable(item) for name, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return _writable(msgspec.structs.asdict(value))
    return value
