"""The contract of a log row, repeated here on purpose.

The product has its own list; a change of the product alone must not change what tests check.
Every row has every field, in this order. The request's fields are null in the response row and
the other way round; identity and routing fields stand in both.
"""

IDENTITY_FIELDS = (
    "session_id", "origin", "client", "key_name", "provider", "model", "endpoint", "stream",
    "retry_count", "proxy_version", "config_sha256", "instance",
)  # fmt: skip
REQUEST_FIELDS = (
    "enable_thinking", "thinking_applied", "message_count", "tools_count", "user_question",
    "user_message_this_turn", "tool_results_this_turn", "system_sha256", "messages_json",
)  # fmt: skip
RESPONSE_FIELDS = (
    "outcome", "deadline", "status", "latency_ms", "ttft_ms", "has_content", "has_tool_calls",
    "has_reasoning_content", "content", "content_preview", "reasoning_content", "tool_calls",
    "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens",
    "reasoning_tokens", "usage_json", "error", "upstream_headers_json", "upstream_request_id",
)  # fmt: skip
FIELDS = (
    "queue_id", "seq", "timestamp", "type", "request_id",
    *IDENTITY_FIELDS, *REQUEST_FIELDS, *RESPONSE_FIELDS,
)  # fmt: skip
TYPES = ("request", "response", "system_prompt", "damaged")
OUTCOMES = (
    "ok", "upstream_error", "upstream_unreachable", "upstream_timeout", "client_disconnected",
    "rejected", "interrupted",
)  # fmt: skip
MAX_LINE_BYTES = 8 * 1024 * 1024
