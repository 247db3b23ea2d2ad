"""The contract of the log, format 2, repeated here on purpose.

The product has its own list; a change of the product alone must not change what tests check. A
row has the fields that have a value, in this order, and a missing field is null: tests read rows
by `read_row`, which fills them in. The request's fields are missing in response rows and the other
way round; identity and routing fields stand in both. The first line of an object is its head.
"""

import json
from collections.abc import Iterable
from typing import Any

FORMAT = 2
IDENTITY_FIELDS = (
    "session_id", "origin", "client", "key_name", "provider", "model", "endpoint", "stream",
    "retry_count", "proxy_version", "config_sha256", "instance",
)  # fmt: skip
REQUEST_FIELDS = (
    "request_bytes", "enable_thinking", "thinking_applied", "message_count", "tools_count",
    "user_question", "user_message_this_turn", "tool_results_this_turn", "system_sha256",
    "tools_sha256", "previous_response_id", "messages_json", "params_json",
)  # fmt: skip
RESPONSE_FIELDS = (
    "outcome", "deadline", "status", "latency_ms", "ttft_ms", "response_bytes", "has_content",
    "has_tool_calls", "has_reasoning_content", "content", "content_preview", "reasoning_content",
    "tool_calls", "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens",
    "cached_tokens", "reasoning_tokens", "cost_usd", "usage_json", "error",
    "upstream_headers_json", "upstream_request_id", "response_id", "upstream_connects",
    "upstream_attempts", "proxy_warning",
)  # fmt: skip
FIELDS = (
    "queue_id", "seq", "timestamp", "type", "request_id",
    *IDENTITY_FIELDS, "text_sha256", *REQUEST_FIELDS, *RESPONSE_FIELDS,
)  # fmt: skip
TYPES = ("request", "response", "text", "damaged")
OUTCOMES = (
    "ok", "upstream_error", "upstream_unreachable", "upstream_timeout", "client_disconnected",
    "rejected", "interrupted",
)  # fmt: skip
IN_EVERY_ROW = ("timestamp", "type", "proxy_version", "config_sha256", "instance")
IN_EVERY_CALL = ("request_id", "key_name", "endpoint")
MAX_LINE_BYTES = 8 * 1024 * 1024
# Below a share of 10 % on average DuckDB would make one MAP of all columns.
LEAST_FIELDS = 0.15

ZERO_IN_HEADS = (
    "retry_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens",
    "reasoning_tokens",
)  # fmt: skip
FALSE_IN_HEADS = ("enable_thinking", "thinking_applied")
NULL_IN_HEADS = (
    "seq", "request_id", "stream", "request_bytes", "message_count", "tools_count", "status",
    "latency_ms", "ttft_ms", "response_bytes", "has_content", "has_tool_calls",
    "has_reasoning_content", "upstream_connects", "upstream_attempts",
)  # fmt: skip
LISTS_IN_HEADS = {
    "tool_results_this_turn": [{"tool_call_id": "-", "content": "-"}],
    "tool_calls": [{"id": "-", "name": "-", "arguments": "-"}],
}

Row = dict[str, Any]


def read_row(line: bytes | str) -> Row:
    """The row of a line, with null for every field that it leaves out."""
    row: Row = json.loads(line)
    assert not broken_shape(row), broken_shape(row)
    return dict.fromkeys(FIELDS) | row


def read_rows(lines: Iterable[bytes | str]) -> list[Row]:
    """The rows of an object or of stdout, without the head."""
    rows = [json.loads(line) for line in lines]
    return [read_row(json.dumps(row)) for row in rows if row["type"] != "schema"]


def without_head(text: str) -> str:
    """The lines of an object that are rows."""
    first, _, rest = text.partition("\n")
    assert json.loads(first)["type"] == "schema"
    return rest


def broken_shape(row: Row) -> str | None:
    """What is wrong with the fields of a row as it is stored."""
    if extra := [name for name in row if name not in FIELDS]:
        return f"the fields {extra} belong to no row"
    if tuple(row) != tuple(name for name in FIELDS if name in row):
        return "the fields are in another order"
    if empty := [name for name, value in row.items() if value is None]:
        return f"the fields {empty} are null, and would be left out"
    return None


def head(queue_id: str, timestamp: str) -> Row:
    """The head of an object: every field, with values that no sum and no average notices."""
    values: Row = dict.fromkeys(FIELDS, "-")
    values |= dict.fromkeys(ZERO_IN_HEADS, 0) | dict.fromkeys(FALSE_IN_HEADS, False)
    values["cost_usd"] = 0.0
    values |= dict.fromkeys(NULL_IN_HEADS) | LISTS_IN_HEADS
    ordered: Row = {"queue_id": queue_id, "seq": None, "timestamp": timestamp}
    return (
        ordered | {"type": "schema", "format": FORMAT} | {name: values[name] for name in FIELDS[4:]}
    )
