"""The OpenAI objects with which the scripted provider answers a numbered call.

Shapes after OpenAI's API reference for chat completions, completions, embeddings, responses and
models; every text in them comes from known_content.py.
"""

from collections.abc import Iterator
from typing import Any

import known_content
from provider_exchange import Call

CREATED = 1_700_000_000


def error_object(message: str, kind: str = "server_error") -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def models(ids: tuple[str, ...]) -> dict[str, Any]:
    """The list of models."""
    data = [{"id": i, "object": "model", "created": CREATED, "owned_by": "scripted"} for i in ids]
    return {"object": "list", "data": data}


def whole_answer(call: Call) -> dict[str, Any]:
    """The unstreamed answer to `call`, in the shape that belongs to its route."""
    number, path = call.number or 0, call.request.target.partition("?")[0]
    content = known_content.answer_content(number)
    usage = known_content.usage(number)
    model = call.json.get("model")
    if path.endswith("/embeddings"):
        vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, number / 8]}
        return {"object": "list", "data": [vector], "model": model, "usage": usage}
    if path.endswith("/responses"):
        text = {"type": "output_text", "text": content, "annotations": []}
        message = {"type": "message", "id": "msg_0", "role": "assistant", "content": [text]}
        reply = {"id": f"resp_{number:06d}", "object": "response", "status": "completed"}
        return {**reply, "model": model, "output": [message], "usage": usage}
    if path.endswith("/chat/completions"):
        return completion(call, {"role": "assistant", "content": content})
    choice = {"index": 0, "text": content, "finish_reason": "stop", "logprobs": None}
    answer: dict[str, Any] = {
        "id": f"cmpl-{number:06d}",
        "object": "text_completion",
        "created": CREATED,
    }
    return {**answer, "model": model, "choices": [choice], "usage": usage}


def completion(call: Call, message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """A chat completion with one choice."""
    return {
        "id": f"chatcmpl-{call.number or 0:06d}",
        "object": "chat.completion",
        "created": CREATED,
        "model": call.json.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": known_content.usage(call.number or 0),
    }


def chunk(call: Call, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """A chat completion chunk with one choice."""
    return {
        "id": f"chatcmpl-{call.number or 0:06d}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": call.json.get("model"),
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def usage_chunk(call: Call) -> dict[str, Any]:
    """The extra chunk of `include_usage`: no choices, the whole usage."""
    return {**chunk(call, {}), "choices": [], "usage": known_content.usage(call.number or 0)}


def content_deltas(number: int, count: int) -> Iterator[dict[str, Any]]:
    """The content of call `number` in `count` pieces, or fewer where it is shorter."""
    for piece in _pieces(known_content.answer_content(number), count):
        yield {"content": piece}


def reasoning_deltas(number: int, name: str) -> Iterator[dict[str, Any]]:
    """The reasoning of call `number` in four pieces under the field `name`."""
    for piece in _pieces(known_content.answer_reasoning(number), 4):
        yield {name: piece}


def tool_call_deltas(number: int) -> Iterator[dict[str, Any]]:
    """Tool calls of call `number`: each opened by id and name, arguments interleaved by index."""
    calls = known_content.answer_tool_calls(number)
    for index, call in enumerate(calls):
        function = {"name": call["name"], "arguments": ""}
        opening = {"index": index, "id": call["id"], "type": "function", "function": function}
        yield {"tool_calls": [opening]}
    for pieces in zip(*(_pieces(call["arguments"], 3) for call in calls), strict=True):
        for index, piece in enumerate(pieces):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def tool_call_message(number: int) -> dict[str, Any]:
    """The assistant's message that holds the tool calls of call `number`."""
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in known_content.answer_tool_calls(number)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // count))
    return [text[start : start + size] for start in range(0, len(text), size)]
