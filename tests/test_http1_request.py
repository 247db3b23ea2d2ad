"""Requests from bytes: the same ones however the bytes are cut, and one problem at most."""

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.http1.connection import CHUNK_BYTES, ClientConnection
from open_llm_proxy.server.http1.request import MAX_HEAD_BYTES, RequestParser
from open_llm_proxy.server.http1.server import ClientServer
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, chat, quickly
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

HOST = b"Host: proxy.test\r\n"
UPGRADE = (("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AA"))
TOKEN = st.text("abcXYZ019-_", min_size=1, max_size=8)
VALUE = st.text("abc :;,=\u00e9\"'", max_size=12)
BODY = st.binary(max_size=40)


def seen(parser: RequestParser) -> list[tuple[object, ...]]:
    return [
        (
            r.method,
            r.path,
            r.query,
            r.version,
            list(r.headers.get_all()),
            r.has_ended,
            r.keeps_alive,
        )
        for r in parser.requests
    ]


def fed(pieces: list[bytes]) -> tuple[list[tuple[object, ...]], list[bytes], str | None]:
    parser = RequestParser("")
    for piece in pieces:
        parser.feed(piece)
    problem = parser.problem
    code = None if problem is None else problem.code
    return seen(parser), [b"".join(r.take()) for r in parser.requests], code


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request's bytes, and its body."""
    method, path = draw(st.sampled_from(["GET", "POST", "PUT", "OPTIONS"])), draw(TOKEN)
    headers = draw(st.lists(st.tuples(TOKEN.map("X-{}".format), VALUE), max_size=3))
    if draw(st.booleans()):
        headers += list(UPGRADE)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    head = f"{method} /{path}?q={path} HTTP/1.1\r\n".encode() + HOST + lines
    body = draw(BODY)
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "none":
        return head + b"\r\n", b""
    if kind == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    chunks = b"".join(b"1;x=y\r\n%b\r\n" % body[at : at + 1] for at in range(len(body)))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: 1\r\n\r\n", body


@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 600), max_size=8))
def test_it_makes_no_difference_how_the_bytes_are_cut(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    raw = b"".join(head for head, _ in sent)
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[start:end] for start, end in itertools.pairwise(edges)]
    whole = fed([raw])
    assert fed(pieces) == whole
    assert fed([raw[at : at + 1] for at in range(len(raw))]) == whole
    found, bodies, problem = whole
    assert (len(found), problem) == (len(sent), None)
    assert bodies == [body for _, body in sent]


@given(st.binary(max_size=200), st.integers(0, 200))
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 3)
def test_nothing_that_comes_makes_it_raise_or_read_on_behind_a_problem(
    raw: bytes, cut: int
) -> None:
    parser = RequestParser("")
    parser.feed(raw[:cut])
    parser.feed(raw[cut:])
    if parser.problem is not None:
        before = seen(parser)
        parser.feed(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert seen(parser) == before


REFUSED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "unknown method": b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "not ASCII": b"GET /\xc3\xbc HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
async def test_what_is_no_request_is_told_so(relay: Relay, raw: bytes) -> None:
    async with relay.connection() as client:
        await client.send(raw)
        answer = await quickly(client.answer())
        assert (answer.status, answer.error["code"]) == (400, "malformed_request")
        assert answer.header("Connection") == "close"
        assert await quickly(client.ended())


async def test_what_stands_before_a_problem_is_answered_first(relay: Relay, log: MemoryLog) -> None:
    async with relay.connection() as client:
        call = request("POST", CHAT, chat(1, delay=0.05), (BEARER,))
        await client.send(call + request("GET", "/ready") + b"no HTTP\r\n\r\n")
        answers = [await quickly(client.answer()) for _ in range(3)]
        assert await quickly(client.ended())
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert len(log.responses) == 1


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_client_that_offers_another_protocol_is_served_in_this_one(
    relay: Relay, size: int
) -> None:
    """As Java's client does with its first request, whatever that is."""
    async with relay.connection() as client:
        for number in (1, 2):
            body = chat(number, padding="x" * size)
            await client.send(request("POST", CHAT, body, (BEARER, *UPGRADE)))
            assert (await quickly(client.answer())).status == 200
            assert relay.provider.calls[-1].request.body == body


def test_empty_lines_before_a_request_have_a_bound() -> None:
    parser = RequestParser("")
    for _ in range(MAX_HEAD_BYTES // 1000):
        parser.feed(b"\r\n" * 500)
        assert parser.problem is None
    parser.feed(b"\r\n" * 500)
    assert parser.problem is not None


async def test_a_client_that_reads_no_answers_is_not_read_for_ever(
    relay: Relay, relay_server: ClientServer
) -> None:
    async with relay.connection() as client:
        client.stop_reading()
        sending = asyncio.ensure_future(client.send(request("GET", "/") * 100_000))
        await wait_until(lambda: relay_server.connections == 1, "the connection")
        connection: ClientConnection = next(iter(relay_server._connections))
        await wait_until(lambda: connection.progress()[0] == "taking", "the answers are not taken")
        assert len(connection._ahead) <= 2 * CHUNK_BYTES
        assert len(connection._parser.requests) <= CHUNK_BYTES // 30
        sending.cancel()
