"""A stream that breaks off ends with an error that can be read, wherever in an event it was."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.relay.stream_error import MAX_EVENT_BYTES, StreamError, json_rest
from open_llm_proxy.server.transcript.event_reader import EventReader
from provider_behaviours import Behaviour
from provider_exchange import Exchange
from relay_calls import DELTA, Relay, chat_fields

pytest_plugins = ("relay_fixtures",)

ERROR = {"error": {"message": "it broke", "code": "upstream_error"}}
DOCUMENT = (
    '{"id":"a\\\\b\\"c","n":[1, -2.5e+3,true,false,null,{},[[]]],'
    '"c":[{"d":{"t":"hé森🌲\\n","u":{}}}],'
    '"k":{"a":"\\ud83d\\udc4d","b":"{[\\"}"}, "z" : 10 }'
).encode()
WHOLE = b"data: " + DOCUMENT + b"\n\n"


def events_of(stream: bytes) -> list[Any]:
    """The events as JSON, read as strictly as OpenAI's SDK reads them."""
    stream.decode()
    events = EventReader(1 << 20).feed(stream)
    return [json.loads(event.data) for event in events if isinstance(event.data, bytes)]


def ended(*chunks: bytes) -> bytes:
    stream_error = StreamError()
    for chunk in chunks:
        stream_error.follow(chunk)
    return b"".join(chunks) + stream_error.event(ERROR)


def test_json_that_breaks_off_anywhere_becomes_an_object_with_the_error() -> None:
    for cut in range(1, len(DOCUMENT)):
        rest = json_rest(DOCUMENT[:cut], json.dumps(ERROR).encode())
        assert rest is not None
        assert json.loads((DOCUMENT[:cut] + rest).decode())["error"] == ERROR["error"]


@pytest.mark.parametrize("head", [b"", b"  ", b"[1, ", b'"text', b"12", b"no JSON {", DOCUMENT])
def test_what_begins_no_object_or_has_ended_gets_no_rest(head: bytes) -> None:
    assert json_rest(head, b'{"error":1}') is None


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b": a comm",
        b"dat",
        b"data",
        b"data:",
        b"data: ",
        b"id: 5",
        b"event: message\n",
        b"event: mess",
        b'data: {"id": ',
        b'data: {"choices":[{"delta":{"content":"hal',
        b'event: message\ndata: {"a":1',
        b'data: {"a":1}',
        b'data: {"a":1}\n',
        b'data: {"a":\ndata: 1',
        b'data: {"a":\n',
        b'data: {"a":1,\nid: 5',
    ],
)
def test_a_stream_ends_with_an_error_wherever_it_breaks_off(broken: bytes, newline: bytes) -> None:
    for before in (b"", WHOLE):
        stream = (before + broken).replace(b"\n", newline)
        for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
            events = events_of(ended(*chunks))
            assert events[-1] == ERROR
            expected = [json.loads(DOCUMENT)] if before else []
            assert events[: len(expected)] == expected
            for torn in events[len(expected) : -1]:
                assert torn == {"a": 1} or torn["error"] == ERROR["error"]


@given(st.lists(st.integers(0, 2 * len(WHOLE)), max_size=6))
@settings(deadline=None, database=None)
def test_the_cuts_between_chunks_make_no_difference(edges: list[int]) -> None:
    stream = (WHOLE + WHOLE)[: max(edges, default=0)]
    places = sorted({0, len(stream), *(edge for edge in edges if edge < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(places)]
    assert ended(*chunks) == ended(stream)


def test_an_event_too_long_to_be_completed_is_ended_and_the_next_one_is_followed_again() -> None:
    long = b'data: {"a":"' + b"x" * MAX_EVENT_BYTES
    assert ended(long).endswith(b"xx\n\ndata: " + json.dumps(ERROR).encode() + b"\n\n")
    assert events_of(ended(long, b'"', b"}\n", b"\n", b'data: {"b'))[1:] == [
        {"b": None, **ERROR},
        ERROR,
    ]


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'data: {"id": ',
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"caf\xc3',
        b"event: message\n",
        b"data: no JSON at all",
    ],
)
async def test_the_sdk_raises_the_error_of_a_stream_that_is_reset_within_an_event(
    relay: Relay, log: MemoryLog, behave: Callable[[Behaviour], str], torn: bytes
) -> None:
    async def resets(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_chunk(DELTA + torn)
        await exchange.pause(0.05)
        exchange.reset()

    received = []
    kind = ValueError if torn.startswith(b"data: no") else openai.APIError
    async with relay.sdk() as sdk:
        fields = chat_fields(1, behave(resets), stream=True)
        with pytest.raises(kind) as caught:
            async for chunk in await sdk.chat.completions.create(**fields):
                received.append(chunk.choices[0].delta.content)
    assert received == ["x"]
    if isinstance(caught.value, openai.APIError):
        assert caught.value.code == "upstream_error" and "broke after" in str(caught.value)
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_error", 200)
