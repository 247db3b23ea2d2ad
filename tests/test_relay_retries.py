"""Retries where the provider saw nothing: no call fails that need not, no call is made twice."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.netutil import Resolver

import wire
from memory_log import MemoryLog, Row
from open_llm_proxy.server.services import Services
from open_llm_proxy.server.upstream.client import PooledHTTPClient
from open_llm_proxy.server.upstream.shared_dns import SharedLookups
from relay_calls import Relay
from scripted_provider import ScriptedProvider
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

NAME = "api.provider.example"


class NameServer(Resolver):
    """Knows one name, the loopback's; `away` says how it fails, or None."""

    def initialize(self) -> None:
        self.away: socket.gaierror | None = None
        self.asked = 0

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        return [(socket.AF_INET, ("127.0.0.1", port))]


@pytest.fixture
def names() -> NameServer:
    return NameServer()


@pytest.fixture
def upstream(io_loop: IOLoop) -> Iterator[ScriptedProvider]:
    """A provider on a port that a test can leave and take again."""
    provider = ScriptedProvider()
    io_loop.run_sync(lambda: provider.start(wire.free_port()))
    yield provider
    io_loop.run_sync(provider.stop)


@pytest.fixture
def provider_config(upstream: ScriptedProvider) -> dict[str, Any]:
    return {"endpoint": f"http://{NAME}:{upstream.port}/v1/chat/completions"}


@pytest.fixture
def services(services: Services, names: NameServer) -> Iterator[Services]:
    """With connections that serve one request each, so that every call needs a new one."""
    client = PooledHTTPClient(
        force_instance=True, max_idle_per_host=0, resolver=SharedLookups(names)
    )
    object.__setattr__(services, "client", client)  # frozen, and made by another fixture
    yield services
    client.close()


def attempts(log: MemoryLog) -> list[tuple[int, int]]:
    """Connects and sends of every call."""
    rows: list[Row] = [row for row in log.rows if row["type"] == "response"]
    return [(row["upstream_connects"], row["upstream_attempts"]) for row in rows]


@pytest.mark.parametrize("expected_warnings", [[f"{NAME} cannot be resolved (busy); using its"]])
async def test_a_name_that_cannot_be_resolved_any_more_costs_no_call(
    relay: Relay, log: MemoryLog, names: NameServer
) -> None:
    assert (await relay.ask(1)).status == 200
    names.away = socket.gaierror(socket.EAI_AGAIN, "busy")
    for number in range(2, 12):
        assert (await relay.ask(number)).status == 200
    assert names.asked == 11
    assert attempts(log) == [(1, 1)] * 11
    assert sorted(call.number or 0 for call in relay.provider.calls) == list(range(1, 12))


async def test_a_name_that_cannot_be_resolved_yet_is_waited_for(
    relay: Relay, log: MemoryLog, names: NameServer
) -> None:
    names.away = socket.gaierror(socket.EAI_AGAIN, "busy")
    asking = asyncio.ensure_future(relay.ask(1))
    await wait_until(lambda: names.asked > 3, "some look-ups")
    names.away = None
    assert (await asking).status == 200
    ((connects, sends),) = attempts(log)
    assert (connects, sends) == (names.asked, 1)
    assert len(relay.provider.calls) == 1


async def test_a_provider_that_refuses_and_comes_back_gets_every_call_once(
    relay: Relay, log: MemoryLog, names: NameServer
) -> None:
    port = relay.provider.port
    await relay.provider.stop()
    asking = [asyncio.ensure_future(relay.ask(number)) for number in range(1, 21)]
    await wait_until(lambda: names.asked > 3, "some connects")
    await relay.provider.start(port)
    assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 20
    assert all(connects > 1 and sends == 1 for connects, sends in attempts(log))
    assert sorted(call.number or 0 for call in relay.provider.calls) == list(range(1, 21))


@pytest.mark.parametrize("relay_settings", [{"connect_seconds": 0.3}])
async def test_a_provider_that_stays_away_is_given_up_and_the_row_says_how_often(
    relay: Relay, log: MemoryLog
) -> None:
    port = relay.provider.port
    await relay.provider.stop()
    answer = await relay.ask(1)
    ((connects, sends),) = attempts(log)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert answer.error["message"].endswith(f"(Connection refused), tried {connects} times")
    assert connects > 2 and sends == 0
    await relay.provider.start(port)  # for the fixture, which stops it


@pytest.mark.parametrize("behaviour", ["reset_before_headers", "close_before_headers"])
async def test_what_a_provider_may_have_seen_is_not_sent_again(
    relay: Relay, log: MemoryLog, behaviour: str
) -> None:
    assert (await relay.ask(1, behaviour)).status == 502
    assert attempts(log) == [(1, 1)]
    assert len(relay.provider.calls) == 1
