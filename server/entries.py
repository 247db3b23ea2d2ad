"""The log entry: one typed definition for every row of every kind.

From `LogEntry` come the order of the JSON fields, the published schema and the field table of
LOGGING.md. Every row has every field, in this order, behind the queue_id and seq that the queue
puts in front; what does not apply is null. So any mix of objects reads as one table.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args, get_type_hints

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


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Identity stands in all rows, the question's fields in request rows only, the
    answer's in response rows only."""

    timestamp: Annotated[
        str | None,
        _about("when the row was made: UTC, ISO 8601, milliseconds, `Z`; decides its object"),
    ] = None
    type: Annotated[RowType, _about("`request`, `response`, `system_prompt` or `damaged`")]
    request_id: Annotated[
        str | None,
        _about("ties the two rows of a call together; the answer's `X-Proxy-Request-Id`"),
    ] = None
    session_id: Annotated[str | None, _about("`X-Session-Id`, else the body's `user`")] = None
    origin: Annotated[str | None, _about("the browser's `Origin`, else `Referer`")] = None
    client: Annotated[str | None, _about("`X-Client`")] = None
    key_name: Annotated[
        str | None, _about("name of the proxy key that was used, never the key")
    ] = None
    provider: Annotated[str | None, _about("provider that the call was routed to")] = None
    model: Annotated[str | None, _about("model as the client named it")] = None
    endpoint: Annotated[
        str | None, _about("route that was called, such as `/v1/chat/completions`")
    ] = None
    stream: Annotated[bool | None, _about("whether a stream was asked for")] = None
    retry_count: Annotated[
        int | None, _about("`X-Stainless-Retry-Count`: which retry of the SDK this was")
    ] = None
    proxy_version: Annotated[str | None, _about("version of the proxy that made the row")] = None
    config_sha256: Annotated[str | None, _about("hash of its config.json")] = None
    instance: Annotated[str | None, _about("pod (`POD_NAME`) or host that made the row")] = None

    enable_thinking: Annotated[bool | None, _about("the client's flag")] = None
    thinking_applied: Annotated[
        bool | None, _about("whether the model has a parameter for the flag")
    ] = None
    message_count: Annotated[int | None, _about("messages in the request")] = None
    tools_count: Annotated[int | None, _about("tools offered to the model")] = None
    user_question: Annotated[str | None, _about("first user message")] = None
    user_message_this_turn: Annotated[str | None, _about("last user message")] = None
    tool_results_this_turn: Annotated[
        list[ToolResult] | None, _about("what tools gave back since the model last spoke")
    ] = None
    system_sha256: Annotated[str | None, _about("hash of the system messages' text")] = None
    messages_json: Annotated[
        str | None, _about("all messages as JSON in a string (capture `full` only)")
    ] = None

    outcome: Annotated[Outcome | None, _about("how the call ended, see below")] = None
    deadline: Annotated[
        str | None, _about("which time-out fired: `connect`, `idle` or `total`")
    ] = None
    status: Annotated[int | None, _about("HTTP status of the answer")] = None
    latency_ms: Annotated[int | None, _about("from the request's arrival to this row")] = None
    ttft_ms: Annotated[
        int | None, _about("streams: from the request's arrival to the first content")
    ] = None
    has_content: Annotated[bool | None, _about("whether there is text")] = None
    has_tool_calls: Annotated[bool | None, _about("whether the model called tools")] = None
    has_reasoning_content: Annotated[bool | None, _about("whether there is reasoning")] = None
    content: Annotated[str | None, _about("text of the answer, as far as it arrived")] = None
    content_preview: Annotated[str | None, _about("its first 200 characters")] = None
    reasoning_content: Annotated[
        str | None, _about("the model's reasoning, under whichever name it was sent")
    ] = None
    tool_calls: Annotated[
        list[LoggedToolCall] | None, _about("tools that the model called, with their arguments")
    ] = None
    finish_reason: Annotated[str | None, _about("why the model stopped")] = None
    prompt_tokens: Annotated[int | None, _about("tokens of the prompt")] = None
    completion_tokens: Annotated[int | None, _about("tokens of the answer")] = None
    total_tokens: Annotated[int | None, _about("both")] = None
    cached_tokens: Annotated[
        int | None, _about("prompt tokens that came from the provider's cache")
    ] = None
    reasoning_tokens: Annotated[int | None, _about("completion tokens that were reasoning")] = None
    usage_json: Annotated[
        str | None, _about("the provider's whole usage object, as JSON in a string")
    ] = None
    error: Annotated[str | None, _about("what went wrong, up to 4,096 characters")] = None
    upstream_headers_json: Annotated[
        str | None, _about("allow-listed headers of a provider's error, as JSON in a string")
    ] = None
    upstream_request_id: Annotated[str | None, _about("the provider's own id of the call")] = None


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


def field_table() -> str:
    """The fields in their order as a Markdown table, for LOGGING.md."""
    rows = [
        ("queue_id", "string", "queue that stored the row: 16 hex digits"),
        ("seq", "integer", "1, 2, 3 … without a gap in each queue"),
    ]
    for name, hint in get_type_hints(LogEntry, include_extras=True).items():
        kind, meta = get_args(hint)
        rows.append((name, _kind_name(kind), meta.description))
    lines = [f"| `{name}` | {kind} | {text} |" for name, kind, text in rows]
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *lines])


def _kind_name(kind: object) -> str:
    """The JSON type of a field's annotation, in words."""
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    names = {str: "string", int: "integer", bool: "boolean"}
    names |= {list[ToolResult]: "list of {tool_call_id, content}"}
    names |= {list[LoggedToolCall]: "list of {id, name, arguments}"}
    return names.get(kinds[0], "string")  # type: ignore[call-overload,no-any-return]
