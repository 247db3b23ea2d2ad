"""Providers to which there is no connection: refused, unknown, silent, or not speaking TLS."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import wire
from memory_log import MemoryLog
from relay_calls import Relay
from scripted_provider import ScriptedProvider

pytest_plugins = ("relay_fixtures",)


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue of new connections is full, so that no further one is answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port
        for client in waiting:
            client.close()


@pytest.fixture
def plain_port(io_loop: IOLoop) -> Iterator[int]:
    """A server that answers whatever comes in plain HTTP."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(refuse, "127.0.0.1")

    server = io_loop.run_sync(start)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def untrusted_port(io_loop: IOLoop, tmp_path: Path) -> Iterator[int]:
    """A provider whose certificate no authority of ours vouches for."""
    provider = ScriptedProvider(certificates=wire.make_certificates(tmp_path))
    io_loop.run_sync(provider.start)
    yield provider.port
    io_loop.run_sync(provider.stop)


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> str:
    """The URL of a provider that cannot be reached in the way that the test names."""

    def port_of(fixture: str) -> int:
        port: int = request.getfixturevalue(fixture)
        return port

    bases: dict[str, Callable[[], str]] = {
        "refused": lambda: f"http://127.0.0.1:{wire.free_port()}",
        "refused, https": lambda: f"https://127.0.0.1:{wire.free_port()}",
        "unresolvable": lambda: "https://provider.invalid",
        "no TLS": lambda: f"https://127.0.0.1:{port_of('plain_port')}",
        "untrusted": lambda: f"https://127.0.0.1:{port_of('untrusted_port')}",
        "no answer": lambda: f"http://127.0.0.1:{port_of('full_port')}",
    }
    return f"{bases[request.param]()}/v1/chat/completions"


@pytest.fixture
def provider_config(endpoint: str) -> dict[str, Any]:
    return {"endpoint": endpoint}


@pytest.mark.parametrize(
    ("endpoint", "error", "relay_settings"),
    [
        ("refused", "Connection refused", {"connect_seconds": 0.3}),
        ("refused, https", "Connection refused", {"connect_seconds": 0.3}),
        ("unresolvable", "cannot be resolved", {"connect_seconds": 3.0}),
        ("no TLS", "TLS handshake failed", {}),
        ("untrusted", "certificate is not trusted", {}),
        ("no answer", "no connection within", {"connect_seconds": 0.6}),
    ],
    indirect=["endpoint"],
)
async def test_a_provider_that_cannot_be_reached_is_named_with_the_reason(
    relay: Relay, log: MemoryLog, endpoint: str, error: str
) -> None:
    answer = await relay.ask(1)
    _, response = log.the_call()
    timed_out = error == "no connection within"
    assert (answer.status, answer.is_complete) == (504 if timed_out else 502, True)
    assert error in answer.error["message"] and "'nrp'" in answer.error["message"]
    assert error in response["error"] and response["status"] == answer.status
    assert response["outcome"] == answer.error["code"]
    assert response["deadline"] == ("connect" if timed_out else None)
