"""The demo provider's answers: fixed texts that say so and repeat the question.

Pure functions from a request to the parts of its answer. The same request gets the same text; only
the ids of tool calls differ. Tokens are estimated, one for four characters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from array import array
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

ECHO_CHARACTERS = 400
EMBEDDING_DIMENSIONS = 16
SCHEMA_DEPTH = 6  # a schema may refer to itself


def reply(body: Json, last: Json) -> Json:
    """The assistant's message, depending on the last message of the request.

    A tool result gets a text about it. A user message gets a call of the first tool, if tools were
    sent, else an echo. If the request enables thinking, reasoning is added.
    """
    said = text_of(last.get("content"))
    message: Json = {"role": "assistant", "content": None}
    switches = body.get("chat_template_kwargs")
    if isinstance(switches, dict) and (switches.get("thinking") or switches.get("enable_thinking")):
        message["reasoning_content"] = (
            f"The last message has {len(said)} characters. I am only a demo, "
            "so I will repeat it and be friendly."
        )
    function = first_function(body)
    if last.get("role") == "tool":
        message["content"] = (
            f'The tool returned: "{shorten(said)}" '
            "With a real model behind the proxy, this would be its conclusion."
        )
    elif function and last.get("role") == "user":
        message["tool_calls"] = [tool_call(function, said)]
    else:
        message["content"] = talk(said)
    return message


def talk(question: str) -> str:
    return (
        f'Hello from the demo provider! You wrote: "{shorten(question)}" There is no model here, '
        "but your call went all the way: through the proxy, to a provider and into the log."
    )


def first_function(body: Json) -> Json | None:
    tools = body.get("tools")
    if not isinstance(tools, list) or body.get("tool_choice") == "none":
        return None
    functions = (tool.get("function") for tool in tools if isinstance(tool, dict))
    return next((f for f in functions if isinstance(f, dict) and f.get("name")), None)


def tool_call(function: Json, question: str) -> Json:
    schema = function.get("parameters")
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    arguments = plausible_value(schema, shorten(question), definitions)
    text = json.dumps(arguments if isinstance(arguments, dict) else {}, ensure_ascii=False)
    return {
        "id": f"call_demo_{secrets.token_hex(8)}",
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def plausible_value(schema: Any, text: str, definitions: Json, depth: int = 0) -> Any:
    """A value for a JSON schema: one that the schema suggests, else any value of its type.

    A string is the question's text. An object has its required properties, or all of them if none
    is required. None if the schema does not say enough.
    """
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH:
        return None
    if "$ref" in schema:
        target = definitions.get(str(schema["$ref"]).rpartition("/")[2])
        return plausible_value(target, text, definitions, depth + 1)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return plausible_value(options[0], text, definitions, depth + 1)
    for keyword in ("const", "default"):
        if schema.get(keyword) is not None:
            return schema[keyword]
    if suggested := schema.get("examples") or schema.get("enum"):
        return suggested[0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties", {})
            values = {
                name: plausible_value(properties.get(name), text, definitions, depth + 1)
                for name in schema.get("required") or properties
            }
            return {name: value for name, value in values.items() if value is not None}
        case "array":
            item = plausible_value(schema.get("items"), text, definitions, depth + 1)
            return [] if item is None else [item]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "string":
            return text
    return None


def chat_completion(message: Json, usage: Json) -> Json:
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason(message),
    }
    return {"choices": [choice], "usage": usage}


def chat_chunks(message: Json, usage: Json | None) -> Iterator[Json]:
    """The message word by word; with `usage`, a last chunk contains it and no choice."""
    common: Json = {"usage": None} if usage else {}

    def chunk(delta: Json, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return common | {"choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    for field in ("reasoning_content", "content"):
        for word in words(message.get(field) or ""):
            yield chunk({field: word})
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        start = call | {"index": index, "function": function | {"arguments": ""}}
        yield chunk({"tool_calls": [start]})
        for word in words(function["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": word}}]})
    yield chunk({}, finish_reason(message))
    if usage:
        yield {"choices": [], "usage": usage}


def completion(text: str, usage: Json) -> Json:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    return {"choices": [choice], "usage": usage}


def completion_chunks(text: str) -> Iterator[Json]:
    common: Json = {"index": 0, "logprobs": None}
    for word in words(text):
        yield {"choices": [common | {"text": word, "finish_reason": None}]}
    yield {"choices": [common | {"text": "", "finish_reason": "stop"}]}


def embedding(text: str, as_base64: bool) -> list[float] | str:
    """A unit vector made from a hash: equal texts have equal vectors, which mean nothing."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    raw = [byte - 127.5 for byte in digest[:EMBEDDING_DIMENSIONS]]
    length = sum(number * number for number in raw) ** 0.5
    vector = array("f", (number / length for number in raw))
    return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()


def usage(prompt: str, message: Json) -> Json:
    reasoning_tokens = tokens(message.get("reasoning_content") or "")
    calls = json.dumps(message["tool_calls"]) if "tool_calls" in message else ""
    completion_tokens = reasoning_tokens + tokens((message.get("content") or "") + calls)
    prompt_tokens = tokens(prompt)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the joined texts of its parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return " ".join(text for text in texts if isinstance(text, str))


def finish_reason(message: Json) -> str:
    return "tool_calls" if "tool_calls" in message else "stop"


def words(text: str) -> list[str]:
    """The text split after each word; joined, the pieces are the text again."""
    return re.findall(r"\s*\S+\s?|\s+$", text)


def tokens(text: str) -> int:
    return (len(text) + 3) // 4


def shorten(text: str) -> str:
    return text if len(text) <= ECHO_CHARACTERS else text[:ECHO_CHARACTERS].rstrip() + " ..."
