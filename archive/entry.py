"""The log entry: one typed definition for every row of every kind.

From `LogEntry` come the order of the JSON fields, the published JSON Schema, the field table and
the typed view of LOGGING.md, and what is left of a row under ``LOG_CAPTURE=metadata``. Every row
has every field, in this order, behind the queue_id and seq that the queue puts in front; what
does not apply is null. So any mix of objects reads as one table.
"""

from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

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
InMetadata = Literal["kept", "name", "site", "hash", "null"]
"""What is left of a field where no text may be stored: all of it; a value that is a plain name;
scheme and host of a URL; a keyed hash; nothing. See `open_llm_proxy.server.entries.capture`."""


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool gave back, as the client sent it on."""

    tool_call_id: str | None
    content: str | None


class LoggedToolCall(msgspec.Struct, frozen=True):
    """A call of a tool that the model asked for; `arguments` is JSON in a string."""

    id: str | None
    name: str | None
    arguments: str | None


def _about(text: str, in_metadata: InMetadata = "null") -> msgspec.Meta:
    return msgspec.Meta(description=text, extra={"in_metadata": in_metadata})


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Identity stands in the rows of all calls, the question's fields in request rows
    only, the answer's in response rows only. Where a system prompt is a row of its own, its hash
    stands in `system_sha256` and its text in `content`; a damaged row has an `error`."""

    timestamp: Annotated[
        str | None,
        _about(
            "when the row was made: UTC, ISO 8601, milliseconds, `Z`; decides its object", "kept"
        ),
    ] = None
    type: Annotated[RowType, _about("`request`, `response`, `system_prompt` or `damaged`", "kept")]
    request_id: Annotated[
        str | None,
        _about("ties the two rows of a call together; the answer's `X-Proxy-Request-Id`", "kept"),
    ] = None
    session_id: Annotated[str | None, _about("`X-Session-Id`, else the body's `user`", "hash")] = (
        None
    )
    origin: Annotated[str | None, _about("the browser's `Origin`, else `Referer`", "site")] = None
    client: Annotated[str | None, _about("`X-Client`", "name")] = None
    key_name: Annotated[
        str | None, _about("name of the proxy key that was used, never the key", "kept")
    ] = None
    provider: Annotated[str | None, _about("provider that the call was routed to", "kept")] = None
    model: Annotated[str | None, _about("model as the client named it", "name")] = None
    endpoint: Annotated[
        str | None, _about("route that was called, such as `/v1/chat/completions`", "kept")
    ] = None
    stream: Annotated[bool | None, _about("whether a stream was asked for", "kept")] = None
    retry_count: Annotated[
        int | None, _about("`X-Stainless-Retry-Count`: which retry of the SDK this was", "kept")
    ] = None
    proxy_version: Annotated[
        str | None, _about("version of the proxy that made the row", "kept")
    ] = None
    config_sha256: Annotated[str | None, _about("hash of its config.json", "kept")] = None
    instance: Annotated[
        str | None, _about("pod (`POD_NAME`) or host that made the row", "kept")
    ] = None

    enable_thinking: Annotated[bool | None, _about("the client's flag", "kept")] = None
    thinking_applied: Annotated[
        bool | None, _about("whether the model has a parameter for the flag", "kept")
    ] = None
    message_count: Annotated[int | None, _about("messages in the request", "kept")] = None
    tools_count: Annotated[int | None, _about("tools offered to the model", "kept")] = None
    user_question: Annotated[str | None, _about("first user message")] = None
    user_message_this_turn: Annotated[str | None, _about("last user message")] = None
    tool_results_this_turn: Annotated[
        list[ToolResult] | None, _about("what tools gave back since the model last spoke")
    ] = None
    system_sha256: Annotated[
        str | None, _about("SHA-256 of the system messages' text; of a `system_prompt` row's own")
    ] = None
    messages_json: Annotated[
        str | None, _about("all messages as JSON in a string (capture `full` only)")
    ] = None

    outcome: Annotated[Outcome | None, _about("how the call ended, see below", "kept")] = None
    deadline: Annotated[
        str | None, _about("which time-out fired: `connect`, `idle` or `total`", "kept")
    ] = None
    status: Annotated[int | None, _about("HTTP status of the answer", "kept")] = None
    latency_ms: Annotated[int | None, _about("from the request's arrival to this row", "kept")] = (
        None
    )
    ttft_ms: Annotated[
        int | None, _about("streams: from the request's arrival to the first content", "kept")
    ] = None
    has_content: Annotated[bool | None, _about("whether there is text", "kept")] = None
    has_tool_calls: Annotated[bool | None, _about("whether the model called tools", "kept")] = None
    has_reasoning_content: Annotated[bool | None, _about("whether there is reasoning", "kept")] = (
        None
    )
    content: Annotated[
        str | None, _about("text of the answer, as far as it arrived; of a `system_prompt` row, it")
    ] = None
    content_preview: Annotated[str | None, _about("its first 200 characters")] = None
    reasoning_content: Annotated[
        str | None, _about("the model's reasoning, under whichever name it was sent")
    ] = None
    tool_calls: Annotated[
        list[LoggedToolCall] | None, _about("tools that the model called, with their arguments")
    ] = None
    finish_reason: Annotated[str | None, _about("why the model stopped", "name")] = None
    prompt_tokens: Annotated[int | None, _about("tokens of the prompt", "kept")] = None
    completion_tokens: Annotated[int | None, _about("tokens of the answer", "kept")] = None
    total_tokens: Annotated[int | None, _about("both", "kept")] = None
    cached_tokens: Annotated[
        int | None, _about("prompt tokens that came from the provider's cache", "kept")
    ] = None
    reasoning_tokens: Annotated[
        int | None, _about("completion tokens that were reasoning", "kept")
    ] = None
    usage_json: Annotated[
        str | None, _about("the provider's whole usage object, as JSON in a string")
    ] = None
    error: Annotated[str | None, _about("what went wrong, up to 4,096 characters")] = None
    upstream_headers_json: Annotated[
        str | None, _about("allow-listed headers of a provider's error, as JSON in a string")
    ] = None
    upstream_request_id: Annotated[
        str | None, _about("the provider's own id of the call", "name")
    ] = None


def _fields_from(first: str, last: str) -> tuple[str, ...]:
    names = LogEntry.__struct_fields__
    return names[names.index(first) : names.index(last) + 1]


QUESTION_FIELDS = _fields_from("enable_thinking", "messages_json")
ANSWER_FIELDS = _fields_from("outcome", "upstream_request_id")


def described_fields() -> list[tuple[str, Any, msgspec.Meta]]:
    """Every field in order: its name, its type without None, and what is said of it."""
    described = []
    for name, hint in get_type_hints(LogEntry, include_extras=True).items():
        annotation, meta = get_args(hint)
        is_union = get_origin(annotation) in (Union, UnionType)
        kind = get_args(annotation)[0] if is_union else annotation
        described.append((name, str if get_origin(kind) is Literal else kind, meta))
    return described


def in_metadata(meta: msgspec.Meta) -> InMetadata:
    """What is left of a field under ``LOG_CAPTURE=metadata``."""
    rule: InMetadata = (meta.extra or {})["in_metadata"]
    return rule


def iso_timestamp(timestamp_ms: int) -> str:
    """UTC, ISO 8601, milliseconds, ``Z``."""
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{timestamp_ms % 1000:03d}Z"
