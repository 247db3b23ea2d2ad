"""What a request row says about the question: counts, the user's words, tools' results.

Everything here reads a client's body that nobody has checked: lists that are no lists, content
of odd types. What is understood is logged, what is not is left out, and nothing raises.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from open_llm_proxy.server.content_parts import content_text
from open_llm_proxy.server.entries import ToolResult
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.redact import Redactor


@dataclass(frozen=True, slots=True)
class Question:
    """The question's fields of a request row, redacted."""

    message_count: int | None = None
    tools_count: int | None = None
    user_question: str | None = None
    user_message_this_turn: str | None = None
    tool_results_this_turn: list[ToolResult] | None = None
    system_sha256: str | None = None


def read_question(fields: dict[str, Any], redactor: Redactor) -> Question:
    """Read the question from a decoded body of any of the relayed endpoints."""
    messages = _messages(fields)
    tools = fields.get("tools")
    asked = [text for m in messages if m.get("role") == "user" and (text := _text(m, redactor))]
    return Question(
        message_count=len(messages) if messages else None,
        tools_count=len(tools) if isinstance(tools, list) else 0,
        user_question=asked[0] if asked else None,
        user_message_this_turn=asked[-1] if asked else None,
        tool_results_this_turn=_tool_results(messages, redactor) or None,
        system_sha256=_system_sha256(messages, redactor),
    )


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat; a prompt or input of the other endpoints as one user message."""
    for name in ("messages", "input", "prompt"):
        value = fields.get(name)
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if isinstance(value, list) and value:
            messages = [item for item in value if isinstance(item, dict)]
            return messages or [{"role": "user", "content": value}]
    return []


def _text(message: dict[str, Any], redactor: Redactor) -> str | None:
    text = content_text(message.get("content"))
    return redactor.text(text) if text else None


def _tool_results(messages: list[dict[str, Any]], redactor: Redactor) -> list[ToolResult]:
    """What tools gave back since the model last spoke."""
    results: list[ToolResult] = []
    for message in reversed(messages):
        if message.get("role") == "assistant" or message.get("type") == "function_call":
            break
        if message.get("role") == "tool":
            call_id, content = message.get("tool_call_id"), _text(message, redactor)
        elif message.get("type") == "function_call_output":
            call_id, output = message.get("call_id"), message.get("output")
            content = redactor.text(output if isinstance(output, str) else encode_json(output))
        else:
            continue
        results.append(ToolResult(None if call_id is None else str(call_id), content))
    return results[::-1]


def _system_sha256(messages: list[dict[str, Any]], redactor: Redactor) -> str | None:
    """The hash of the system messages as they would be stored, joined by blank lines."""
    texts = [
        text
        for message in messages
        if message.get("role") in ("system", "developer") and (text := _text(message, redactor))
    ]
    if not texts:
        return None
    return hashlib.sha256("\n\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
