"""An answer of the model, read from a chat completion or put together from a stream.

Answers are read as plain objects, not through the SDK's types, because providers leave fields out
and add their own. What a tool call is, and what reasoning, is decided by the same code that writes
the proxy's log (which needs nothing but the standard library), so that the agent does what the log
says of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

from open_llm_proxy.server.transcript.capped_text import Budget
from open_llm_proxy.server.transcript.content_parts import content_text
from open_llm_proxy.server.transcript.reasoning import reasoning_of
from open_llm_proxy.server.transcript.tool_calls import CallList, CallParts, CallPiece

from .settings import valid_text
from .transcript import ToolCall, Usage

MAX_ANSWER_BYTES = 64 << 20
MAX_TOOL_CALLS = 1024

PieceKind = Literal["content", "reasoning"]
OnPiece = Callable[[PieceKind, str], None]


@dataclass(slots=True)
class Reply:
    """What the model said. `usage` is None where the provider did not count."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    usage: Usage | None = None
    retries: int = 0
    proxy_request_id: str | None = None
    proxy_warning: str | None = None


class UnusableAnswer(Exception):
    """The HTTP exchange went well, but what came is no complete chat completion."""


def read_completion(answer: dict[str, Any]) -> Reply:
    """A whole chat completion. Raises UnusableAnswer."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        error = answer.get("error")
        raise UnusableAnswer(as_text(error)[:500] if error else "it has no choices")
    choice = as_dict(choices[0])
    message = as_dict(choice.get("message"))
    calls = new_calls()
    for piece in call_pieces(message):
        calls.add(None, piece)
    return Reply(
        content=as_text(message.get("content")),
        reasoning=as_text(reasoning_of(message)),
        finish_reason=choice.get("finish_reason"),
        tool_calls=tool_calls(calls),
        usage=usage_of(answer),
    )


async def read_stream(chunks: Any, on_piece: OnPiece) -> Reply:
    """A stream, put together. One that ends without a finish reason broke: UnusableAnswer."""
    reply, calls = Reply(), new_calls()
    try:
        async for chunk in chunks:
            data = as_object(chunk)
            reply.usage = usage_of(data) or reply.usage
            for choice in map(as_dict, data.get("choices") or []):
                delta = as_dict(choice.get("delta"))
                add_texts(reply, delta, on_piece)
                calls.add_delta(call_pieces(delta))
                reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
    except json.JSONDecodeError as error:
        raise UnusableAnswer("a part of the stream is no JSON") from error
    finally:
        await chunks.close()
    if reply.finish_reason is None:
        raise UnusableAnswer("the stream ended in the middle")
    reply.tool_calls = tool_calls(calls)
    return reply


def add_texts(reply: Reply, delta: dict[str, Any], on_piece: OnPiece) -> None:
    reasoning = as_text(reasoning_of(delta))
    if reasoning:
        reply.reasoning += reasoning
        on_piece("reasoning", reasoning)
    content = as_text(delta.get("content"))
    if content:
        reply.content += content
        on_piece("content", content)


def new_calls() -> CallList:
    budget, begun = Budget(MAX_ANSWER_BYTES), iter(range(MAX_TOOL_CALLS))
    return CallList(lambda: None if next(begun, None) is None else CallParts(budget))


def call_pieces(message: dict[str, Any]) -> list[CallPiece]:
    """The tool calls of a message, or the pieces of them in a delta."""
    calls = message.get("tool_calls")
    return [call_piece(as_dict(call)) for call in calls] if isinstance(calls, list) else []


def call_piece(call: dict[str, Any]) -> CallPiece:
    index, function = call.get("index"), as_dict(call.get("function"))
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # an object where the API has a string of JSON
        arguments = json.dumps(arguments, ensure_ascii=False)
    return CallPiece(
        index if isinstance(index, int) else None,
        as_text(call.get("id")),
        as_text(function.get("name")),
        as_text(arguments) if arguments is not None else None,
    )


def tool_calls(calls: CallList) -> list[ToolCall]:
    return with_ids(
        [
            ToolCall(id=call.id or "", name=call.name or "", arguments=call.arguments.value() or "")
            for call in calls.calls
        ]
    )


def with_ids(calls: list[ToolCall]) -> list[ToolCall]:
    """The calls, each with an id of its own: results are matched to calls by nothing else."""
    taken: set[str] = set()
    for number, call in enumerate(calls, start=1):
        if not call.id or call.id in taken:
            call.id = f"{call.id or 'call'}_{number}"
        taken.add(call.id)
    return calls


def usage_of(answer: dict[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=count(usage, "total_tokens") or prompt + completion,
        cached_tokens=count(as_dict(usage.get("prompt_tokens_details")), "cached_tokens"),
        reasoning_tokens=count(as_dict(usage.get("completion_tokens_details")), "reasoning_tokens"),
    )


def count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


def as_object(parsed: Any) -> dict[str, Any]:
    """An SDK object as a dict with the fields that were sent. Raises UnusableAnswer."""
    data = (
        parsed.to_dict(mode="json", warnings=False)
        if isinstance(parsed, openai.BaseModel)
        else parsed
    )
    if not isinstance(data, dict):
        raise UnusableAnswer("it is no JSON object; check --proxy-url")
    return data


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str:
    """A text, the words of an error or the texts of a list of parts, fit to be sent on."""
    if isinstance(value, dict):
        value = value.get("message") or json.dumps(value, ensure_ascii=False)
    elif isinstance(value, list):
        value = content_text(value)
    return valid_text(value) if isinstance(value, str) else ""
