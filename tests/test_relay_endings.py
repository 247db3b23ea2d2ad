"""Streams whose last event says that they are complete, and whose HTTP does not end there."""

import asyncio
from collections.abc import Callable

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.relay import call as relayed_call
from open_llm_proxy.server.relay.client_response import ClientResponse
from provider_behaviours import Behaviour
from provider_exchange import Exchange
from relay_calls import DELTA, DONE, STOP, Relay, quickly

pytest_plugins = ("relay_fixtures",)


async def test_a_complete_stream_is_not_kept_open_by_a_provider_that_does_not_end_it(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str]
) -> None:
    async def never_ends(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(DELTA + STOP + DONE)
        await exchange.until_client_leaves()

    answer = await asyncio.wait_for(relay.ask(1, behave(never_ends), stream=True), 5)
    assert answer.body == DELTA + STOP + DONE and answer.is_complete
    assert (await relay.provider.call(1)).closed.is_set()
    _, response = log.the_call()
    assert (response["outcome"], response["finish_reason"]) == ("ok", "stop")


async def test_a_connection_that_breaks_behind_a_complete_stream_takes_nothing_back(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str]
) -> None:
    async def closes(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(DELTA + STOP + DONE)
        exchange.keep_alive = False  # and no last chunk

    answer = await relay.ask(1, behave(closes), stream=True)
    assert answer.body == DELTA + STOP + DONE and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


async def test_a_stream_that_goes_on_behind_its_end_is_closed_in_the_log_and_passes(
    relay: Relay,
    log: MemoryLog,
    behave: Callable[[Behaviour], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has to be held of it would be without bounds: the entry is made earlier."""
    monkeypatch.setattr(relayed_call, "END_PATIENCE_SECONDS", 10.0)
    filler = b": " + b"x" * 65_000 + b"\n\n"

    async def goes_on(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(DELTA + STOP + DONE)
        for _ in range(100):
            await exchange.send_chunk(filler)
        await log.closed()
        await exchange.send_chunk(filler)
        await exchange.send(b"0\r\n\r\n")

    answer = await relay.ask(1, behave(goes_on), stream=True)
    assert answer.body == DELTA + STOP + DONE + 101 * filler and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


async def test_a_client_that_leaves_while_such_an_entry_is_being_stored(
    relay: Relay,
    log: MemoryLog,
    behave: Callable[[Behaviour], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relayed_call, "END_PATIENCE_SECONDS", 10.0)

    async def goes_on(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(DELTA + STOP + DONE)
        while True:
            await exchange.send_chunk(b": " + b"x" * 65_000 + b"\n\n")

    log.closings.hold()
    async with relay.asking(1, behave(goes_on), stream=True) as client:
        await log.changes.until(lambda: log.closings.arrived, "the closing entry is handed over")
        client.reset()
        await quickly((await relay.provider.call(1)).closed.wait())
        log.closings.release()
    assert (await log.closed())["outcome"] == "ok"
    log.the_call()


@pytest.mark.parametrize("relay_settings", [{"transcript_max_bytes": 1000}])
@pytest.mark.parametrize(
    "start",
    [
        b'{"type":"response.completed","response":{"status":"completed"}',
        b'{"response":{"status":"incomplete"},"type":"response.incomplete"',
    ],
)
@pytest.mark.parametrize("megabytes", [2, 6])
async def test_a_last_event_too_large_for_the_log_is_the_end_all_the_same(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str], start: bytes, megabytes: int
) -> None:
    event = b"data: " + start + b',"image":"' + b"A" * (megabytes * 1_000_000) + b'"}\n\n'

    async def stream(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(event)
        await exchange.send(b"0\r\n\r\n")

    answer = await relay.ask(1, behave(stream), stream=True, path="/v1/responses")
    assert answer.body == event and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


@pytest.mark.parametrize("body", [DELTA, b": nothing but a comment\n\n", b""])
async def test_a_stream_that_merely_stops_passes_and_is_called_an_error(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str], body: bytes
) -> None:
    async def stops(exchange: Exchange) -> None:
        await exchange.begin_stream()
        if body:
            await exchange.send_chunk(body)
        await exchange.send(b"0\r\n\r\n")

    answer = await relay.ask(1, behave(stops), stream=True)
    assert answer.body == body and answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_error", 200)
    assert "without a finish_reason" in response["error"]


async def test_a_client_has_time_to_read_the_error_event_before_the_cut(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chromium drops what it has not read when the cut comes together with it."""
    has_read = asyncio.Event()

    async def until_read(client: ClientResponse) -> None:
        await has_read.wait()

    monkeypatch.setattr(ClientResponse, "_pause_before_the_cut", until_read)
    async with relay.asking(1, "reset_mid_chunk", stream=True) as client:
        answer = await client.begin()
        while b"upstream_error" not in answer.body:
            answer.body += await client.piece()
        end = asyncio.ensure_future(client.finish(answer))
        await relay.turns()
        assert not end.done()
        has_read.set()
        await end
    assert not answer.is_complete
