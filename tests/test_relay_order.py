"""The order of things: entry before call, closing entry before the answer's end."""

import asyncio
import zlib
from collections.abc import Callable

import openai
import pytest

from known_content import answer_content
from memory_log import MemoryLog
from open_llm_proxy.queue.errors import QueueBroken, QueueError, QueueFull
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.entries.call_entries import CallEntries
from provider_behaviours import Behaviour
from provider_exchange import Exchange
from raw_client import request
from relay_calls import BEARER, CHAT, DELTA, DONE, STOP, Relay, chat_fields, events

pytest_plugins = ("relay_fixtures",)

EVENT_STREAM = (("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))


def behaviour_of(*chunks: bytes, kind: str = "text/event-stream") -> Behaviour:
    """A chunked answer in these pieces, each sent by itself, and its orderly end."""

    async def taught(exchange: Exchange) -> None:
        headers = (("Content-Type", kind), ("Transfer-Encoding", "chunked"))
        await exchange.send_head(200, headers)
        for data in chunks:
            await exchange.send_chunk(data)
            await asyncio.sleep(0.01)  # so that each is a read of its own
        await exchange.send(b"0\r\n\r\n")

    return taught


async def test_the_provider_sees_nothing_of_a_call_before_its_request_entry_is_durable(
    relay: Relay, log: MemoryLog
) -> None:
    log.openings.hold()
    async with relay.asking(1) as client:
        await log.changes.until(lambda: log.openings.arrived, "the entry is handed over")
        await relay.turns()
        assert not relay.provider.seen and not log.rows
        log.openings.release()
        assert (await client.answer()).status == 200
    assert relay.provider.seen == {1}
    log.the_call()


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "at the commit"])
@pytest.mark.parametrize("error", [QueueFull("no room"), QueueBroken("the file failed")], ids=repr)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_cannot_be_logged_is_not_made(
    relay: Relay, log: MemoryLog, stream: bool, error: QueueError, at_once: bool
) -> None:
    if at_once:
        log.openings.refusal = error
    else:
        log.openings.error = error
    answer = await relay.ask(1, stream=stream)
    assert (answer.status, answer.error["code"]) == (503, "log_queue_unavailable")
    assert str(error) in answer.error["message"] and answer.header("Retry-After") == "5"
    assert not relay.provider.seen and not log.rows and not log.closed_twice
    metrics = relay.services.metrics.page({}).decode()
    assert 'open_llm_proxy_refused_total{code="log_queue_unavailable"} 1.0' in metrics
    assert "open_llm_proxy_requests_total{" not in metrics


async def test_a_refused_call_is_answered_after_both_its_rows_are_durable(
    relay: Relay, log: MemoryLog
) -> None:
    log.rejections.hold()
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, b"{}", (BEARER,)))
        await log.changes.until(lambda: log.rejections.arrived, "the rows are handed over")
        answer = asyncio.ensure_future(client.answer())
        await relay.turns()
        assert not answer.done()
        log.rejections.release()
        assert (await answer).error["code"] == "missing_model"
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("rejected", 400)


async def test_a_refused_call_that_cannot_be_logged_says_so(relay: Relay, log: MemoryLog) -> None:
    log.rejections.error = QueueFull("no room")
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, b"{}", (BEARER,)))
        assert (await client.answer()).error["code"] == "log_queue_unavailable"


WHOLE = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
RESPONSES_DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","output_index":0,"delta":"x"}\n\n'
)
RESPONSES_END = (
    b"event: response.completed\n"
    b'data: {"type":"response.completed","response":{"object":"response","status":"completed"}}\n\n'
)
TYPE_LATER = b'data: {"response":{"object":"response"},"type":"response.completed"}\n\n'


@pytest.mark.parametrize(
    ("kind", "chunks", "before", "held"),
    [
        pytest.param("application/json", [WHOLE], b"", WHOLE, id="a body in one piece"),
        pytest.param("application/json", [WHOLE[:9], WHOLE[9:]], WHOLE[:9], WHOLE[9:], id="two"),
        pytest.param("text/event-stream", [DELTA, STOP, DONE], DELTA + STOP, DONE, id="stream"),
        pytest.param(
            "text/event-stream",
            [DELTA, STOP, b"dat", b"a: [DO", b"NE]\n\n"],
            DELTA + STOP,
            DONE,
            id="its end in pieces",
        ),
        pytest.param("text/event-stream", [DELTA + STOP], DELTA + STOP, b"", id="without [DONE]"),
        pytest.param(
            "text/event-stream",
            [RESPONSES_DELTA, RESPONSES_END],
            RESPONSES_DELTA,
            RESPONSES_END,
            id="responses",
        ),
        pytest.param(
            "text/event-stream",
            [RESPONSES_DELTA, TYPE_LATER + DONE],
            RESPONSES_DELTA,
            TYPE_LATER + DONE,
            id="responses, its type last",
        ),
        pytest.param(
            "text/event-stream",
            [RESPONSES_DELTA, TYPE_LATER[:-1], TYPE_LATER[-1:]],
            RESPONSES_DELTA + TYPE_LATER[:-1],
            TYPE_LATER[-1:],
            id="responses, its type last, in pieces",
        ),
    ],
)
async def test_the_end_of_an_answer_waits_until_the_closing_entry_is_durable(
    relay: Relay,
    log: MemoryLog,
    behave: Callable[[Behaviour], str],
    kind: str,
    chunks: list[bytes],
    before: bytes,
    held: bytes,
) -> None:
    log.closings.hold()
    path = "/v1/responses" if b"response." in b"".join(chunks) else CHAT
    async with relay.asking(1, behave(behaviour_of(*chunks, kind=kind)), path=path) as client:
        await log.changes.until(lambda: log.closings.arrived, "the closing entry is handed over")
        if before:
            answer = await client.begin()
            while len(answer.body) < len(before):
                answer.body += await client.piece()
            assert answer.body == before
        rest = asyncio.ensure_future(client.piece() if before else client.begin())
        await relay.turns()
        assert not rest.done() and not log.responses
        log.closings.release()
        if not before:
            answer = await rest  # type: ignore[assignment]
        else:
            answer.body += await rest  # type: ignore[operator]
        await client.finish(answer)
    assert answer.body == before + held and answer.is_complete
    _, response = log.the_call()
    assert response["outcome"] == "ok"


async def test_a_length_of_a_stream_does_not_give_its_end_away(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str]
) -> None:
    async def with_length(exchange: Exchange) -> None:
        await exchange.send_body(200, DELTA + STOP, (("Content-Type", "text/event-stream"),))

    log.closings.hold()
    async with relay.asking(1, behave(with_length), stream=True) as client:
        answer = await client.begin()
        assert answer.header("Content-Length") is None
        answer.body += await client.piece()
        rest = asyncio.ensure_future(client.finish(answer))
        await relay.turns()
        assert not rest.done()
        log.closings.release()
        await rest
    assert answer.body == DELTA + STOP and answer.is_complete


async def test_the_end_of_a_compressed_stream_waits_as_well(relay: Relay, log: MemoryLog) -> None:
    log.closings.hold()
    async with relay.asking(1, "gzipped", stream=True) as client:
        answer = await client.begin()
        rest = asyncio.ensure_future(client.finish(answer))
        await log.changes.until(lambda: log.closings.arrived, "the closing entry is handed over")
        await relay.turns()
        assert b"[DONE]" not in zlib.decompressobj(31).decompress(answer.body)
        log.closings.release()
        await rest
    assert zlib.decompress(answer.body, 31).endswith(DONE)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_is_not_done_with_an_answer_whose_entry_is_not_durable(
    relay: Relay, log: MemoryLog, stream: bool
) -> None:
    async def read_all() -> str:
        async with relay.sdk() as sdk:
            fields = chat_fields(1, stream=stream)
            if not stream:
                completion = await sdk.chat.completions.create(**fields)
                return completion.choices[0].message.content or ""
            chunks = await sdk.chat.completions.create(**fields)
            return "".join([c.choices[0].delta.content or "" async for c in chunks])

    log.closings.hold()
    reading = asyncio.ensure_future(read_all())
    await log.changes.until(lambda: log.closings.arrived, "the closing entry is handed over")
    await relay.turns()
    assert not reading.done()
    log.closings.release()
    assert await reading == answer_content(1)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "at the commit"])
async def test_an_answer_whose_closing_entry_cannot_be_stored_is_not_given(
    relay: Relay, log: MemoryLog, at_once: bool
) -> None:
    _break_closings(log, at_once)
    answer = await relay.ask(1)
    assert (answer.status, answer.error["code"]) == (503, "log_queue_unavailable")
    assert answer_content(1) not in answer.body.decode()
    assert relay.provider.seen == {1} and not log.closed_twice


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "at the commit"])
async def test_a_stream_whose_closing_entry_cannot_be_stored_ends_visibly(
    relay: Relay, log: MemoryLog, at_once: bool
) -> None:
    _break_closings(log, at_once)
    answer = await relay.ask(1, stream=True)
    assert not answer.is_complete and "[DONE]" not in events(answer.body)
    assert '"code": "log_queue_unavailable"' in events(answer.body)[-1]
    assert not log.closed_twice
    with pytest.raises(openai.APIError, match="cannot be logged"):
        async with relay.sdk() as sdk:
            async for _ in await sdk.chat.completions.create(**chat_fields(2, stream=True)):
                pass


def _break_closings(log: MemoryLog, at_once: bool) -> None:
    if at_once:
        log.closings.refusal = QueueBroken("the file failed")
    else:
        log.closings.error = QueueBroken("the file failed")


@pytest.mark.parametrize("expected_warnings", [["The answer of call"]])
async def test_an_answer_that_cannot_be_made_into_an_entry_is_closed_without_its_texts(
    relay: Relay, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CallEntries.response

    def fails_on_a_transcript(entries: CallEntries, result: CallResult) -> object:
        if result.transcript is not None:
            raise RuntimeError("a defect in the code that makes entries")
        return whole(entries, result)

    monkeypatch.setattr(CallEntries, "response", fails_on_a_transcript)
    answer = await relay.ask(1)
    assert answer.status == 200 and answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("ok", 200)
    assert response["content"] is None and "could not be logged" in response["error"]
