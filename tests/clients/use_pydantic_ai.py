"""Pydantic AI with its OpenAI model."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from checks import API_KEY, BASE_URL, HEADERS, MODEL, NONCE, client_left, equal, report


class State(BaseModel):
    name: str
    share: float


def agent(**more: Any) -> tuple[Agent, openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, default_headers=HEADERS)
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
    return Agent(model, **more), client


async def chat() -> None:
    result = await agent()[0].run("Please: chat")
    equal(result.output, "Hello.")


async def stream() -> None:
    async with agent()[0].run_stream("Please: chat") as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    equal("".join(pieces), "Hello.")


async def usage() -> None:
    async with agent()[0].run_stream("Please: chat") as result:
        await result.get_output()
    used = result.usage
    used = used() if callable(used) else used
    equal(used.input_tokens, 7)


async def tools() -> None:
    asking, _ = agent()

    @asking.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return "18 degrees"

    equal((await asking.run("Please: weather")).output, "It is 18 degrees.")


async def structured() -> None:
    equal((await agent(output_type=State)[0].run("Please: structured")).output.name, "Nevada")


async def thinking() -> None:
    settings: Any = {"extra_body": {"enable_thinking": True}}
    result = await agent()[0].run("Please: think", model_settings=settings)
    equal(result.output, "thinking: true")


async def error() -> None:
    try:
        await agent()[0].run("Please: bad")
    except ModelHTTPError as raised:
        equal((raised.status_code, raised.body["code"]), (400, "context_length_exceeded"))
        return
    raise AssertionError("no error")


async def retry() -> None:
    equal((await agent()[0].run(f"Please: busy:{NONCE}")).output, "Hello.")


async def abort() -> None:
    async def ask() -> None:
        async with agent()[0].run_stream("Please: endless") as result:
            async for _ in result.stream_text(delta=True):
                asking.cancel()

    asking = asyncio.create_task(ask())
    await asyncio.wait({asking})
    await asyncio.to_thread(client_left)


async def broken() -> None:
    try:
        async with agent()[0].run_stream("Please: broken") as result:
            await result.get_output()
    except Exception:
        return
    raise AssertionError("no error")


async def ids() -> str | None:
    asking, client = agent()
    seen = []

    async def note(response: Any) -> None:
        seen.append(response.headers.get("X-Proxy-Request-Id"))

    client._client.event_hooks = {"response": [note]}
    await asking.run("Please: chat")
    return seen[-1]


def running(check: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    return lambda: asyncio.run(check())


report(
    {
        "chat": running(chat),
        "stream": running(stream),
        "usage": running(usage),
        "tools": running(tools),
        "structured": running(structured),
        "thinking": running(thinking),
        "error": running(error),
        "retry": running(retry),
        "abort": running(abort),
        "broken": running(broken),
        "ids": running(ids),
    }
)
