"""A relay in the test's own loop: `pytest_plugins = ("relay_fixtures",)` takes it in.

The real application behind a real socket, the scripted provider in front of it, and between
them a log that the test can hold up. `relay_settings` and `provider_config` are fixtures to be
overridden or parametrized. Whatever a test does, nothing may appear on a warning's level or
above in any logger; `expected_warnings` takes what a test provokes on purpose.
"""

import gc
import json
import logging
import ssl
from collections.abc import Callable, Iterator
from socket import socket
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import wire
from memory_log import MemoryLog
from open_llm_proxy.server.app import App, make_app
from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.config import parse_config
from open_llm_proxy.server.cors import CorsPolicy
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.http1.server import ClientServer
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.proxy_key import ProxyKey
from open_llm_proxy.server.redaction.redactor import Redactor
from open_llm_proxy.server.request_body import BodyBudget
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.services import Lifecycle, Services
from open_llm_proxy.server.upstream.client import PooledHTTPClient
from open_llm_proxy.server.upstream.timeouts import Timeouts
from provider_behaviours import BEHAVIOURS, Behaviour
from proxy_process import PROVIDER_KEY, PROXY_KEY, one_provider
from relay_calls import MIB, Relay
from scripted_provider import ScriptedProvider


@pytest.fixture
def relay_settings() -> dict[str, Any]:
    """Changes of the relay's settings; the names are those of `Timeouts` and `Services`."""
    return {}


@pytest.fixture
def provider_config() -> dict[str, Any]:
    """Changes of the provider's entry in config.json."""
    return {}


@pytest.fixture
def upstream(provider: ScriptedProvider) -> ScriptedProvider:
    """The provider that the relay calls."""
    return provider


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def services(
    io_loop: IOLoop,
    upstream: ScriptedProvider,
    log: MemoryLog,
    certificates: wire.Certificates,
    relay_settings: dict[str, Any],
    provider_config: dict[str, Any],
    nothing_reported: None,
) -> Iterator[Services]:
    settings = {
        "connect_seconds": 5.0,
        "idle_seconds": 10.0,
        "total_seconds": 20.0,
        "max_body_bytes": 4 * MIB,
        "max_bodies_bytes": 256 * MIB,
        "transcript_max_bytes": 4 * MIB,
        "cors_allow_origins": ("*",),
        "proxy_key": PROXY_KEY,
        "bounds": {},
        **relay_settings,
    }
    config = parse_config(json.dumps(one_provider(upstream.url, **provider_config)).encode())
    client = PooledHTTPClient(
        force_instance=True, ssl_options=ssl.create_default_context(cafile=certificates.authority)
    )
    yield Services(
        keys=ProxyKeys(
            {"default": ProxyKey(settings["proxy_key"], **settings["bounds"])}
            if settings["proxy_key"]
            else {}
        ),
        router=Router(config, {"NRP_API_KEY": PROVIDER_KEY}),
        log=log,
        client=client,
        cors=CorsPolicy(settings["cors_allow_origins"]),
        provenance=Provenance("0", "0" * 64, "test"),
        redactor=Redactor((PROVIDER_KEY, PROXY_KEY)),
        timeouts=Timeouts(
            settings["connect_seconds"], settings["idle_seconds"], settings["total_seconds"]
        ),
        metrics=Metrics(),
        lifecycle=Lifecycle(),
        max_body_bytes=settings["max_body_bytes"],
        transcript_max_bytes=settings["transcript_max_bytes"],
        bodies=BodyBudget(settings["max_bodies_bytes"]),
    )
    client.close()


@pytest.fixture
def app(services: Services) -> App:
    return make_app(services)


@pytest.fixture
def relay_server(
    io_loop: IOLoop,
    http_server_port: tuple[socket, int],
    app: App,
    services: Services,
    relay_settings: dict[str, Any],
) -> Iterator[ClientServer]:
    """The server that `serve` runs, in the test's loop."""

    async def start() -> ClientServer:
        server = ClientServer(app, max_connections=relay_settings.get("max_connections", 10_000))
        server.add_sockets([http_server_port[0]])
        return server

    async def stop() -> None:
        server.stop()
        server.close_all_connections()
        assert await services.lifecycle.wait_idle(10), "calls are still under way"

    server = io_loop.run_sync(start)
    yield server
    io_loop.run_sync(stop)


@pytest.fixture
def relay(
    relay_server: ClientServer,
    http_server_port: tuple[socket, int],
    services: Services,
    log: MemoryLog,
    upstream: ScriptedProvider,
) -> Relay:
    return Relay(http_server_port[1], services, log, upstream)


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[Behaviour], str]:
    """Teaches the scripted provider one more behaviour; returns the name to call it by."""

    def teach(behaviour: Behaviour) -> str:
        monkeypatch.setitem(BEHAVIOURS, "taught", behaviour)  # type: ignore[arg-type]
        return "taught"

    return teach


@pytest.fixture
def expected_warnings() -> list[str]:
    """Beginnings of log messages that the test provokes; each must come."""
    return []


@pytest.fixture
def nothing_reported(
    caplog: pytest.LogCaptureFixture, expected_warnings: list[str]
) -> Iterator[None]:
    """No traceback, no warning, no exception that nobody retrieved."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect(1)  # What a test leaves behind is young; the whole heap would take 0.3 s.
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    messages = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
    for beginning in expected_warnings:
        assert any(message.startswith(beginning) for message in messages), beginning
    unexpected = [m for m in messages if not m.startswith(tuple(expected_warnings))]
    assert not unexpected, "\n".join(unexpected)
