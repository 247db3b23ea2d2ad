"""LiteLLM as a library, with the provider `openai/`."""

import json

import litellm
from litellm import completion, embedding

from checks import (
    API_KEY,
    BASE_URL,
    HEADERS,
    MODEL,
    NONCE,
    WEATHER,
    client_left,
    equal,
    fails,
    report,
    user,
)

PLACE = {"api_base": BASE_URL, "api_key": API_KEY, "extra_headers": HEADERS}
NAME = f"openai/{MODEL}"


def chat() -> None:
    found = completion(NAME, user("chat"), **PLACE)
    equal((found.choices[0].message.content, found.usage.total_tokens), ("Hello.", 10))


def stream() -> None:
    chunks = completion(NAME, user("chat"), stream=True, **PLACE)
    equal("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), "Hello.")


def usage() -> None:
    options = {"include_usage": True}
    chunks = completion(NAME, user("chat"), stream=True, stream_options=options, **PLACE)
    counts = [c.usage.total_tokens for c in chunks if getattr(c, "usage", None)]
    equal(counts, [10])


def tools() -> None:
    messages = user("weather")
    message = completion(NAME, messages, tools=[WEATHER], **PLACE).choices[0].message
    [call] = message.tool_calls
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    final = completion(NAME, messages, tools=[WEATHER], **PLACE)
    equal(final.choices[0].message.content, "It is 18 degrees.")


def structured() -> None:
    wanted = {"type": "json_object"}
    found = completion(NAME, user("structured"), response_format=wanted, **PLACE)
    equal(json.loads(found.choices[0].message.content)["name"], "Nevada")


def thinking() -> None:
    found = completion(NAME, user("think"), extra_body={"enable_thinking": True}, **PLACE)
    equal(found.choices[0].message.content, "thinking: true")


def embeddings() -> None:
    found = embedding(NAME, ["a", "b"], encoding_format="float", **PLACE)
    equal([item["embedding"] for item in found.data], [[0.5, -0.25]] * 2)


def error() -> None:
    raised = fails(litellm.BadRequestError, lambda: completion(NAME, user("bad"), **PLACE))
    equal("The prompt is too long." in str(raised), True)


def retry() -> None:
    found = completion(NAME, user(f"busy:{NONCE}"), num_retries=2, **PLACE)
    equal(found.choices[0].message.content, "Hello.")


def abort() -> None:
    chunks = completion(NAME, user("endless"), stream=True, **PLACE)
    next(iter(chunks))
    chunks.completion_stream.close()
    client_left()


def broken() -> None:
    fails(Exception, lambda: list(completion(NAME, user("broken"), stream=True, **PLACE)))


def ids() -> str | None:
    found = completion(NAME, user("chat"), **PLACE)
    return found._hidden_params["additional_headers"]["llm_provider-x-proxy-request-id"]


report(
    {
        "chat": chat,
        "stream": stream,
        "usage": usage,
        "tools": tools,
        "structured": structured,
        "thinking": thinking,
        "embeddings": embeddings,
        "error": error,
        "retry": retry,
        "abort": abort,
        "broken": broken,
        "ids": ids,
    }
)
