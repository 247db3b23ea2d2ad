"""The openai package, 1.x and later."""

import json
from typing import Any

import openai

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

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, default_headers=HEADERS)
create = client.chat.completions.create


def chat() -> None:
    completion = create(model=MODEL, messages=user("chat"))
    equal(completion.choices[0].message.content, "Hello.")
    assert completion.usage is not None
    equal(completion.usage.total_tokens, 10)


def stream() -> None:
    chunks = create(model=MODEL, messages=user("chat"), stream=True)
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "Hello.")


def usage() -> None:
    options = {"include_usage": True}
    *_, last = create(model=MODEL, messages=user("chat"), stream=True, stream_options=options)
    equal(last.usage.total_tokens, 10)


def tools() -> None:
    messages = user("weather")
    message = create(model=MODEL, messages=messages, tools=[WEATHER]).choices[0].message
    [call] = message.tool_calls
    equal(json.loads(call.function.arguments), {"city": "Paris"})
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    final = create(model=MODEL, messages=messages, tools=[WEATHER]).choices[0].message
    equal(final.content, "It is 18 degrees.")


def structured() -> None:
    properties = {"name": {"type": "string"}, "share": {"type": "number"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "share"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "state", "schema": schema}}
    completion = create(model=MODEL, messages=user("structured"), response_format=wanted)
    equal(json.loads(completion.choices[0].message.content)["name"], "Nevada")


def thinking() -> None:
    extra = {"enable_thinking": True}
    completion = create(model=MODEL, messages=user("think"), extra_body=extra)
    equal(completion.choices[0].message.content, "thinking: true")


def embeddings() -> None:
    found = client.embeddings.create(model=MODEL, input=["a", "b"])
    equal([item.embedding for item in found.data], [[0.5, -0.25]] * 2)


def models() -> None:
    equal(MODEL in [model.id for model in client.models.list()], True)


def responses() -> None:
    equal(client.responses.create(model=MODEL, input="chat").output_text, "Hello.")
    events = client.responses.create(model=MODEL, input="chat", stream=True)
    equal([event.type for event in events][-1], "response.completed")


def error() -> None:
    raised: Any = fails(openai.BadRequestError, lambda: create(model=MODEL, messages=user("bad")))
    equal((raised.code, raised.param), ("context_length_exceeded", "messages"))


def retry() -> None:
    completion = create(model=MODEL, messages=user(f"busy:{NONCE}"))
    equal(completion.choices[0].message.content, "Hello.")


def abort() -> None:
    with create(model=MODEL, messages=user("endless"), stream=True) as chunks:
        equal(next(iter(chunks)).choices[0].delta.content, "more ")
    client_left()


def broken() -> None:
    fails(Exception, lambda: list(create(model=MODEL, messages=user("broken"), stream=True)))


def ids() -> str | None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user("chat"))
    return raw.headers.get("X-Proxy-Request-Id")


report(
    {
        "chat": chat,
        "stream": stream,
        "usage": usage,
        "tools": tools,
        "structured": structured,
        "thinking": thinking,
        "embeddings": embeddings,
        "models": models,
        "responses": responses,
        "error": error,
        "retry": retry,
        "abort": abort,
        "broken": broken,
        "ids": ids,
    }
)
