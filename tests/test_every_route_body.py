"""One limit and one framing for every route: no path keeps a stranger's body, or splits it."""

import asyncio
import tracemalloc
from collections.abc import Iterator

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.models import ModelsHandler
from open_llm_proxy.server.request_body import SMALL_BYTES
from raw_client import chunked_request, request
from relay_calls import BEARER, CHAT, MIB, Relay, chat, quickly
from test_relay_smuggling import AMBIGUOUS, SMUGGLED

pytest_plugins = ("relay_fixtures",)

# Every route of the application but the relay's, and paths that are none.
OTHER_ROUTES = (
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/kimi"),
    ("OPTIONS", CHAT),
    ("OPTIONS", "/health"),
    ("POST", "/health"),
    ("PUT", CHAT),
    ("POST", "/no/such/path"),
    ("PROPFIND", "/health"),
)
FORM = ("Content-Type", "application/x-www-form-urlencoded")


@pytest.fixture
def traced_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("headers", [(), (BEARER,)], ids=["stranger", "key"])
@pytest.mark.parametrize(("method", "path"), OTHER_ROUTES)
async def test_no_route_but_the_relay_takes_a_body_of_more_than_64_kib(
    relay: Relay, log: MemoryLog, method: str, path: str, headers: tuple[tuple[str, str], ...]
) -> None:
    for raw in (
        request(method, path, b"x" * (SMALL_BYTES + 1), (*headers, FORM)),
        request(method, path, None, (*headers, ("Content-Length", "104857600"))),
        chunked_request(path, [b"x" * 40_000] * 2, headers).replace(b"POST", method.encode(), 1),
    ):
        async with relay.connection() as client:
            await client.send(raw)
            answer = await quickly(client.answer())
            refused = {401, 404, 405, 413} - ({401} if headers else set())
            assert answer.status in refused and answer.is_complete
            assert answer.status != 404 or path == "/no/such/path"
    assert not log.rows and not relay.provider.calls


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", CHAT)])
@pytest.mark.usefixtures("traced_memory")
async def test_a_strangers_body_is_thrown_away_while_it_comes(
    relay: Relay, method: str, path: str
) -> None:
    size = 32 * MIB
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    async with relay.connection() as client:
        await client.send(request(method, path, None, (("Content-Length", str(size)), FORM)))
        answer = await quickly(client.answer())
        block = b"a=1&" * 16_384
        for _ in range(size // len(block) - 1):
            await client.send(block)
    assert answer.status in (401, 413)
    assert tracemalloc.get_traced_memory()[1] - before < 4 * MIB


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES])
@pytest.mark.parametrize(("method", "path"), OTHER_ROUTES[:-1])
async def test_a_small_body_costs_nobody_the_connection(
    relay: Relay, method: str, path: str, size: int
) -> None:
    async with relay.connection() as client:
        for _ in range(2):
            await client.send(request(method, path, b"x" * size, (BEARER, FORM)))
            assert (await quickly(client.answer())).status in (200, 204, 404, 405)
        await client.send(request("POST", CHAT, chat(1), (BEARER,)))
        assert (await quickly(client.answer())).status == 200


@pytest.mark.parametrize(
    "lines", AMBIGUOUS, ids=lambda lines: "; ".join(lines).encode("unicode_escape").decode()[:60]
)
@pytest.mark.parametrize(("method", "path"), [*OTHER_ROUTES, ("POST", CHAT)])
async def test_framing_is_strict_on_every_route(
    relay: Relay, log: MemoryLog, method: str, path: str, lines: list[str]
) -> None:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: proxy.test", *lines])
    async with relay.connection() as client:
        await client.send(head.encode("latin-1") + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        received = await quickly(client.everything())
    refused = b"HTTP/1.1 405 " if method == "PROPFIND" else b"HTTP/1.1 400 "
    assert received.startswith((b"HTTP/1.1 400 ", refused))
    assert received.count(b"HTTP/1.1") == 1
    assert not relay.provider.calls and not log.rows


async def test_a_key_is_asked_for_before_a_body_is_read(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = asyncio.Event()
    monkeypatch.setattr(ModelsHandler, "get", lambda handler: received.set())
    async with relay.connection() as client:
        await client.send(request("GET", "/v1/models", b"x" * 10))
        assert (await quickly(client.answer())).status == 401
    assert not received.is_set()
