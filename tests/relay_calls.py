"""The relay as a client sees it, for tests that take in `relay_fixtures`."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from known_content import question
from memory_log import MemoryLog, Row
from open_llm_proxy.server.services import Services
from provider_exchange import Call
from proxy_process import PROXY_KEY
from raw_client import Answer, Headers, RawClient, request
from scripted_provider import ScriptedProvider

CHAT = "/v1/chat/completions"
BEARER = ("Authorization", f"Bearer {PROXY_KEY}")
MIB = 1 << 20
# A short stream: one delta, its finish reason, its end.
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Relay:
    """The relay as a client sees it, and what the test knows of its inside."""

    port: int
    services: Services
    log: MemoryLog
    provider: ScriptedProvider

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self) -> httpx.AsyncClient:
        """An httpx client with the proxy's key."""
        headers = dict([BEARER])
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20)

    def sdk(self) -> openai.AsyncOpenAI:
        """OpenAI's SDK; it does not retry."""
        return openai.AsyncOpenAI(
            api_key=PROXY_KEY,
            base_url=f"{self.url}/v1",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    def connection(self) -> RawClient:
        return RawClient(self.port)

    async def ask(
        self,
        number: int,
        behaviour: str = "ok",
        *,
        stream: bool = False,
        path: str = CHAT,
        headers: Headers = (),
        **options: object,
    ) -> Answer:
        """Make call `number` on a connection of its own and read the answer to its end."""
        async with self.connection() as client:
            body = chat(number, behaviour, stream=stream, **options)
            await client.send(request("POST", path, body, (BEARER, *headers)))
            return await client.answer()

    async def turns(self) -> None:
        """Let everything happen that needs no more than the loop and the sockets of this test."""
        async with self.http() as http:
            for _ in range(3):
                assert (await http.get("/health")).status_code == 200
                await http.get(f"{self.provider.url}/v1/models")

    @asynccontextmanager
    async def asking(
        self,
        number: int,
        behaviour: str = "ok",
        *,
        stream: bool = False,
        path: str = CHAT,
        **options: object,
    ) -> AsyncIterator[RawClient]:
        """Make call `number` and leave the answer to the test."""
        async with self.connection() as client:
            body = chat(number, behaviour, stream=stream, **options)
            await client.send(request("POST", path, body, (BEARER,)))
            yield client


def chat(number: int, behaviour: str = "ok", *, stream: bool = False, **options: object) -> bytes:
    """The body of call `number`."""
    return json.dumps(chat_fields(number, behaviour, stream=stream, **options)).encode()


def chat_fields(
    number: int, behaviour: str = "ok", *, stream: bool = False, **options: object
) -> dict[str, Any]:
    messages = [{"role": "user", "content": question(number, behaviour, **options)}]
    fields: dict[str, Any] = {"model": "kimi", "messages": messages}
    return fields | {"stream": True} if stream else fields


def events(body: bytes) -> list[str]:
    """The data of each event in the body of a stream."""
    return [line[6:].decode() for line in body.split(b"\n") if line.startswith(b"data: ")]


def contents(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """What of some response rows tells how the call went."""
    names = ("outcome", "status", "deadline", "error", "content", "finish_reason")
    return [{name: row[name] for name in names} for row in rows]


async def quickly(awaitable: Any, seconds: float = 5.0) -> Any:
    """Await something that must happen at once; the limit is generous, for busy machines."""
    return await asyncio.wait_for(awaitable, seconds)


async def held_up(call: Call) -> None:
    """Return once the provider cannot send any more, because nobody takes what it sent."""
    unchanged, sent = 0, 0
    while unchanged < 10:
        await asyncio.sleep(0.02)
        unchanged = unchanged + 1 if call.bytes_sent == sent > 0 else 0
        sent = call.bytes_sent
