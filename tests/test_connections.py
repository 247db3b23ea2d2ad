"""Connections that do nothing, and too many of them: none delays a call or stays for ever."""

import asyncio
import contextlib
import os
import resource
import socket as sockets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.http1 import server as client_server
from open_llm_proxy.server.http1.server import (
    PATIENCE_SECONDS,
    ClientServer,
    connections_for,
    listen_backlog,
)
from proxy_process import ProxyProcess, one_provider
from raw_client import RawClient, request
from relay_calls import BEARER, CHAT, Relay, chat, quickly
from stores import DirectoryStore
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

RELAYED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
HEALTH = request("GET", "/health")
HALF_BODY = request("POST", CHAT, None, (BEARER, ("Content-Length", "1000"))) + b'{"model": '
# What a client sends before it stops, and what the connection then waits for.
STANDING_STILL = {
    "new": b"",
    "head": HEALTH[:-2],
    "head of the second request": HEALTH + HEALTH[:-2],
    "idle": HEALTH,
    "idle with key": request("GET", "/v1/models", None, (BEARER,)),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are looked at all the time, and may not stand still at all."""
    monkeypatch.setattr(client_server, "LOOK_SECONDS", 0.02)
    patience = dict.fromkeys(PATIENCE_SECONDS, 0.1) | {"answering": float("inf")}
    monkeypatch.setattr(client_server, "PATIENCE_SECONDS", patience)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", STANDING_STILL.values(), ids=STANDING_STILL)
async def test_a_connection_that_stands_still_is_closed(
    relay: Relay, log: MemoryLog, sent: bytes
) -> None:
    async with relay.connection() as client:
        await client.send(sent)
        received = await quickly(client.everything())
    assert received.count(b"HTTP/1.1 200 ") == sent.count(b"\r\n\r\n")
    assert not log.rows and not relay.provider.seen


WRONG = ("Authorization", "Bearer wrong")
STOPPED = {
    **{path: ("POST", path, BEARER, 408) for path in RELAYED},
    "stranger": ("POST", CHAT, WRONG, 401),
    "POST where none is taken": ("POST", "/health", BEARER, 405),
    **{path: ("GET", path, BEARER, 408) for path in ("/", "/health", "/ready", "/v1/models")},
    "unknown": ("POST", "/v1/nothing", BEARER, 404),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("framing", [("Content-Length", "1000"), ("Transfer-Encoding", "chunked")])
@pytest.mark.parametrize("stopped", STOPPED)
async def test_a_body_that_stops_is_answered_and_then_the_connection_ends(
    relay: Relay, log: MemoryLog, stopped: str, framing: tuple[str, str]
) -> None:
    method, path, key, status = STOPPED[stopped]
    async with relay.connection() as client:
        await client.send(request(method, path, None, (key, framing)) + b'9\r\n{"model":')
        answer = await quickly(client.answer())
        assert (answer.status, answer.header("Connection")) == (status, "close")
        assert answer.is_complete and answer.error["message"]
        assert await quickly(client.everything()) == b""
    assert relay.services.bodies.held_bytes == 0 and not relay.provider.seen
    is_logged = status == 408 and method == "POST"
    rows = [(row["outcome"], row["status"]) for row in log.responses]
    assert rows == ([("rejected", 408)] if is_logged else [])


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_does_not_take_its_answer_is_closed(
    relay: Relay, log: MemoryLog
) -> None:
    async with relay.asking(1, "big", stream=True, megabytes=64) as client:
        await client.begin()
        client.stop_reading()
        assert (await log.closed())["outcome"] == "client_disconnected"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_may_take_its_time(relay: Relay, stream: bool) -> None:
    assert (await relay.ask(1, stream=stream, delay=0.5)).is_complete


@pytest.mark.parametrize("phase", PATIENCE_SECONDS)
def test_every_phase_has_its_limit(phase: str) -> None:
    assert PATIENCE_SECONDS[phase] <= 610 or phase == "answering"  # type: ignore[index]


async def test_strangers_and_slow_readers_leave_calls_untouched(relay: Relay) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            client = await stack.enter_async_context(
                relay.asking(1000 + number, "big", stream=True)
            )
            await client.begin()
            client.stop_reading()
        for number in range(200):
            client = await stack.enter_async_context(relay.connection())
            await client.send(HEALTH[:-2] if number % 2 else b"")
        for number in range(5):
            assert (await quickly(relay.ask(number))).status == 200
            async with relay.connection() as client:
                await client.send(HEALTH)
                assert (await quickly(client.answer())).status == 200


@contextlib.asynccontextmanager
async def connections(relay: Relay, count: int, sent: bytes) -> AsyncIterator[list[RawClient]]:
    """So many connections that sent this and read the answer to it, if one was due."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            client = await stack.enter_async_context(relay.connection())
            await client.send(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert (await quickly(client.answer())).status == 200
            clients.append(client)
        yield clients


WARNED = pytest.mark.parametrize("expected_warnings", [["There are MAX_CONNECTIONS=8"]])


@WARNED
@pytest.mark.parametrize("relay_settings", [{"max_connections": 8}])
@pytest.mark.parametrize("sent", [b"", HEALTH[:-2], HEALTH], ids=["silent", "half", "idle"])
async def test_beyond_the_limit_strangers_go_first_and_the_oldest_of_them(
    relay: Relay, relay_server: ClientServer, sent: bytes
) -> None:
    async with connections(relay, 1, STANDING_STILL["idle with key"]) as [known]:
        async with connections(relay, 7, sent) as strangers, relay.asking(1, "silent") as busy:
            await quickly(relay.provider.call(1))
            assert await quickly(strangers[0].ended())
            for number in (2, 3, 4):
                assert (await quickly(relay.ask(number))).status == 200
            assert relay_server.connections <= 8
            await known.send(request("POST", CHAT, chat(5), (BEARER,)))
            assert (await quickly(known.answer())).status == 200
            assert not relay.provider.calls[0].closed.is_set()
            busy.reset()


@WARNED
@pytest.mark.parametrize("relay_settings", [{"max_connections": 8}])
async def test_then_those_that_were_idle_for_longest(relay: Relay) -> None:
    async with connections(relay, 8, STANDING_STILL["idle with key"]) as clients:
        await clients[0].send(STANDING_STILL["idle with key"])
        assert (await quickly(clients[0].answer())).status == 200
        assert (await quickly(relay.ask(1))).status == 200
        assert await quickly(clients[1].ended())
        await clients[0].send(STANDING_STILL["idle with key"])
        assert (await quickly(clients[0].answer())).status == 200


@WARNED
@pytest.mark.parametrize("relay_settings", [{"max_connections": 8}])
async def test_and_no_call_in_progress_is_ever_closed(relay: Relay) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(8):
            await stack.enter_async_context(relay.asking(number, "silent"))
            await quickly(relay.provider.call(number))
        async with relay.connection() as newcomer:
            assert await quickly(newcomer.ended())
        assert not any(call.closed.is_set() for call in relay.provider.calls)


@pytest.mark.parametrize("expected_warnings", [["No connection can be accepted"]])
async def test_without_descriptors_accepting_waits_and_goes_on(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_server, "ACCEPT_PAUSE_SECONDS", 0.02)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.get_running_loop()
    with sockets.socket() as client:
        client.setblocking(False)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            await loop.sock_connect(client, ("127.0.0.1", relay.port))
            await loop.sock_sendall(client, HEALTH)
            await wait_until(lambda: "No connection can be" in caplog.text, "the warning")
            for _ in range(20):
                await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (await quickly(loop.sock_recv(client, 100))).startswith(b"HTTP/1.1 200 ")
    assert caplog.text.count("No connection can be") == 1


@pytest.mark.parametrize("relay_settings", [{"max_bodies_bytes": 100_000}])
async def test_bodies_that_are_too_many_together_get_503(relay: Relay, log: MemoryLog) -> None:
    long = chat(1, padding="x" * 60_000)
    async with relay.connection() as first, relay.connection() as second:
        raw = request("POST", CHAT, long, (BEARER,))
        await first.send(raw[:-10])
        await wait_until(lambda: relay.services.bodies.held_bytes > 50_000, "the first body")
        await second.send(raw)
        refused = await quickly(second.answer())
        assert (refused.status, refused.error["code"]) == (503, "too_many_bodies")
        assert refused.header("Retry-After") == "2"
        await first.send(raw[-10:])
        assert (await quickly(first.answer())).status == 200
    assert relay.services.bodies.held_bytes == 0
    assert {row["outcome"] for row in log.responses} == {"rejected", "ok"}
    assert (await relay.ask(2)).status == 200


async def test_no_body_is_counted_any_more_once_its_call_is_over(relay: Relay) -> None:
    for behaviour in ("ok", "error", "reset_before_headers", "reset_mid_chunk", "bad_chunking"):
        await relay.ask(1, behaviour)
        assert relay.services.bodies.held_bytes == 0, behaviour
    async with relay.asking(2, "silent") as client:
        await relay.provider.call(2)
        assert relay.services.bodies.held_bytes > 0
        client.reset()
    await wait_until(lambda: relay.services.bodies.held_bytes == 0, "the end of the call")


def test_limits_follow_the_machine() -> None:
    assert listen_backlog() == int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert connections_for(1 << 20, 10_000) == 10_000
    assert connections_for(1024, 10_000) == 448
    assert connections_for(10, 10_000) == 1


async def test_the_server_raises_its_soft_limit_of_files(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    prefix = ("prlimit", "--nofile=200:1000")
    config = one_provider("http://127.0.0.1:1")
    proxy = start_proxy(config, directory_store.env(), command_prefix=prefix)
    await proxy.start()
    assert resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE) == (1000, 1000)
    assert "At most 436 client connections" in proxy.stderr_text()
