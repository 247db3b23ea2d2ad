"""The process has to go while calls are under way: they end visibly, and say so in the log."""

import json

import pytest

from known_content import answer_content
from memory_log import MemoryLog
from open_llm_proxy.server.relay import client_response
from open_llm_proxy.server.relay.stream_error import StreamError
from relay_calls import MIB, Relay, events, held_up, quickly

pytest_plugins = ("relay_fixtures",)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_without_an_answer_is_told_to_come_again(
    relay: Relay, log: MemoryLog, stream: bool
) -> None:
    async with relay.asking(1, "silent", stream=stream) as client:
        call = await relay.provider.call(1)
        relay.services.lifecycle.refusing = True
        relay.services.lifecycle.interrupt_all()
        answer = await quickly(client.answer())
        await quickly(call.closed.wait())
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert (answer.header("Retry-After"), answer.header("Connection")) == ("1", "close")
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("interrupted", 503)


async def test_a_stream_ends_with_an_error_and_without_done(relay: Relay, log: MemoryLog) -> None:
    async with relay.asking(1, "stall_mid_stream", stream=True) as client:
        answer = await client.begin()
        while answer.body.count(b"\n\n") < 3:
            answer.body += await client.piece()
        relay.services.lifecycle.interrupt_all()
        await quickly(client.finish(answer))
    assert json.loads(events(answer.body)[-1])["error"]["code"] == "shutting_down"
    assert not answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("interrupted", 200)
    assert answer_content(1).startswith(response["content"])
    assert await relay.services.lifecycle.wait_idle(5.0)


async def test_a_call_whose_entry_is_not_stored_yet_is_not_made_any_more(
    relay: Relay, log: MemoryLog
) -> None:
    log.openings.hold()
    async with relay.asking(1) as client:
        await log.changes.until(lambda: log.openings.arrived, "the entry is handed over")
        relay.services.lifecycle.interrupt_all()
        log.openings.release()
        assert (await client.answer()).status == 503
    assert log.the_call()[1]["outcome"] == "interrupted" and not relay.provider.calls


async def test_a_call_that_is_only_waiting_for_its_closing_entry_gets_its_end(
    relay: Relay, log: MemoryLog
) -> None:
    log.closings.hold()
    async with relay.asking(1, stream=True) as client:
        await log.changes.until(lambda: log.closings.arrived, "the call is closed")
        relay.services.lifecycle.interrupt_all()
        log.closings.release()
        answer = await client.answer()
    assert events(answer.body)[-1] == "[DONE]" and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


async def test_a_client_that_takes_nothing_does_not_hold_the_process_up(
    relay: Relay, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than any kernel would take in the client's place.
    monkeypatch.setattr(StreamError, "event", lambda error, body: b":" * 32 * MIB)
    monkeypatch.setattr(client_response, "ERROR_EVENT_SECONDS", 0.1)
    async with relay.asking(1, "big", stream=True, megabytes=100) as client:
        await client.begin()
        client.stop_reading()
        call = await relay.provider.call(1)
        await held_up(call)
        relay.services.lifecycle.interrupt_all()
        assert await relay.services.lifecycle.wait_idle(5.0)
    assert log.the_call()[1]["outcome"] == "interrupted"
