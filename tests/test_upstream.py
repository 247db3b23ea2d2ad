"""The upstream client's normal work: which answers it reads, what it hands over, and when."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPError
from tornado.iostream import StreamClosedError

import wire
from open_llm_proxy.server.upstream.client import (
    PooledHTTPClient,
    ResponseTooLarge,
    StreamingRequest,
    Timeouts,
)
from raw_server import (
    CHUNKED,
    LENGTH,
    RawConnection,
    answer_all,
    chunk,
    ok,
    once,
    pass_on,
    response,
    serving,
)

pytest_plugins = ("upstream_fixtures",)


async def test_configure_selects_the_client_and_passes_its_options() -> None:
    AsyncHTTPClient.configure(PooledHTTPClient, max_body_size=3)
    try:
        client = AsyncHTTPClient()
        assert isinstance(client, PooledHTTPClient)
        assert AsyncHTTPClient() is client
        async with serving(answer_all) as (server, _):
            assert (await client.fetch(server.url + "12"[:1])).body == b"/1"
            with pytest.raises(ResponseTooLarge, match="max_body_size"):
                await client.fetch(server.url + "too-long")
            client.close()
            with pytest.raises(RuntimeError, match="closed"):
                client.fetch(server.url)
    finally:
        AsyncHTTPClient.configure(None)


async def test_a_get_gives_status_headers_and_body(
    certificates_or_none: wire.Certificates | None,
) -> None:
    script = once(ok(b"hello", b"X-Two: a", b"X-Two: b"))
    async with serving(script, certificates=certificates_or_none) as (server, client):
        answer = await client.fetch(server.url + "models?limit=2#fragment")
    assert (answer.code, answer.reason, answer.body) == (200, "OK", b"hello")
    assert answer.headers.get_list("X-Two") == ["a", "b"]
    assert answer.request_time is not None and answer.request_time > 0
    [request] = server.requests
    assert (request.method, request.target) == ("GET", "/models?limit=2")
    assert request.headers == (("Host", f"127.0.0.1:{server.port}"),)


BODIES = {
    "a length": response(LENGTH) + b"hello",
    "chunks": response(CHUNKED) + chunk(b"he") + chunk(b"llo") + b"0\r\n\r\n",
    "chunks with extensions": response(CHUNKED) + b'5;a="b"\r\nhello\r\n0;z\r\n\r\n',
    "chunks and trailers": response(CHUNKED) + chunk(b"hello") + b"0\r\nX-Sum: 1\r\nX: 2\r\n\r\n",
    "1xx first": response(status=b"100 Continue")
    + response(b"Link: </a>", status=b"103 Early Hints")
    + response(LENGTH)
    + b"hello",
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES.keys())
async def test_a_body_is_read_to_its_end_and_the_connection_serves_the_next_request(
    answer: bytes,
) -> None:
    async def script(connection: RawConnection) -> None:
        async for _ in connection.more_requests():
            # Byte by byte, so that every boundary falls between two reads once.
            for position in range(len(answer)):
                await connection.send(answer[position : position + 1])
                await asyncio.sleep(0)

    async with serving(script) as (server, client):
        for _ in range(2):
            assert (await client.fetch(server.url)).body == b"hello"
        assert client.connections_opened == 1


UNREUSABLE = {
    "Connection: close": ok(b"hello", b"Connection: Close"),
    "close in a list": ok(b"hello", b"Connection: x, close"),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
    "up to the end of the connection": response() + b"hello",
    "more than promised": response(LENGTH) + b"helloHTTP/1.1 200 OK\r\n\r\n",
    "more than its chunks": response(CHUNKED)
    + chunk(b"hello")
    + b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("answer", UNREUSABLE.values(), ids=UNREUSABLE.keys())
async def test_a_connection_that_cannot_serve_again_is_closed(answer: bytes) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(answer)
        if b"Content-Length" in answer or CHUNKED in answer:
            await connection.closed_by_client()

    async with serving(script) as (server, client):
        for _ in range(2):
            assert (await client.fetch(server.url)).body == b"hello"
            await server.all_closed()
        assert (client.connections_opened, client.idle_connections) == (2, 0)


@pytest.mark.parametrize(
    ("method", "status"), [("GET", b"204 No Content"), ("GET", b"304 Same"), ("HEAD", b"200 OK")]
)
async def test_an_answer_that_has_no_body_ends_with_its_head(method: str, status: bytes) -> None:
    async def script(connection: RawConnection) -> None:
        async for _ in connection.more_requests():
            await connection.send(response(LENGTH, status=status))

    async with serving(script) as (server, client):
        for _ in range(2):
            answer = await client.fetch(server.url, raise_error=False, method=method)
            assert answer.body == b""
        assert client.connections_opened == 1


async def test_a_redirect_is_returned_as_it_is_or_raised_like_any_other_status() -> None:
    answer = response(b"Location: /elsewhere", b"Content-Length: 2", status=b"307 There") + b"no"
    async with serving(once(answer)) as (server, client):
        kept = await client.fetch(server.url, raise_error=False)
        assert (kept.code, kept.body, kept.headers["Location"]) == (307, b"no", "/elsewhere")
    async with serving(once(answer)) as (server, client):
        with pytest.raises(HTTPError) as raised:
            await client.fetch(server.url)
        assert raised.value.code == 307
        assert raised.value.response is not None and raised.value.response.body == b"no"
    assert len(server.requests) == 1


async def test_encoded_bytes_pass_as_they_are() -> None:
    async with serving(once(ok(b"\x1f\x8bzip", b"Content-Encoding: gzip"))) as (server, client):
        answer = await client.fetch(server.url, decompress_response=True)
    assert (answer.body, answer.headers["Content-Encoding"]) == (b"\x1f\x8bzip", "gzip")
    assert server.requests[0].header("Accept-Encoding") is None


async def test_the_head_is_handed_over_once_before_the_body_and_each_piece_as_it_arrives(
    certificates_or_none: wire.Certificates | None,
) -> None:
    seen: list[Any] = []
    arrived = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.request()
        interim = response(b"X-Kind: interim", status=b"103 Early Hints")
        # The next piece is sent only after the client has handed over the one before.
        for piece in (
            interim + response(b"X-Kind: stream", CHUNKED),
            chunk(b"one"),
            chunk(b"two") + chunk(b"three"),
            b"5\r\nfo",
        ):
            await connection.send(piece)
            await asyncio.wait_for(arrived.wait(), 10)
            arrived.clear()
        await connection.send(b"urs\r\n0\r\n\r\n")

    async with serving(script, certificates=certificates_or_none) as (server, client):
        async with client.stream(StreamingRequest(server.url)) as answer:
            seen.append((answer.status, answer.headers.get("X-Kind")))
            arrived.set()
            while data := await answer.read():
                seen.append(data)
                arrived.set()
    assert seen[:4] == [(200, "stream"), b"one", b"twothree", b"fo"]
    assert b"".join(seen[1:]) == b"onetwothreefours"


async def test_header_callback_and_a_plain_streaming_callback_work_as_in_tornado() -> None:
    lines: list[str] = []
    pieces: list[bytes] = []
    async with serving(once(ok(b"hello", b"A: b"))) as (server, client):
        await client.fetch(
            server.url, header_callback=lines.append, streaming_callback=pieces.append
        )
    assert lines == ["HTTP/1.1 200 OK\r\n", "Content-Length: 5\r\n", "A: b\r\n", "\r\n"]
    assert pieces == [b"hello"]


async def test_a_slow_receiver_stops_the_sender(
    certificates_or_none: wire.Certificates | None,
) -> None:
    total, block = 96 << 20, b"x" * (1 << 20)
    sent, go_on = asyncio.Event(), asyncio.Event()
    received = 0

    async def on_piece(data: bytes) -> None:
        nonlocal received
        received += len(data)
        await go_on.wait()

    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(response(b"Content-Length: %d" % total))
        while connection.bytes_sent < total:
            await connection.send(block)
            sent.set()

    async with serving(script, certificates=certificates_or_none) as (server, client):
        request = StreamingRequest(server.url, timeouts=Timeouts(idle_seconds=0.1))
        passing = asyncio.ensure_future(pass_on(client, request, on_piece))
        await server.connected(1)
        # The sender has stopped when it gets nothing out for longer than the idle time-out, which
        # must not count the time that the receiver takes.
        with pytest.raises(TimeoutError):
            while True:
                await asyncio.wait_for(sent.wait(), 0.25)
                sent.clear()
        assert received <= 64 * 1024
        assert server.connections[0].bytes_sent < total // 2, "the client read on regardless"
        go_on.set()
        await passing
    assert received == total


async def test_300_megabytes_pass_without_growing_the_process() -> None:
    block, blocks = chunk(b"x" * 1_000_000), 300
    received, grown, before = 0, 0, 0

    async def on_piece(data: bytes) -> None:
        nonlocal received, grown
        received += len(data)
        await asyncio.sleep(0)
        grown = max(grown, resident_bytes() - before)

    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(response(CHUNKED))
        for _ in range(blocks):
            await connection.send(block)
        await connection.send(b"0\r\n\r\n")

    async with serving(script) as (server, client):
        before = resident_bytes()
        await pass_on(client, StreamingRequest(server.url), on_piece)
    assert received == 300_000_000
    assert grown < 20_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_stream_that_never_pauses_leaves_the_event_loop_to_others() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(response(CHUNKED) + chunk(b"x" * 100) * 150_000 + b"0\r\n\r\n")

    async with serving(script) as (server, client):
        counting = asyncio.ensure_future(count_turns())
        request = StreamingRequest(server.url)
        passing = asyncio.ensure_future(pass_on(client, request, lambda _: None))
        await server.connected(1)
        turns = 0
        await passing
        counting.cancel()
    assert turns > 40


async def test_a_callbacks_exception_reaches_the_caller_unchanged(
    certificates_or_none: wire.Certificates | None, caplog: pytest.LogCaptureFixture
) -> None:
    # The errors that the client itself handles are those that it could confuse with its own.
    for error in (
        KeyError("mine"),
        StreamClosedError(),
        TimeoutError(),
        ConnectionResetError(),
        asyncio.CancelledError(),
    ):

        async def fail(*_: object, error: BaseException = error) -> None:
            raise error

        async def raise_in_the_block(client: PooledHTTPClient, url: str) -> None:
            async with client.stream(StreamingRequest(url, timeouts=Timeouts(idle_seconds=9))):
                await fail()

        async def raise_in_a_callback(client: PooledHTTPClient, url: str) -> None:
            await client.fetch(url, streaming_callback=fail)

        for way in (raise_in_the_block, raise_in_a_callback):
            script = once(response(CHUNKED) + chunk(b"data"))
            async with serving(script, certificates=certificates_or_none) as (server, client):
                with pytest.raises(type(error)) as raised:
                    await way(client, server.url)
                if not isinstance(error, asyncio.CancelledError):
                    assert raised.value is error
                await server.all_closed()
                assert (client.connections_in_use, client.idle_connections) == (0, 0)
    assert not caplog.records
