"""Which connections the upstream client keeps, shares, drops, replaces and waits for."""

import asyncio
from typing import Any

import pytest

import wire
from open_llm_proxy.server.upstream import response as upstream_response
from open_llm_proxy.server.upstream.client import (
    ConnectFailed,
    ConnectionLost,
    FetchTimeout,
    StreamingRequest,
    Timeouts,
)
from raw_server import (
    RawConnection,
    Script,
    ScriptedResolver,
    answer_all,
    answering,
    ok,
    reset,
    response,
    serving,
)
from waiting import wait_until

pytest_plugins = ("upstream_fixtures",)


class Gate:
    """A script that answers each request when the test says so, and keeps the connection."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Event]] = []

    async def __call__(self, connection: RawConnection) -> None:
        async for request in connection.more_requests():
            answer = asyncio.Event()
            self.waiting.append((request.target, answer))
            await answer.wait()
            await connection.send(ok(request.target.encode()))

    async def arrived(self, target: str) -> asyncio.Event:
        """The event that lets the request for `target` be answered, once it has arrived."""
        return await wait_until(
            lambda: next((event for path, event in self.waiting if path == target), None),
            f"{target} reaches the server",
            poll_seconds=0.001,
        )


async def test_requests_one_after_the_other_share_a_connection_and_parallel_ones_do_not(
    certificates: wire.Certificates,
) -> None:
    async with serving(answer_all, certificates=certificates) as (server, client):
        for _ in range(3):
            await client.fetch(server.url)
        assert (client.connections_opened, client.idle_connections) == (1, 1)
        await asyncio.gather(*(client.fetch(server.url) for _ in range(5)))
        assert (client.connections_opened, client.idle_connections) == (5, 5)


async def test_other_hosts_do_not_share_a_connection() -> None:
    async with serving(answer_all) as (server, client):
        await client.fetch(server.url)
        await client.fetch(server.url.replace("127.0.0.1", "localhost"))
        assert (client.connections_opened, client.idle_connections) == (2, 2)


async def test_no_more_connections_are_kept_than_max_idle_and_the_oldest_goes() -> None:
    gate = Gate()
    async with serving(gate, max_idle_per_host=2) as (server, client):
        fetches = {name: client.fetch(server.url + name) for name in "abc"}
        for name, fetch in fetches.items():
            (await gate.arrived("/" + name)).set()
            await fetch
        assert client.idle_connections == 2
        await wait_until(lambda: server.open == 2, "one connection is closed")
        last = client.fetch(server.url + "d")
        (await gate.arrived("/d")).set()
        await last
        # The youngest serves again.
        assert ["/c", "/d"] in [[r.target for r in c.requests] for c in server.connections]
        assert client.connections_opened == 3


async def test_none_are_kept_with_max_idle_0() -> None:
    async with serving(answer_all, max_idle_per_host=0) as (server, client):
        await client.fetch(server.url)
        assert client.idle_connections == 0
        await server.all_closed()


async def test_an_idle_connection_expires() -> None:
    async with serving(answer_all, idle_expiry_seconds=0.03) as (server, client):
        await client.fetch(server.url)
        assert client.idle_connections == 1
        await server.all_closed()
        assert client.idle_connections == 0
        await client.fetch(server.url)
        assert client.connections_opened == 2


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_an_idle_connection_that_the_server_ends_leaves_the_pool_at_once(
    how: str, certificates: wire.Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    idle = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(ok(b"x"))
        await idle.wait()
        if how == "reset":
            connection.reset()

    async with serving(script, certificates=certificates) as (server, client):
        await client.fetch(server.url)
        assert client.idle_connections == 1
        idle.set()
        await wait_until(lambda: client.idle_connections == 0, "the pool is empty")
        await client.fetch(server.url)
        assert (client.connections_opened, client.stale_retries) == (2, 0)
    assert not caplog.records


@pytest.mark.parametrize("seen_by_loop", [True, False])
async def test_bytes_that_nobody_asked_for_are_never_taken_for_an_answer(
    seen_by_loop: bool, certificates_or_none: wire.Certificates | None
) -> None:
    async with serving(answer_all, certificates=certificates_or_none) as (server, client):
        assert (await client.fetch(server.url + "one")).body == b"/one"
        # Written by the test itself, so that the kernel holds them when the next fetch begins.
        server.connections[0].writer.write(ok(b"poison"))
        if seen_by_loop:
            for _ in range(5):
                await asyncio.sleep(0.001)
        assert (await client.fetch(server.url + "two")).body == b"/two"
        assert client.connections_opened == 2


async def test_at_the_limit_requests_wait_their_turn_and_reuse_what_becomes_free() -> None:
    gate = Gate()
    async with serving(gate, max_connections_per_host=1) as (server, client):
        fetches = [client.fetch(f"{server.url}{n}") for n in range(4)]
        for n, fetch in enumerate(fetches):
            answer = await gate.arrived(f"/{n}")
            assert (client.connections_in_use, client.waiting_requests) == (1, 3 - n)
            answer.set()
            await fetch
        assert client.connections_opened == 1
    assert [path for path, _ in gate.waiting] == ["/0", "/1", "/2", "/3"]


async def test_the_limit_of_one_host_does_not_hold_up_another() -> None:
    gate = Gate()
    async with serving(gate, max_connections_per_host=1) as (server, client):
        first = client.fetch(server.url + "a")
        other = client.fetch(server.url.replace("127.0.0.1", "localhost") + "b")
        for name, fetch in (("/b", other), ("/a", first)):
            (await gate.arrived(name)).set()
            await fetch


async def test_waiting_counts_against_the_connect_and_the_total_time_out() -> None:
    gate = Gate()
    async with serving(gate, max_connections_per_host=1) as (server, client):
        first = client.fetch(server.url + "first")
        answer = await gate.arrived("/first")
        short = {
            "connect": Timeouts(connect_seconds=0.03),
            "total": Timeouts(total_seconds=0.03),
        }
        for deadline, timeouts in short.items():
            with pytest.raises(FetchTimeout) as fired:
                await client.fetch(StreamingRequest(server.url, timeouts=timeouts))
            assert fired.value.deadline == deadline
        assert client.waiting_requests == 0
        answer.set()
        assert (await first).body == b"/first"


async def test_a_waiting_request_that_is_cancelled_leaves_no_leak() -> None:
    gate = Gate()
    async with serving(gate, max_connections_per_host=1) as (server, client):
        first = client.fetch(server.url + "first")
        answer = await gate.arrived("/first")
        waiting = [client.fetch(f"{server.url}{n}") for n in range(5)]
        await asyncio.sleep(0)
        assert client.waiting_requests == 5
        for fetch in (waiting[0], waiting[2], waiting[3]):
            fetch.cancel()
        answer.set()
        await first
        # The place has just been handed to the next one, which gives up in the same moment.
        waiting[1].cancel()
        (await gate.arrived("/4")).set()
        assert (await waiting[4]).body == b"/4"
        assert (client.connections_in_use, client.waiting_requests) == (0, 0)
        assert len(client._pool._hosts) == 1
    assert not client._pool._hosts


async def test_closing_the_client_closes_idle_connections_now_and_others_when_they_are_done() -> (
    None
):
    gate = Gate()
    async with serving(gate) as (server, client):
        fetches = [client.fetch(server.url + name) for name in "ab"]
        (await gate.arrived("/a")).set()
        await fetches[0]
        answer = await gate.arrived("/b")
        client.close()
        await wait_until(lambda: server.open == 1, "the idle connection is closed")
        answer.set()
        assert (await fetches[1]).body == b"/b"
        await server.all_closed()


def ends_at_second_request(*steps: Any) -> Script:
    """Answer the first request of the first connection; at the second run `steps` and close.
    Every other connection answers all."""

    async def script(connection: RawConnection) -> None:
        if connection.number > 1:
            await answer_all(connection)
            return
        await connection.request()
        await connection.send(ok(b"first"))
        await answering(*steps)(connection)

    return script


@pytest.mark.parametrize("steps", [(), (reset,)], ids=["closed", "reset"])
async def test_a_request_that_dies_with_a_kept_connection_is_sent_again_on_a_new_one(
    steps: tuple[Any, ...], certificates_or_none: wire.Certificates | None
) -> None:
    script = ends_at_second_request(*steps)
    async with serving(script, certificates=certificates_or_none) as (server, client):
        await client.fetch(server.url)
        answer = await client.fetch(server.url + "again", method="POST", body=b"data")
        assert answer.body == b"/again"
        assert (client.connections_opened, client.stale_retries) == (2, 1)
        assert client.connections_in_use == 0
    assert [request.body for request in server.requests] == [b"", b"data", b"data"]


async def test_a_request_is_sent_again_only_once() -> None:
    async def script(connection: RawConnection) -> None:
        if connection.number <= 2:
            await connection.request()
            await connection.send(ok(b"first"))
            await both_open.wait()
        await connection.request()

    both_open = asyncio.Event()
    async with serving(script) as (server, client):
        # Two kept connections: the second attempt must not take the other one.
        fetches = [client.fetch(server.url), client.fetch(server.url)]
        await server.connected(2)
        await asyncio.gather(*fetches)
        both_open.set()
        with pytest.raises(ConnectionLost) as lost:
            await client.fetch(server.url)
        assert not lost.value.response_started
        assert client.connections_opened == 3
    assert len(server.requests) == 4


@pytest.mark.parametrize("answer", [b"H", response(status=b"102 Processing")], ids=["byte", "1xx"])
async def test_after_a_byte_of_the_answer_nothing_is_sent_again(answer: bytes) -> None:
    async with serving(ends_at_second_request(answer)) as (server, client):
        await client.fetch(server.url)
        with pytest.raises(ConnectionLost) as lost:
            await client.fetch(server.url)
        assert lost.value.response_started
        assert client.connections_opened == 1


async def test_a_kept_connection_that_dies_late_was_at_work_and_nothing_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream_response, "_STALE_SECONDS", 0.0)
    async with serving(ends_at_second_request()) as (server, client):
        await client.fetch(server.url)
        with pytest.raises(ConnectionLost):
            await client.fetch(server.url)
        assert client.connections_opened == 1


async def test_a_failed_second_connection_is_reported_and_leaves_its_place_free() -> None:
    resolver = ScriptedResolver([0, wire.free_port()])
    async with serving(
        ends_at_second_request(),
        resolver=resolver,
        connect_backoff_seconds=0.001,
        max_connections_per_host=1,
    ) as (server, client):
        await client.fetch(server.url)
        request = StreamingRequest(server.url, timeouts=Timeouts(connect_seconds=0.2))
        with pytest.raises(ConnectFailed):
            await client.fetch(request)
        assert request.attempts.sends == 1 and request.attempts.connects > 1
        assert client.connections_in_use == 0
        resolver.answers = [0]
        assert (await client.fetch(server.url)).body == b"/"
