"""The demo's provider, asked by the openai SDK and by hand over real sockets."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.web import Application

from open_llm_proxy.server.commands.demo.answers import plausible_value, words
from open_llm_proxy.server.commands.demo.provider import make_demo_provider

KEY = "demo-key"
QUESTION = "Which states protect most of their land?"
USER = {"role": "user", "content": QUESTION}
TOOL = {
    "type": "function",
    "function": {
        "name": "query",
        "parameters": {
            "type": "object",
            "properties": {
                "question": {"type": "string"},
                "limit": {"type": "integer", "minimum": 5},
                "unused": {"type": "string"},
            },
            "required": ["question", "limit"],
        },
    },
}


@pytest.fixture
def pace_seconds() -> float:
    return 0


@pytest.fixture
def app(pace_seconds: float) -> Application:
    return make_demo_provider(KEY, pace_seconds)


@pytest.fixture
def port(http_server: HTTPServer, http_server_port: tuple[socket.socket, int]) -> int:
    """The port on which the provider listens."""
    return http_server_port[1]


@asynccontextmanager
async def sdk(port: int, key: str = KEY) -> AsyncIterator[AsyncOpenAI]:
    url = f"http://127.0.0.1:{port}/v1"
    async with AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=10) as client:
        yield client


async def send(
    client: AsyncHTTPClient, path: str, body: bytes | None, key: str | None = KEY
) -> HTTPResponse:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    method = "GET" if body is None else "POST"
    return await client.fetch(path, method=method, body=body, headers=headers, raise_error=False)


async def test_an_answer_echoes_the_question_and_owns_up_to_the_demo(port: int) -> None:
    async with sdk(port) as client:
        answer = await client.chat.completions.create(model="kimi", messages=[USER])
    content = answer.choices[0].message.content or ""
    assert QUESTION in content and "demo provider" in content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "kimi"
    assert answer.usage and answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_stream_brings_the_same_words_one_by_one(port: int) -> None:
    async with sdk(port) as client:
        whole = await client.chat.completions.create(model="kimi", messages=[USER])
        stream = await client.chat.completions.create(
            model="kimi", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert "".join(delta or "" for delta in deltas) == whole.choices[0].message.content
    assert len(deltas) > 20
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_is_server_sent_events_that_end_with_done(http_server_client: Any) -> None:
    body = json.dumps({"model": "demo", "messages": [USER], "stream": True}).encode()
    response = await send(http_server_client, "/v1/chat/completions", body)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = response.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert not any("usage" in chunk for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_with_arguments_that_fit_their_schema(
    port: int, stream: bool
) -> None:
    request: Any = {"model": "qwen3", "messages": [USER], "tools": [TOOL]}
    async with sdk(port) as client:
        if stream:
            text, name, reasons = "", None, []
            async for chunk in await client.chat.completions.create(**request, stream=True):
                reasons.append(chunk.choices[0].finish_reason)
                for call in chunk.choices[0].delta.tool_calls or []:
                    assert call.index == 0 and call.function
                    name = name or call.function.name
                    text += call.function.arguments or ""
            reason = reasons[-1]
        else:
            choice = (await client.chat.completions.create(**request)).choices[0]
            [whole] = choice.message.tool_calls or []
            assert whole.type == "function" and choice.message.content is None
            name, text, reason = whole.function.name, whole.function.arguments, choice.finish_reason
    assert (name, reason) == ("query", "tool_calls")
    assert json.loads(text) == {"question": QUESTION, "limit": 5}


async def test_a_tool_s_result_is_answered_in_words(port: int) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "query", "arguments": "{}"}}
    messages: Any = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Alaska, 41 %"},
    ]
    async with sdk(port) as client:
        answer = await client.chat.completions.create(model="kimi", messages=messages, tools=[TOOL])
    assert not answer.choices[0].message.tool_calls
    content = answer.choices[0].message.content or ""
    assert "The tool returned" in content and "Alaska, 41 %" in content


async def test_tool_choice_none_is_respected(port: int) -> None:
    async with sdk(port) as client:
        answer = await client.chat.completions.create(
            model="kimi", messages=[USER], tools=[TOOL], tool_choice="none"
        )
    assert not answer.choices[0].message.tool_calls


@pytest.mark.parametrize("switch", ["thinking", "enable_thinking"])
async def test_thinking_brings_reasoning_content(port: int, switch: str) -> None:
    async with sdk(port) as client:
        request: Any = {"model": "kimi", "messages": [USER]}
        on, off = [
            (
                await client.chat.completions.create(
                    **request, extra_body={"chat_template_kwargs": {switch: value}}
                )
            )
            for value in (True, False)
        ]
        stream = await client.chat.completions.create(
            **request, stream=True, extra_body={"chat_template_kwargs": {switch: True}}
        )
        deltas = [chunk.choices[0].delta.model_dump() async for chunk in stream]
    reasoning = on.choices[0].message.model_dump()["reasoning_content"]
    assert reasoning
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == reasoning
    assert on.usage and on.usage.completion_tokens_details
    assert on.usage.completion_tokens_details.reasoning_tokens
    assert "reasoning_content" not in off.choices[0].message.model_dump()


async def test_completions_answer_whole_and_streamed(port: int) -> None:
    async with sdk(port) as client:
        whole = await client.completions.create(model="demo", prompt=QUESTION)
        stream = await client.completions.create(model="demo", prompt=QUESTION, stream=True)
        parts = [chunk.choices[0] async for chunk in stream]
    assert QUESTION in whole.choices[0].text and whole.usage
    assert "".join(part.text for part in parts) == whole.choices[0].text
    assert parts[-1].finish_reason == "stop"


async def test_embeddings_are_equal_for_equal_texts_in_both_encodings(
    port: int,
) -> None:
    async with sdk(port) as client:
        packed = await client.embeddings.create(model="demo", input=["a", "b", "a"])
        plain = await client.embeddings.create(model="demo", input="a", encoding_format="float")
    first, second, third = (item.embedding for item in packed.data)
    assert first == third != second
    assert plain.data[0].embedding == pytest.approx(first)
    assert sum(number * number for number in first) == pytest.approx(1, abs=1e-5)


async def test_models_are_listed(port: int) -> None:
    async with sdk(port) as client:
        models = [model.id async for model in client.models.list()]
    assert models == ["kimi", "qwen3", "glm-4.7", "demo"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer ", KEY])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nowhere"])
async def test_a_wrong_key_is_refused_on_every_route(
    http_server_client: Any, header: str | None, path: str
) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = await http_server_client.fetch(path, headers=headers, raise_error=False)
    error = json.loads(response.body)["error"]
    assert (response.code, error["code"]) == (401, "invalid_api_key")
    assert error.keys() == {"message", "type", "param", "code"}
    assert KEY not in response.body.decode()


async def test_the_sdk_understands_the_errors(port: int) -> None:
    messages: Any = []
    async with sdk(port, key="wrong") as client:
        with pytest.raises(AuthenticationError, match="does not accept this API key"):
            await client.chat.completions.create(model="kimi", messages=[USER])
    async with sdk(port) as client:
        with pytest.raises(BadRequestError, match="at least one message"):
            await client.chat.completions.create(model="kimi", messages=messages)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": []}', b'{"model": 1}', b"\xff"])
async def test_a_body_that_is_no_request_is_a_400(http_server_client: Any, body: bytes) -> None:
    response = await send(http_server_client, "/v1/chat/completions", body)
    assert response.code == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"


async def test_other_routes_and_methods_are_refused_in_the_same_shape(
    http_server_client: Any,
) -> None:
    missing = await send(http_server_client, "/v1/nowhere", None)
    assert (missing.code, json.loads(missing.body)["error"]["code"]) == (404, "unknown_url")
    wrong = await send(http_server_client, "/v1/chat/completions", None)
    assert (wrong.code, wrong.headers["Content-Type"]) == (405, "application/json")


async def test_texts_of_a_list_and_lone_surrogates_come_back(http_server_client: Any) -> None:
    content = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts \ud800 ü"}]
    body = {"model": "kimi", "messages": [{"role": "user", "content": content}]}
    response = await send(http_server_client, "/v1/chat/completions", json.dumps(body).encode())
    answer = json.loads(response.body)["choices"][0]["message"]["content"]
    assert "two parts \ud800 ü" in answer


@pytest.mark.parametrize("pace_seconds", [1])
async def test_a_client_that_leaves_ends_the_stream_quietly(
    app: Application, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()
    app.settings["log_function"] = lambda handler: ended.set()
    body = json.dumps({"model": "kimi", "messages": [USER], "stream": True})
    head = f"Host: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with caplog.at_level(logging.INFO):
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}{body}".encode())
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        # The whole answer takes half a minute and more.
        await asyncio.wait_for(ended.wait(), 10)
    assert [record for record in caplog.records if record.name.startswith("tornado")] == []


SCHEMAS = {
    "enum": {"enum": ["north", "south"]},
    "default": {"type": "integer", "default": 7},
    "nullable": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    "types": {"type": ["number", "null"], "minimum": 2.5},
    "array": {"type": "array", "items": {"type": "boolean"}},
    "const": {"const": 0},
    "no required": {"properties": {"a": {"type": "string"}}},
    "reference": {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/Place"}},
        "required": ["place"],
        "$defs": {"Place": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_values_fit_their_schema(schema: dict[str, Any]) -> None:
    value = plausible_value(schema, QUESTION, schema.get("$defs", {}))
    jsonschema.validate(value, schema)
    assert value not in ({}, [])


def test_a_schema_that_contains_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    assert isinstance(plausible_value(node, QUESTION, {"Node": node}), dict)


@pytest.mark.parametrize("text", ["", " ", "one", " two  words\n", "a\n\nb "])
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text
