"""A rollout of plain processes behind a real balancer: no call is refused, broken off or lost.

Two servers on one LOG_QUEUE_DIR take turns, as the pods of a surging rollout do: the new one starts
beside the old one, and the old one leaves once the balancer uses the new one. tests/cluster does
the same on a cluster, and longer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import broken_variants
from haproxy import HAProxy, haproxy_program
from proxy_process import PROXY_KEY, SERVE_ARGV, ProxyProcess, one_provider
from rollout_load import Clients, RolloutLoad
from scripted_provider import ProviderProcess
from stores import DirectoryStore

pytestmark = [
    pytest.mark.timeout(seconds=120),
    pytest.mark.skipif(haproxy_program() is None, reason="no haproxy; apt-get install haproxy"),
]

TURNS = 2
WINDOW_SECONDS = 1
# Longer than HAProxy takes to see that a server is not ready any more.
SHUTDOWN_DELAY_SECONDS = 1.5
# Some are idle for longer than that, and are not told that their server leaves.
CLIENTS = Clients(busy=2, fresh=2, slow=2, slow_seconds=2.0, idle=6, idle_seconds=(1.6, 2.6))


@dataclass
class Rollout:
    """The servers `a` and `b` behind HAProxy, of which one runs at first."""

    haproxy: HAProxy
    servers: dict[str, ProxyProcess]
    serving: str = "a"

    async def start(self) -> None:
        await self.servers["a"].start()
        await self.haproxy.sees("a", "UP")
        await self.haproxy.sees("b", "DOWN")

    async def turn(self) -> None:
        """The other server starts and this one leaves."""
        old, new = self.serving, "b" if self.serving == "a" else "a"
        await self.servers[new].start()
        await self.haproxy.sees(new, "UP")
        assert await self.servers[old].stop() == 0
        self.serving = new
        await self.haproxy.sees(old, "DOWN")


@pytest.fixture
def new_rollout(
    tmp_path: Path,
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> Iterator[Callable[..., Rollout]]:
    made: list[HAProxy] = []

    def make(delay_seconds: float, variant: str = "") -> Rollout:
        argv = broken_variants.argv(variant) if variant else SERVE_ARGV
        settings = {
            **directory_store.env(),
            "LOG_QUEUE_DIR": str(tmp_path / "queue"),
            "FLUSH_INTERVAL_SECONDS": str(WINDOW_SECONDS),
            "SHUTDOWN_DELAY_SECONDS": str(delay_seconds),
        }
        config = one_provider(provider_process.url)
        servers = {name: start_proxy(config, settings, name=name, argv=argv) for name in ("a", "b")}
        for server in servers.values():
            server.queue_folder = tmp_path / "queue"
        made.append(HAProxy(tmp_path, {name: server.port for name, server in servers.items()}))
        return Rollout(made[-1], servers)

    yield make
    for haproxy in made:
        haproxy.close()


async def test_no_call_is_refused_broken_or_lost_while_servers_take_turns(
    new_rollout: Callable[..., Rollout],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> None:
    rollout = new_rollout(SHUTDOWN_DELAY_SECONDS)
    await rollout.start()
    urls = (rollout.haproxy.http_url, rollout.haproxy.tcp_url)
    async with RolloutLoad(urls, PROXY_KEY, CLIENTS) as load:
        for _ in range(TURNS):
            await load.answered_more(30)
            await rollout.turn()
        await load.answered_more(30)
    assert not load.trouble()
    server = rollout.servers[rollout.serving]
    await server.drained()
    assert await server.stop() == 0
    verdict = load.verdict(directory_store.objects(), provider_process.seen(), WINDOW_SECONDS)
    assert not verdict.violations, str(verdict)
    assert verdict.answered == len(load.record.sent)
    assert verdict.queues == TURNS + 1


@pytest.mark.parametrize(
    ("delay_seconds", "variant"),
    [
        pytest.param(0, "", id="leaves at once"),
        pytest.param(
            SHUTDOWN_DELAY_SECONDS,
            "open_connections_refused",
            id="open connections refused",
            marks=pytest.mark.long,
        ),
    ],
)
async def test_the_same_test_notices_a_server_that_refuses(
    new_rollout: Callable[..., Rollout], delay_seconds: float, variant: str
) -> None:
    rollout = new_rollout(delay_seconds, variant)
    await rollout.start()
    urls = (rollout.haproxy.http_url, rollout.haproxy.tcp_url)
    clients = replace(CLIENTS, slow_seconds=3.0)
    async with RolloutLoad(urls, PROXY_KEY, clients) as load:
        await load.answered_more(30)
        await rollout.turn()
    assert load.trouble()
