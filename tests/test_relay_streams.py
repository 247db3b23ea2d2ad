"""Streams pass event by event, cut and delayed in whatever way, and usage is asked for unseen."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

import engine_shapes  # noqa: F401  # adds to SHAPES
from known_content import usage
from memory_log import MemoryLog, Row
from provider_behaviours import Behaviour
from provider_exchange import Exchange
from raw_client import RawClient, request
from relay_calls import BEARER, CHAT, Relay, chat, chat_fields, events, quickly
from response_shapes import SHAPES, ResponseShape

pytest_plugins = ("relay_fixtures",)

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
COMMENT = b": waiting %d\n\n"
USAGE_CHUNK = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
LOGS_USAGE = {"log_stream_usage": True}


@pytest.mark.parametrize("provider_config", [{}, LOGS_USAGE], ids=["plain", "usage hidden"])
@pytest.mark.parametrize("line", [EVENT, COMMENT], ids=["events", "comments"])
async def test_each_event_reaches_the_client_before_the_provider_sends_the_next(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str], line: bytes
) -> None:
    taken: asyncio.Queue[bytes] = asyncio.Queue()
    stop = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'

    async def waits_for_the_client(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for number in range(20):
            await exchange.send_chunk(line % number)
            assert await asyncio.wait_for(taken.get(), 10) == line % number
        await exchange.send_chunk(stop)
        await exchange.end_stream()

    async with relay.asking(1, behave(waits_for_the_client), stream=True) as client:
        answer = await quickly(client.begin(), 10)
        for number in range(20):
            event = b""
            while event != line % number:
                event += await quickly(client.piece(), 10)
            taken.put_nowait(event)
        await quickly(client.finish(answer), 10)
    assert answer.body == stop + b"data: [DONE]\n\n" and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


async def test_the_head_of_a_stream_comes_before_its_first_event(relay: Relay) -> None:
    async with relay.asking(1, "stall_after_headers", stream=True) as client:
        assert (await quickly(client.begin(), 10)).status == 200


@pytest.mark.parametrize(
    ("sent", "got"), [(None, "no-cache"), ("no-cache, no-transform", "no-cache, no-transform")]
)
async def test_nothing_between_the_proxy_and_the_client_is_to_buffer_a_stream(
    relay: Relay, behave: Callable[[Behaviour], str], sent: str | None, got: str
) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.begin_stream((("Cache-Control", sent),) if sent else ())
        await exchange.end_stream()

    answer = await relay.ask(1, behave(stream), stream=True)
    assert (answer.header("X-Accel-Buffering"), answer.header("Cache-Control")) == ("no", got)
    whole = await relay.ask(2)
    assert (whole.header("X-Accel-Buffering"), whole.header("Cache-Control")) == (None, None)


@pytest.mark.parametrize("provider_config", [LOGS_USAGE])
async def test_usage_is_asked_for_and_logged_and_not_shown(relay: Relay, log: MemoryLog) -> None:
    shown = await relay.ask(1, stream=True)
    call = await relay.provider.call(1)
    assert call.json == chat_fields(1, stream=True) | {"stream_options": {"include_usage": True}}
    async with RawClient(relay.provider.port) as client:
        await client.send(request("POST", CHAT, chat(1, stream=True)))
        assert shown.body == (await client.answer()).body
    _, response = log.the_call()
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert response[name] == usage(1)[name]


@pytest.mark.parametrize("provider_config", [LOGS_USAGE])
async def test_usage_that_the_client_asks_for_is_shown(relay: Relay, log: MemoryLog) -> None:
    fields = chat_fields(1, stream=True) | {"stream_options": {"include_usage": True}}
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, json.dumps(fields).encode(), (BEARER,)))
        shown = events((await client.answer()).body)
    assert json.loads(shown[-2])["usage"] == usage(1) and shown[-1] == "[DONE]"
    assert (await relay.provider.call(1)).request.body == json.dumps(fields).encode()
    assert log.the_call()[1]["total_tokens"] == usage(1)["total_tokens"]


@pytest.mark.parametrize("provider_config", [LOGS_USAGE])
async def test_everything_beside_the_usage_chunk_passes_byte_for_byte(
    relay: Relay, log: MemoryLog
) -> None:
    odd = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\r\n\r\n: c\n'
    end = b'data:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
    body = odd + USAGE_CHUNK + end
    for pieces in ([body], [bytes([byte]) for byte in body]):
        relay.provider.shapes["it"] = [head % len(body), *pieces]
        answer = await relay.ask(1, "shape", stream=True, name="it")
        assert answer.body == odd + end and answer.is_complete
        assert (log.responses[-1]["prompt_tokens"], log.responses[-1]["outcome"]) == (3, "ok")


async def test_a_provider_that_is_not_to_be_asked_for_usage_gets_the_clients_bytes(
    relay: Relay,
) -> None:
    await relay.ask(1, stream=True)
    assert (await relay.provider.call(1)).request.body == chat(1, stream=True)


# When it was and over which connection, not what was said.
TIMES = {"timestamp", "request_id", "session_id", "latency_ms", "ttft_ms", "upstream_connects"}
STREAMS = [shape for shape in SHAPES if shape.is_stream]


def raw_answer(shape: ResponseShape, edges: list[int]) -> bytes:
    """The shape as a chunked answer whose chunks end at `edges` of its body."""
    body, ends = shape.body, sorted({edge % (len(shape.body) + 1) for edge in edges})
    chunks = [body[a:b] for a, b in zip([0, *ends], [*ends, len(body)], strict=True) if b > a]
    head = f"HTTP/1.1 {shape.status} OK\r\nContent-Type: {shape.content_type}\r\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def timeless(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


@pytest.mark.parametrize("provider_config", [{}, LOGS_USAGE], ids=["plain", "usage hidden"])
def test_streams_that_are_cut_and_delayed_anywhere_stay_the_same(
    io_loop: IOLoop, relay: Relay, log: MemoryLog
) -> None:
    """In each example all shapes of streams at a time, their chunks and writes cut alike."""

    async def ask(name: str, pieces: list[bytes | float]) -> tuple[bytes, dict[str, Any]]:
        relay.provider.shapes[name] = pieces
        mark = ("X-Session-Id", f"{name} {len(log.requests)}")
        answer = await relay.ask(1, "shape", stream=True, headers=(mark,), name=name)
        assert answer.is_complete
        row = next(row for row in log.responses if row["session_id"] == mark[1])
        return answer.body, timeless(row)

    async def ask_all(
        pieces_of: Callable[[ResponseShape], list[bytes | float]],
    ) -> list[tuple[bytes, dict[str, Any]]]:
        calls = [ask(f"shape-{i}", pieces_of(shape)) for i, shape in enumerate(STREAMS)]
        return await asyncio.gather(*calls)

    whole = io_loop.run_sync(lambda: ask_all(lambda shape: [raw_answer(shape, [])]))

    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        chunk_edges=st.lists(st.integers(0, 2000), max_size=8),
        write_edges=st.lists(st.integers(0, 3000), max_size=12),
        pauses=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.004]), min_size=13, max_size=13),
    )
    def check(chunk_edges: list[int], write_edges: list[int], pauses: list[float]) -> None:
        def pieces_of(shape: ResponseShape) -> list[bytes | float]:
            raw = raw_answer(shape, chunk_edges)
            ends = sorted({edge % (len(raw) + 1) for edge in write_edges})
            writes = [raw[a:b] for a, b in zip([0, *ends], [*ends, len(raw)], strict=True)]
            return [part for pair in zip(writes, pauses, strict=False) for part in pair]

        assert io_loop.run_sync(lambda: ask_all(pieces_of)) == whole

    check()
    assert len(log.requests) == len(log.responses) and not log.closed_twice
