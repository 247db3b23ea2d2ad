"""Two requests in one: what another server could read differently is refused or written anew."""

import pytest

from memory_log import MemoryLog
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, chat, quickly

pytest_plugins = ("relay_fixtures",)

SMUGGLED = request("POST", CHAT, chat(666), (BEARER,))


AMBIGUOUS = [
    ["Content-Length: 2", "Content-Length: 200"],
    ["Content-Length: 2", "Content-Length: 2"],
    ["Content-Length: 2, 2"],
    ["Content-Length: 2", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: identity"],
    ["Transfer-Encoding: xchunked"],
    ["Content-Length: +2"],
    ["Content-Length: 0x2"],
    ["Content-Length: -2"],
    ["Content-Length: 2_0"],
    ["Content-Length: ²"],
    ["Content-Length:"],
    ["Content-Length : 2"],
    ["Content-Length: 2", "X-A: b\rTransfer-Encoding: chunked"],
    ["Content-Length: 2", "X-A: b\0c"],
    ["Content-Length: 2", "X-A: b", " folded: c"],
    ["Content-Length: 2", "Host: another.test"],
    ["Content-Length: 99999999999999999999"],
    ["Content-Length: " + "0" * 5_000 + "2"],
    ["Content-Length: " + "9" * 5_000],
    ["Transfer-Encoding: " + "9" * 5_000],
]


@pytest.mark.parametrize(
    "lines",
    AMBIGUOUS,
    ids=lambda lines: "; ".join(lines).encode("unicode_escape").decode()[:60],
)
async def test_a_request_whose_end_is_not_certain_is_refused_and_nothing_behind_it_is_read(
    relay: Relay, log: MemoryLog, lines: list[str]
) -> None:
    head = "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: proxy.test", ": ".join(BEARER), *lines])
    async with relay.connection() as client:
        await client.send(head.encode("latin-1") + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        received = await quickly(client.everything())
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1") == 1
    assert not relay.provider.calls and not log.rows


async def test_old_http_has_no_chunks(relay: Relay) -> None:
    headers = (BEARER, ("Transfer-Encoding", "chunked"))
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, None, headers, version="HTTP/1.0") + SMUGGLED)
        assert (await client.everything()).startswith(b"HTTP/1.1 400 ")
    assert not relay.provider.calls


@pytest.mark.parametrize("header", ["X-A: b\nCookie: stolen=1", "X-A: b\n", "\nX-A: b"])
async def test_a_line_of_the_head_that_ends_in_a_bare_line_feed_is_refused(
    relay: Relay, log: MemoryLog, header: str
) -> None:
    raw = request("POST", CHAT, chat(1), (BEARER,))
    bare = raw.replace(b"\r\n", b"\r\n" + header.encode() + b"\r\n", 1)
    for head in (bare, raw.replace(b"\r\n", b"\n", 1)):
        async with relay.connection() as client:
            await client.send(raw)
            assert (await client.answer()).status == 200
            await client.send(head + SMUGGLED)
            received = await quickly(client.everything())
        assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1") == 1
    assert relay.provider.seen == {1} and len(log.requests) == 2


@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx0\r\n\r\n", b"-2\r\n{}\r\n"])
async def test_malformed_chunks_are_refused(relay: Relay, log: MemoryLog, body: bytes) -> None:
    async with relay.connection() as client:
        headers = (BEARER, ("Transfer-Encoding", "chunked"))
        await client.send(request("POST", CHAT, None, headers) + body)
        assert (await quickly(client.everything())).startswith(b"HTTP/1.1 400 ")
    assert not log.rows and not relay.provider.calls
