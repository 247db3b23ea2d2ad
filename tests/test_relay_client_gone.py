"""The client leaves: the provider is told at once, the entry says so once, nobody complains."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from known_content import answer_content
from memory_log import MemoryLog, Row
from open_llm_proxy.server.relay.client_response import ClientResponse
from open_llm_proxy.server.relay.handler import RelayHandler
from provider_behaviours import Behaviour
from provider_exchange import Call, Exchange
from raw_client import RawClient, request
from relay_calls import BEARER, CHAT, Relay, chat, held_up, quickly

pytest_plugins = ("relay_fixtures",)

# The product's promise is 0.1 s; a test on a busy machine gets more.
TOLD_WITHIN_SECONDS = 1.0


async def leave(client: RawClient, how: str) -> float:
    """Leave in an orderly way or with a reset; returns the moment."""
    moment = time.monotonic()
    if how == "reset":
        client.reset()
    else:
        await client.close()
    return moment


async def told(call: Call, left_at: float) -> None:
    """The provider's socket is closed in time."""
    await asyncio.wait_for(call.closed.wait(), TOLD_WITHIN_SECONDS)
    assert call.closed_at is not None
    assert call.closed_at - left_at < TOLD_WITHIN_SECONDS


async def disconnected(log: MemoryLog) -> Row:
    """The one response row, which says that the client left."""
    await log.closed()
    _, response = log.the_call()
    assert response["outcome"] == "client_disconnected"
    assert response["latency_ms"] is not None and response["latency_ms"] >= 0
    assert response["deadline"] is None
    return response


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_while_the_provider_is_silent(
    relay: Relay, log: MemoryLog, stream: bool, how: str
) -> None:
    async with relay.asking(1, "silent", stream=stream) as client:
        call = await relay.provider.call(1)
        await told(call, await leave(client, how))
    response = await disconnected(log)
    assert response["status"] is None and response["content"] is None


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_between_the_head_of_a_stream_and_its_first_event(
    relay: Relay, log: MemoryLog, how: str
) -> None:
    async with relay.asking(1, "stall_after_headers", stream=True) as client:
        assert (await client.begin()).status == 200
        await told(await relay.provider.call(1), await leave(client, how))
    assert (await disconnected(log))["status"] == 200


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_between_two_events(relay: Relay, log: MemoryLog, how: str) -> None:
    async with relay.asking(1, "stall_mid_stream", stream=True) as client:
        await client.begin()
        received = b""
        while received.count(b"\n\n") < 3:
            received += await client.piece()
        await told(await relay.provider.call(1), await leave(client, how))
    response = await disconnected(log)
    assert answer_content(1).startswith(response["content"]) and response["ttft_ms"] is not None


async def test_while_events_are_passing(relay: Relay, log: MemoryLog) -> None:
    async with relay.asking(1, "slow", stream=True, pace=0.001) as client:
        await client.begin()
        await client.piece()
        await told(await relay.provider.call(1), await leave(client, "close"))
    assert (await disconnected(log))["content"]


async def test_while_it_is_too_slow_to_take_what_comes(relay: Relay, log: MemoryLog) -> None:
    async with relay.asking(1, "big", stream=True, megabytes=100) as client:
        await client.begin()
        client.stop_reading()
        call = await relay.provider.call(1)
        await held_up(call)
        await told(call, await leave(client, "close"))
    await disconnected(log)


@pytest.mark.parametrize("pieces", [1, 2])
async def test_within_a_body_that_is_no_stream(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str], pieces: int
) -> None:
    half = asyncio.Event()

    async def stalls(exchange: Exchange) -> None:
        await exchange.send_head(200, (("Content-Length", "99"),))
        for _ in range(pieces):
            await exchange.send(b'{"choices":[')
            await asyncio.sleep(0.02)
        half.set()
        await exchange.until_client_leaves()

    async with relay.asking(1, behave(stalls)) as client:
        await half.wait()
        await told(await relay.provider.call(1), await leave(client, "close"))
    assert (await disconnected(log))["status"] == 200


async def test_while_the_request_is_still_coming(relay: Relay, log: MemoryLog) -> None:
    raw = request("POST", CHAT, chat(1), (BEARER,))
    async with relay.connection() as client:
        await client.send(raw[:-10])
        await leave(client, "close")
    assert (await relay.ask(2)).status == 200
    assert relay.provider.seen == {2}
    log.the_call()


@pytest.mark.parametrize("stream", [False, True])
async def test_right_behind_the_request(relay: Relay, log: MemoryLog, stream: bool) -> None:
    async with relay.asking(1, "silent", stream=stream) as client:
        await leave(client, "close")
    await disconnected(log)
    assert all(call.closed.is_set() for call in relay.provider.calls)


async def test_while_the_request_entry_is_being_stored(relay: Relay, log: MemoryLog) -> None:
    log.openings.hold()
    async with relay.asking(1) as client:
        await log.changes.until(lambda: log.openings.arrived, "the entry is handed over")
        await leave(client, "close")
        await relay.turns()
        log.openings.release()
    await disconnected(log)
    assert not relay.provider.seen


async def test_while_the_rows_of_a_refusal_are_being_stored(relay: Relay, log: MemoryLog) -> None:
    log.rejections.hold()
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, b"{}", (BEARER,)))
        await log.changes.until(lambda: log.rejections.arrived, "the rows are handed over")
        await leave(client, "close")
        log.rejections.release()
    await log.closed()
    assert log.the_call()[1]["outcome"] == "rejected"


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_while_the_closing_entry_is_being_stored(
    relay: Relay, log: MemoryLog, stream: bool, how: str, noticed: bool
) -> None:
    """The answer was complete by then, and the entry is written: it stays as it is."""
    log.closings.hold()
    async with relay.asking(1, stream=stream) as client:
        await log.changes.until(lambda: log.closings.arrived, "the call is closed")
        await leave(client, how)
        if noticed:
            await relay.turns()
        log.closings.release()
    assert (await log.closed())["outcome"] == "ok"
    log.the_call()
    assert (await relay.ask(2, "error", status=400)).status == 400


async def test_before_the_closing_entry_is_made(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str]
) -> None:
    """The last byte of the answer and the client's end come in one turn of the loop."""
    ready = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
        await exchange.send_head(200, (("Content-Length", str(len(body))),))
        await ready.wait()
        await exchange.send(body)

    async with relay.asking(1, behave(waits)) as client:
        await relay.provider.call(1)
        ready.set()
        client.reset()
    response = await log.closed()
    assert response["outcome"] in ("ok", "client_disconnected")
    log.the_call()


async def test_in_the_moment_in_which_something_is_written(
    relay: Relay, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write finds the connection closed before the loop has told anybody."""
    begin = ClientResponse.begin

    def closed_before(client: ClientResponse, *head: Any, is_stream: bool) -> None:
        client._connection.close()
        begin(client, *head, is_stream=is_stream)

    monkeypatch.setattr(ClientResponse, "begin", closed_before)
    monkeypatch.setattr(RelayHandler, "client_left", lambda handler: None)
    async with relay.asking(1, stream=True) as client:
        await client.everything()
    assert (await disconnected(log))["status"] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_in_the_moment_in_which_the_end_is_written(
    relay: Relay, log: MemoryLog, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async def closed_before(client: ClientResponse, held: bytes) -> None:
        client._connection.close()
        client._answer.end(held)

    monkeypatch.setattr(ClientResponse, "end", closed_before)
    async with relay.asking(1, stream=stream) as client:
        await client.everything()
    assert log.the_call()[1]["outcome"] == "ok"


async def test_behind_its_answer(relay: Relay, log: MemoryLog) -> None:
    async with relay.asking(1) as client:
        assert (await client.answer()).is_complete
        await leave(client, "reset")
    assert log.the_call()[1]["outcome"] == "ok"
    assert not (await relay.provider.call(1)).closed.is_set(), "the connection is kept"


async def test_many_at_once(relay: Relay, log: MemoryLog) -> None:
    """A browser tab that is closed, an ingress that restarts."""
    count = 50
    clients = [RawClient(relay.port) for _ in range(count)]
    for number, client in enumerate(clients):
        await client.__aenter__()
        behaviour = "silent" if number % 2 else "stall_mid_stream"
        body = chat(number, behaviour, stream=bool(number % 2))
        await client.send(request("POST", CHAT, body, (BEARER,)))
    await relay.provider.arrived(count)
    left_at = time.monotonic()
    for client in clients:
        client.reset()
    for number in range(count):
        await told(await relay.provider.call(number), left_at)
    await log.closed(count)
    assert {row["outcome"] for row in log.responses} == {"client_disconnected"}
    assert len(log.requests) == len(log.responses) == count and not log.closed_twice
    assert not relay.services.lifecycle.calls


async def test_the_sdk_is_closed_in_the_middle_of_a_stream(relay: Relay, log: MemoryLog) -> None:
    async with relay.sdk() as sdk:
        stream = await sdk.chat.completions.create(
            model="kimi",
            messages=[{"role": "user", "content": "call 000001: slow pace=0.005"}],
            stream=True,
        )
        async for _ in stream:
            break
        await stream.close()
        await quickly((await relay.provider.call(1)).closed.wait())
    await disconnected(log)
