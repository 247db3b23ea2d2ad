"""The log entry, format 2: one typed definition for every row and for the head of an object.

From the structs below come the order of the fields, the published JSON Schema, the field table and
the typed view of LOGGING.md, and what is left of a row under ``LOG_CAPTURE=metadata``.

Rows are sparse: a field without a value is left out. The first line of each object is its head, a
row of type `schema` that has every field, so that readers which infer types from what they sample
see each column's type in every object, and no value has to be disguised. The queue puts queue_id
and seq in front of every row and knows nothing of what follows.
"""

from datetime import UTC, datetime
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

FORMAT = 2

RowType = Literal["schema", "request", "response", "text", "damaged"]
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
scheme and host of a URL; a keyed hash; nothing."""


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool gave back, as the client sent it on."""

    tool_call_id: str | None
    content: str | None


class LoggedToolCall(msgspec.Struct, frozen=True):
    """A call of a tool that the model asked for; `arguments` is JSON in a string."""

    id: str | None
    name: str | None
    arguments: str | None


class _Unset:
    """Says that a field has its type's usual value in heads."""


def _about(text: str, in_metadata: InMetadata = "null", in_head: object = _Unset) -> msgspec.Meta:
    """Describe a field; `in_head` is its value in heads, where its type does not say it already.

    Texts are "-" there, and what is no text is null, but for numbers that people add up, which are
    0, and flags that seldom occur, which are false.
    """
    return msgspec.Meta(description=text, extra={"in_metadata": in_metadata, "in_head": in_head})


class StartFields(msgspec.Struct, frozen=True):
    """What every row begins with."""

    timestamp: Annotated[
        str,
        _about(
            "when the row was made: UTC, ISO 8601, milliseconds, `Z`; decides its object", "kept"
        ),
    ]
    type: Annotated[RowType, _about("`request`, `response`, `text`, `damaged` or `schema`", "kept")]


class IdentityFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Whose call a row is of, and what made it; both rows of a call have the same."""

    request_id: Annotated[
        str | None,
        _about(
            "ties the two rows of a call together; the answer's `X-Proxy-Request-Id`", "kept", None
        ),
    ] = None
    session_id: Annotated[
        str | None,
        _about("`X-Session-Id`, else the body's `session_id`, else its `user`", "hash"),
    ] = None
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
        int | None, _about("`X-Stainless-Retry-Count`: which retry of the SDK this was", "kept", 0)
    ] = None
    proxy_version: Annotated[
        str | None, _about("version of the proxy that made the row", "kept")
    ] = None
    config_sha256: Annotated[str | None, _about("hash of its config.json", "kept")] = None
    instance: Annotated[
        str | None, _about("pod (`POD_NAME`) or host that made the row", "kept")
    ] = None


class TextFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The name of a text that is a row of its own; the text is in `content`."""

    text_sha256: Annotated[str | None, _about("`text` rows: SHA-256 of the text in `content`")] = (
        None
    )


class RequestFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a request row says of the client's request."""

    request_bytes: Annotated[int | None, _about("size of the client's body", "kept")] = None
    enable_thinking: Annotated[bool | None, _about("the client's flag", "kept", False)] = None
    thinking_applied: Annotated[
        bool | None, _about("whether the model has a parameter for the flag", "kept", False)
    ] = None
    message_count: Annotated[int | None, _about("messages in the request", "kept")] = None
    tools_count: Annotated[int | None, _about("tools offered to the model", "kept")] = None
    user_question: Annotated[str | None, _about("first user message")] = None
    user_message_this_turn: Annotated[str | None, _about("last user message")] = None
    tool_results_this_turn: Annotated[
        list[ToolResult] | None, _about("what tools gave back since the model last spoke")
    ] = None
    system_sha256: Annotated[str | None, _about("SHA-256 of the system messages' text")] = None
    tools_sha256: Annotated[
        str | None, _about("SHA-256 of the list of tools, which is a `text` row (capture `full`)")
    ] = None
    previous_response_id: Annotated[
        str | None, _about("Responses API: the answer that the request goes on from", "name")
    ] = None
    messages_json: Annotated[
        str | None, _about("all messages, or the prompt or input, as JSON (capture `full` only)")
    ] = None
    params_json: Annotated[
        str | None,
        _about("all else of the body but model and tools, as JSON (capture `full` only)"),
    ] = None


class ResponseFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a response row says: how the call ended and what the model answered."""

    outcome: Annotated[Outcome | None, _about("how the call ended, see below", "kept")] = None
    deadline: Annotated[
        str | None, _about("which time-out fired: `connect`, `idle` or `total`", "kept")
    ] = None
    status: Annotated[int | None, _about("HTTP status of the answer", "kept")] = None
    latency_ms: Annotated[int | None, _about("from the request's arrival to this row", "kept")] = (
        None
    )
    ttft_ms: Annotated[
        int | None,
        _about(
            "from the request's arrival to the first content, or the first byte of a whole answer",
            "kept",
        ),
    ] = None
    response_bytes: Annotated[
        int | None, _about("size of the provider's body, as far as it arrived", "kept")
    ] = None
    has_content: Annotated[bool | None, _about("whether there is text", "kept")] = None
    has_tool_calls: Annotated[bool | None, _about("whether the model called tools", "kept")] = None
    has_reasoning_content: Annotated[bool | None, _about("whether there is reasoning", "kept")] = (
        None
    )
    content: Annotated[
        str | None, _about("text of the answer, as far as it arrived; of a `text` row, the text")
    ] = None
    content_preview: Annotated[str | None, _about("its first 200 characters")] = None
    reasoning_content: Annotated[
        str | None, _about("the model's reasoning, under whichever name it was sent")
    ] = None
    tool_calls: Annotated[
        list[LoggedToolCall] | None, _about("tools that the model called, with their arguments")
    ] = None
    finish_reason: Annotated[str | None, _about("why the model stopped", "name")] = None
    prompt_tokens: Annotated[int | None, _about("tokens of the prompt", "kept", 0)] = None
    completion_tokens: Annotated[int | None, _about("tokens of the answer", "kept", 0)] = None
    total_tokens: Annotated[int | None, _about("both", "kept", 0)] = None
    cached_tokens: Annotated[
        int | None, _about("prompt tokens that came from the provider's cache", "kept", 0)
    ] = None
    reasoning_tokens: Annotated[
        int | None, _about("completion tokens that were reasoning", "kept", 0)
    ] = None
    cost_usd: Annotated[
        float | None, _about("cost that the provider reported, `usage.cost`", "kept", 0.0)
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
    response_id: Annotated[str | None, _about("the provider's id of the answer", "name")] = None
    upstream_connects: Annotated[
        int | None,
        _about(
            "connections tried for it; 0: a kept one was used; over 1: the others failed", "kept"
        ),
    ] = None
    upstream_attempts: Annotated[
        int | None,
        _about(
            "how often it was sent: 0 without a connection, 2 after a kept one had ended", "kept"
        ),
    ] = None
    proxy_warning: Annotated[
        str | None, _about("what the proxy left out or changed, as told in `X-Proxy-Warning`")
    ] = None


REQUEST_FIELDS = RequestFields.__struct_fields__
RESPONSE_FIELDS = ResponseFields.__struct_fields__
Part = IdentityFields | TextFields | RequestFields | ResponseFields
PARTS = (StartFields, IdentityFields, TextFields, RequestFields, ResponseFields)
"""A row's fields in their order; each row has those of some of these."""

INTERRUPTED_TAIL = (
    b',"outcome":"interrupted",'
    b'"error":"the process that made this call ended before it was finished"}'
)
"""The end of the row that closes the call of a dead process; `row_start` and the call's identity
stand before it."""


def described_fields() -> list[tuple[str, Any, msgspec.Meta]]:
    """Every field in order: its name, its type without None, and what is said of it."""
    described = []
    for part in PARTS:
        for name, hint in get_type_hints(part, include_extras=True).items():
            annotation, meta = get_args(hint)
            is_union = get_origin(annotation) in (Union, UnionType)
            kind = get_args(annotation)[0] if is_union else annotation
            described.append((name, str if get_origin(kind) is Literal else kind, meta))
    return described


def in_metadata(meta: msgspec.Meta) -> InMetadata:
    """What is left of a field under ``LOG_CAPTURE=metadata``."""
    rule: InMetadata = (meta.extra or {})["in_metadata"]
    return rule


def head_body() -> bytes:
    """The head of an object as the queue is given it: JSON without queue_id, seq and timestamp."""
    columns: dict[str, Any] = {"type": "schema", "format": FORMAT}
    for name, kind, meta in described_fields():
        if name not in StartFields.__struct_fields__:
            columns[name] = _in_head(kind, meta)
    return msgspec.json.encode(columns)


def head_line(queue_id: str, timestamp_ms: int) -> bytes:
    """The first line of an object, as the queue makes it of `head_body`."""
    start = msgspec.json.encode(
        {"queue_id": queue_id, "seq": None, "timestamp": iso_timestamp(timestamp_ms)}
    )
    return start[:-1] + b"," + head_body()[1:] + b"\n"


@lru_cache(maxsize=16)
def row_start(timestamp_ms: int, kind: RowType) -> bytes:
    """The beginning of a row, made once for all rows of a millisecond that are of one type.

    queue_id and seq come in front of it, and the row's other fields follow behind commas.
    """
    return f'{{"timestamp":"{iso_timestamp(timestamp_ms)}","type":"{kind}"'.encode()


def iso_timestamp(timestamp_ms: int) -> str:
    """UTC, ISO 8601, milliseconds, ``Z``."""
    return f"{_iso_second(timestamp_ms // 1000)}.{timestamp_ms % 1000:03d}Z"


@lru_cache(maxsize=16)
def _iso_second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _in_head(kind: Any, meta: msgspec.Meta) -> object:
    value: object = (meta.extra or {})["in_head"]
    if value is not _Unset:
        return value
    if kind is str:
        return "-"
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [dict.fromkeys(item.__struct_fields__, "-")]
    return None
