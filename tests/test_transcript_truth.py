"""The log tells the truth of odd answers, through the real server, and the client gets them."""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine_shapes  # noqa: F401  # adds to SHAPES
import odd_kin  # noqa: F401  # adds to ODD_ANSWERS
from memory_log import MemoryLog
from odd_answers import ODD_ANSWERS, TEXT, OddAnswer
from open_llm_proxy.server.relay.held_end import HeldStreamEnd
from open_llm_proxy.server.transcript.judgement import Judgement, judge, kind_for
from open_llm_proxy.server.transcript.reader import TranscriptReader
from open_llm_proxy.server.transcript.transcript import Transcript
from relay_calls import DELTA, DONE, STOP, Relay, chat_fields
from response_shapes import SHAPES, STREAM, USAGE, chunk, chunks

pytest_plugins = ("relay_fixtures",)

NAMES = [odd.name for odd in ODD_ANSWERS]
SMALL = [odd for odd in ODD_ANSWERS if len(odd.body) < 20_000]
LARGE = [odd for odd in ODD_ANSWERS if len(odd.body) >= 20_000]


def differences(row: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the row that are not as expected."""
    return {
        name: row.get(name)
        for name, value in expected.items()
        if not (value(row.get(name)) if callable(value) else row.get(name) == value)
    }


def head_of(odd: OddAnswer) -> bytes:
    """A head that leaves the end of the body to the end of the connection."""
    lines = [f"HTTP/1.1 {odd.status} Scripted", "Connection: close"]
    lines += [f"Content-Type: {kind}" for kind in odd.kinds]
    return "\r\n".join([*lines, "", ""]).encode()


def test_the_odd_answers_have_names_of_their_own() -> None:
    assert len(set(NAMES)) == len(NAMES) > 150


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=NAMES)
async def test_the_row_says_what_came_and_the_client_gets_it(
    relay: Relay, log: MemoryLog, odd: OddAnswer
) -> None:
    relay.provider.shapes["it"] = [head_of(odd), odd.body]
    answer = await relay.ask(1, "shape", stream=True, path=odd.path, name="it", close=1)
    assert (answer.status, answer.body, answer.is_complete) == (odd.status, odd.body, True)
    assert not differences(log.the_call()[1], odd.row)


def read(
    body: bytes, edges: list[int], content_type: str | None, coding: str | None = None
) -> tuple[Transcript, bytes]:
    """The transcript, and what a client would get."""
    reader, held = TranscriptReader(content_type, coding, 4 << 20), HeldStreamEnd()
    passed = b""
    for start, end in pairwise(sorted({0, len(body), *edges})):
        reader.feed(body[start:end])
        passed += held.pass_on(body[start:end])
    return reader.finish(), passed + held.held()


@given(st.sampled_from(SMALL), st.lists(st.floats(0, 1), max_size=20))
@settings(deadline=None, database=None, max_examples=400)
def test_cutting_an_odd_answer_anywhere_changes_nothing(
    odd: OddAnswer, shares: list[float]
) -> None:
    content_type = ",".join(odd.kinds) or None
    whole, _ = read(odd.body, [], content_type)
    cut, passed = read(odd.body, [int(share * len(odd.body)) for share in shares], content_type)
    assert (cut, cut.evidence, passed) == (whole, whole.evidence, odd.body)
    kind = kind_for(odd.path)
    assert judge(odd.status, kind, cut) == judge(odd.status, kind, whole)


@pytest.mark.parametrize("odd", LARGE, ids=[odd.name for odd in LARGE])
@pytest.mark.parametrize("piece_bytes", [9973, 1 << 20])
def test_cutting_a_large_answer_anywhere_changes_nothing(odd: OddAnswer, piece_bytes: int) -> None:
    content_type = ",".join(odd.kinds) or None
    whole, _ = read(odd.body, [], content_type)
    cut, _ = read(odd.body, list(range(0, len(odd.body), piece_bytes)), content_type)
    assert (cut, cut.evidence) == (whole, whole.evidence)


@pytest.mark.parametrize("recorded", SHAPES, ids=lambda recorded: recorded.name)
def test_a_recorded_answer_of_200_is_an_answer_or_says_why_not(recorded: Any) -> None:
    transcript, _ = read(recorded.body, [], recorded.content_type)
    path = "/v1/responses" if recorded.name.startswith("responses") else "/v1/chat/completions"
    path = "/v1/embeddings" if recorded.name == "embeddings" else path
    judgement = judge(recorded.status, kind_for(path), transcript)
    is_answer = recorded.status == 200 and "error" not in recorded.expected
    if judgement == Judgement("ok"):
        assert is_answer
    else:
        assert judgement.error or (recorded.status == 503 and not recorded.body)
        reasons = ("error", "raw_text")
        is_broken = recorded.name.startswith(("JSON that breaks", "broken off", "a stream of comm"))
        assert not is_answer or is_broken or any(name in recorded.expected for name in reasons)


@pytest.mark.parametrize("kinds", [(), ("application/json",), ("TEXT/event-stream; a=b",)])
async def test_a_stream_ends_at_once_whatever_its_type_though_the_provider_stays(
    relay: Relay, log: MemoryLog, kinds: tuple[str, ...]
) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"Content-Type: %b\r\n" % k.encode() for k in kinds)
    body = DELTA + STOP + DONE
    framed = b"%x\r\n%b\r\n" % (len(body), body)
    relay.provider.shapes["it"] = [head + b"Transfer-Encoding: chunked\r\n\r\n", framed, 30.0]
    answer = await asyncio.wait_for(relay.ask(1, "shape", stream=True, name="it"), 15)
    assert answer.body == body and answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["content"]) == ("ok", "x")
    assert response["ttft_ms"] is not None


@pytest.mark.parametrize("kinds", [(), ("application/json",), ("text/plain", "text/plain")])
async def test_events_pass_as_they_come_whatever_their_type(
    relay: Relay, log: MemoryLog, kinds: tuple[str, ...]
) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
    head += b"".join(b"Content-Type: %b\r\n" % kind.encode() for kind in kinds)
    relay.provider.shapes["it"] = [head + b"\r\nda", 0.05, b"ta: {}\n\n", 0.05, DELTA, 30.0]
    async with relay.asking(1, "shape", stream=True, name="it") as client:
        answer = await asyncio.wait_for(client.begin(), 15)
        while answer.body != b"data: {}\n\n" + DELTA:
            answer.body += await asyncio.wait_for(client.piece(), 15)
    assert (await log.closed())["outcome"] == "client_disconnected"
    await relay.turns()


ERROR = {"message": "it broke"}
FRAME = {"system_fingerprint": "fp", "service_tier": None, "provider": "p", "x": None, "y": []}


@pytest.mark.parametrize("provider_config", [{"log_stream_usage": True}])
@pytest.mark.parametrize(
    ("event", "passes"),
    [
        (chunks(chunk(usage=USAGE)), False),
        (chunks(chunk(usage=USAGE, **FRAME)), False),
        (b"id: 5\n" + chunks(chunk(usage=USAGE)), False),
        (chunks(chunk(usage=USAGE, error=ERROR)), True),
        (chunks(chunk(usage=USAGE, citations=["https://example.org"])), True),
        (chunks(chunk(usage=USAGE, x_unknown={"a": 1})), True),
        (b"event: error\n" + chunks(chunk(usage=USAGE)), True),
        (chunks(chunk(usage=USAGE))[:-1] + b": told\n\n", True),
        (b"error: x\n" + chunks(chunk(usage=USAGE)), True),
        (chunks(chunk({}, usage=USAGE)), True),
        (chunks({"usage": USAGE}), True),
    ],
)
async def test_the_usage_filter_keeps_nothing_back_but_usage(
    relay: Relay, log: MemoryLog, event: bytes, passes: bool
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nConnection: close\r\n\r\n".encode()
    relay.provider.shapes["it"] = [head, TEXT + STOP + event + DONE]
    answer = await relay.ask(1, "shape", stream=True, name="it", close=1)
    assert answer.body == TEXT + STOP + (event if passes else b"") + DONE
    assert log.the_call()[1]["total_tokens"] == (None if b"event: error" in event else 30)


async def test_an_error_event_is_told_also_where_the_connection_breaks_behind_it(
    relay: Relay, log: MemoryLog
) -> None:
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nContent-Length: 9999\r\n\r\n".encode()
    relay.provider.shapes["it"] = [head, TEXT + error]
    answer = await relay.ask(1, "shape", stream=True, name="it", close=1)
    assert answer.body.startswith(TEXT + error)
    _, response = log.the_call()
    assert response["outcome"] == "upstream_error"
    assert response["error"].startswith('{"message":"out of memory"}\n')


@pytest.mark.parametrize("kinds", [(), ("application/json",), ("TEXT/EVENT-STREAM", "text/plain")])
async def test_the_sdk_reads_a_stream_whatever_its_type(
    relay: Relay, kinds: tuple[str, ...]
) -> None:
    head = "".join(f"Content-Type: {kind}\r\n" for kind in kinds)
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\n{head}\r\n"
    relay.provider.shapes["it"] = [head.encode(), TEXT + STOP + DONE]
    async with relay.sdk() as sdk:
        fields = chat_fields(1, "shape", stream=True, name="it", close=1)
        parts = [
            c.choices[0].delta.content async for c in await sdk.chat.completions.create(**fields)
        ]
    assert parts == ["Par", None]


@pytest.mark.parametrize("provider_config", [{"log_stream_usage": True}])
async def test_the_sdk_raises_the_error_that_comes_with_the_usage(relay: Relay) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nConnection: close\r\n\r\n".encode()
    events = TEXT + STOP + chunks(chunk(usage=USAGE, error=ERROR)) + DONE
    relay.provider.shapes["it"] = [head, events]
    async with relay.sdk() as sdk:
        fields = chat_fields(1, "shape", stream=True, name="it", close=1)
        told = ""
        try:
            async for _ in await sdk.chat.completions.create(**fields):
                pass
        except openai.APIError as error:
            told = str(error)  # and no more of it: the SDK's generator is to end in this loop
        await relay.turns()
    assert "it broke" in told
