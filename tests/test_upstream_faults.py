"""What the upstream client does with an answer that breaks off, is wrong or late or unwanted."""

import asyncio
import socket
import time

import pytest
from tornado.httpclient import HTTPRequest

import wire
from open_llm_proxy.server.upstream.client import (
    ConnectionLost,
    FetchTimeout,
    MalformedResponse,
    StreamingRequest,
    Timeouts,
)
from open_llm_proxy.server.upstream.connection import Connection
from open_llm_proxy.server.upstream.connector import Connector, Patience
from open_llm_proxy.server.upstream.origin import Origin
from raw_server import (
    CHUNKED,
    LENGTH,
    RawConnection,
    Script,
    answer_all,
    answering,
    chunk,
    client_closes,
    ok,
    pass_on,
    reset,
    response,
    serving,
)

pytest_plugins = ("upstream_fixtures",)

SECRET = "sk-secret"


HALF_LENGTH = response(b"Content-Length: 10") + b"hello"


HALF_CHUNKS = response(CHUNKED) + chunk(b"hello")


LOST: dict[str, tuple[Script, bytes, str]] = {
    "closed before an answer": (answering(), b"", "was closed before any answer"),
    "reset before an answer": (answering(reset), b"", "was broken off before any answer"),
    "closed within the head": (answering(b"HTTP/1.1 20"), b"", "closed within the head"),
    "closed after 1xx": (answering(response(status=b"100 Go")), b"", "closed within the head"),
    "body shorter than its length": (answering(HALF_LENGTH), b"hello", "after 5 of 10 bytes"),
    "no last chunk": (answering(HALF_CHUNKS), b"hello", "after 5 bytes of the body, before"),
    "no end of trailers": (answering(HALF_CHUNKS, b"0\r\nA: b\r\n"), b"hello", "after 5 bytes"),
    "cut within a chunk": (answering(HALF_CHUNKS, b"ff\r\nabc"), b"helloabc", "after 8 bytes"),
    "cut within a size": (answering(HALF_CHUNKS, b"f"), b"hello", "after 5 bytes"),
}


@pytest.mark.parametrize(("script", "body", "message"), LOST.values(), ids=LOST.keys())
async def test_a_connection_that_ends_early_is_lost_and_every_byte_before_is_handed_over(
    script: Script,
    body: bytes,
    message: str,
    certificates_or_none: wire.Certificates | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    received = bytearray()
    async with serving(script, certificates=certificates_or_none) as (server, client):
        request = StreamingRequest(
            f"{server.url}?key={SECRET}", headers=[("Authorization", SECRET)]
        )
        with pytest.raises(ConnectionLost, match=message) as lost:
            await pass_on(client, request, received.extend)
        assert lost.value.response_started is ("before any answer" not in message)
        assert str(lost.value).startswith(f"127.0.0.1:{server.port}: ")
        assert SECRET not in str(lost.value)
        assert len(server.connections) == 1, "a new connection's request was sent twice"
        assert (client.connections_in_use, client.idle_connections) == (0, 0)
    assert received == body
    assert not caplog.records


@pytest.mark.parametrize(
    "head", [response(), HALF_LENGTH, HALF_CHUNKS], ids=["", "length", "chunk"]
)
async def test_a_reset_within_the_body_is_never_taken_for_its_end(
    head: bytes, certificates_or_none: wire.Certificates | None
) -> None:
    received = asyncio.Event()

    async def reset_when_received(connection: RawConnection) -> None:
        await received.wait()
        connection.reset()

    script = answering(head, b"1", reset_when_received)
    async with serving(script, certificates=certificates_or_none) as (server, client):
        with pytest.raises(ConnectionLost) as lost:
            async with client.stream(StreamingRequest(server.url)) as answer:
                received.set()
                while await answer.read():
                    pass
        assert lost.value.response_started


MALFORMED = {
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "no colon": response(b"Content-Length: 5", b"nonsense") + b"hello",
    "folded header": response(b"A: b", b" c", b"Content-Length: 5") + b"hello",
    "space before the colon": response(b"Content-Length : 5") + b"hello",
    "NUL in a header": response(b"A: b\x00", b"Content-Length: 5") + b"hello",
    "length and chunks": response(b"Content-Length: 5", CHUNKED) + b"5\r\nhello\r\n0\r\n\r\n",
    "lines that end in LF alone": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "a length twice": response(LENGTH, LENGTH) + b"hello",
    "a length twice in a list": response(b"Content-Length: 5, 5") + b"hello",
    "two lengths": response(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "two lengths in a list": response(b"Content-Length: 5, 6") + b"hello!",
    "negative length": response(b"Content-Length: -5") + b"hello",
    "no number": response(b"Content-Length: 5 bytes") + b"hello",
    "a number too long": response(b"Content-Length: " + b"9" * 5000) + b"hello",
    "another encoding": response(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "chunked twice": response(CHUNKED, CHUNKED) + b"0\r\n\r\n",
    "huge head": response(*(b"X-%d: %s" % (i, b"x" * 990) for i in range(70))),
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    "1xx with a body": response(b"Content-Length: 5", status=b"103 Hints") + b"hello",
    "1xx without end": response(status=b"102 Processing") * 20,
}


BAD_CHUNKS = {
    "no size": b"hello\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a size too big": b"f" * 17 + b"\r\nhello",
    "an endless size": b"0" * 60_000,
    "an endless extension": b"5;" + b"x" * 60_000,
    "a chunk longer than its size": b"3\r\nhello\r\n0\r\n\r\n",
    "only LF": b"5\nhello\n0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: y\r\n" * 10_000,
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_head_is_refused_before_any_of_it_is_handed_over(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(answering(answer, client_closes)) as (server, client):
        with pytest.raises(MalformedResponse, match=r"^127\.0\.0\.1:"):
            async with client.stream(StreamingRequest(server.url)):
                pytest.fail("a malformed head was handed over")
        await server.all_closed()
    assert not caplog.records


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_malformed_chunks_are_refused_after_the_good_ones_are_handed_over(
    chunks: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received = bytearray()
    async with serving(answering(HALF_CHUNKS + chunks, client_closes)) as (server, client):
        with pytest.raises(MalformedResponse, match=r"^127\.0\.0\.1:"):
            await client.fetch(server.url, streaming_callback=received.extend)
        assert received.startswith(b"hello")
        await server.all_closed()
    assert not caplog.records


@pytest.mark.parametrize("sent", [HALF_LENGTH, HALF_CHUNKS, response()])
async def test_silence_within_an_answer_ends_the_fetch_and_closes_the_connection(
    sent: bytes, certificates_or_none: wire.Certificates | None
) -> None:
    script = answering(sent, client_closes)
    async with serving(script, certificates=certificates_or_none) as (server, client):
        with pytest.raises(FetchTimeout, match=r"0\.05 s") as fired:
            await client.fetch(StreamingRequest(server.url, timeouts=Timeouts(idle_seconds=0.05)))
        assert fired.value.deadline == "idle"
        await server.all_closed()


@pytest.mark.parametrize("sent", [b"", response(status=b"102 Processing"), b"HTTP/1.1 2"])
async def test_before_the_head_of_an_answer_only_the_total_time_out_counts(
    sent: bytes, certificates_or_none: wire.Certificates | None
) -> None:
    """A completion that is not streamed takes its time, and sends nothing until it is done."""
    script = answering(sent, client_closes)
    async with serving(script, certificates=certificates_or_none) as (server, client):
        with pytest.raises(FetchTimeout, match=r"0\.3 s") as fired:
            request = StreamingRequest(
                server.url, timeouts=Timeouts(idle_seconds=0.01, total_seconds=0.3)
            )
            await client.fetch(request)
        assert fired.value.deadline == "total"
        await server.all_closed()


async def test_tcp_finds_a_peer_that_is_gone_while_its_answer_is_awaited(
    certificates_or_none: wire.Certificates | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Connection] = []
    connect = Connector.connect

    async def watched(connector: Connector, origin: Origin, patience: Patience) -> Connection:
        opened.append(await connect(connector, origin, patience))
        return opened[-1]

    monkeypatch.setattr(Connector, "connect", watched)
    async with serving(answer_all, certificates=certificates_or_none) as (server, client):
        await client.fetch(server.url)
        connected = opened[0].transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            idle = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert 10 <= idle <= 60


async def test_pauses_that_are_each_shorter_than_the_idle_time_out_do_not_add_up() -> None:
    async def pausing(connection: RawConnection) -> None:
        for _ in range(8):
            await asyncio.sleep(0.05)
            await connection.send(chunk(b"."))
        await asyncio.sleep(0.05)
        await connection.send(b"0\r\n\r\n")

    async with serving(answering(response(CHUNKED), pausing)) as (server, client):
        answer = await client.fetch(
            StreamingRequest(server.url, timeouts=Timeouts(idle_seconds=0.25))
        )
        assert answer.body == b"." * 8


async def test_what_came_while_the_event_loop_was_held_up_is_no_silence() -> None:
    async def busy(connection: RawConnection) -> None:
        await asyncio.sleep(0.02)  # so that the client waits for it
        await connection.send(chunk(b"late") + b"0\r\n\r\n")
        # The bytes and the time-out are seen in the same turn of the loop.
        time.sleep(0.3)  # noqa: ASYNC251

    async with serving(answering(response(CHUNKED), busy)) as (server, client):
        request = StreamingRequest(server.url, timeouts=Timeouts(idle_seconds=0.2))
        assert (await client.fetch(request)).body == b"late"


async def test_the_time_that_a_receiver_takes_is_no_silence() -> None:
    taken = asyncio.Event()

    async def pausing(connection: RawConnection) -> None:
        await asyncio.sleep(0.02)  # so that the client has to wait for it
        await connection.send(chunk(b"one"))
        await taken.wait()
        await connection.send(chunk(b"two") + b"0\r\n\r\n")

    async def slow(_: bytes) -> None:
        await asyncio.sleep(0.4)
        taken.set()

    async with serving(answering(response(CHUNKED), pausing)) as (server, client):
        request = StreamingRequest(server.url, timeouts=Timeouts(idle_seconds=0.15))
        assert await pass_on(client, request, slow) == 200


async def test_the_total_time_out_ends_a_stream_that_never_falls_silent() -> None:
    async def drip(connection: RawConnection) -> None:
        while True:
            await connection.send(chunk(b"."))
            await asyncio.sleep(0.01)

    async with serving(answering(response(CHUNKED), drip)) as (server, client):
        timeouts = Timeouts(total_seconds=0.15, idle_seconds=5)
        with pytest.raises(FetchTimeout) as fired:
            await client.fetch(StreamingRequest(server.url, timeouts=timeouts))
        assert fired.value.deadline == "total"
        await server.all_closed()


async def test_the_total_time_out_holds_for_a_plain_request_and_0_means_none() -> None:
    async def late(connection: RawConnection) -> None:
        await asyncio.sleep(1)
        await connection.send(ok(b"late"))

    async with serving(answering(late)) as (server, client):
        with pytest.raises(FetchTimeout, match="total"):
            await client.fetch(server.url, request_timeout=0.5)
        answer = await client.fetch(server.url, request_timeout=0, connect_timeout=0)
        assert answer.body == b"late"


@pytest.mark.parametrize("sent", [b"", HALF_LENGTH, HALF_CHUNKS], ids=["silent", "length", "chunk"])
async def test_cancelling_closes_the_connection_at_once(
    sent: bytes,
    certificates_or_none: wire.Certificates | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached = asyncio.Event()

    async def say_reached(_: RawConnection) -> None:
        reached.set()

    script = answering(sent, say_reached, client_closes)
    async with serving(script, certificates=certificates_or_none) as (server, client):
        fetch = client.fetch(server.url, streaming_callback=lambda _: None)
        await reached.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert (client.connections_in_use, client.idle_connections) == (0, 0)
        await server.all_closed()
    assert not caplog.records


async def test_cancelling_reaches_a_callback_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    called = asyncio.Event()

    async def wait_for_ever(*_: object) -> None:
        called.set()
        await asyncio.Event().wait()

    script = answering(response(CHUNKED) + chunk(b"x") * 1000, client_closes)
    async with serving(script) as (server, client):
        fetch = client.fetch(server.url, streaming_callback=wait_for_ever)
        await called.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        await server.all_closed()
    assert not caplog.records


async def test_cancelling_at_any_moment_leaves_no_connection_behind(
    certificates_or_none: wire.Certificates | None,
) -> None:
    async with serving(answer_all, certificates=certificates_or_none) as (server, client):
        for turns in range(60):
            fetch = client.fetch(HTTPRequest(server.url, "POST", body=b"x" * 100_000))
            for _ in range(turns):
                await asyncio.sleep(0)
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)
            assert client.connections_in_use == 0
        client.close()
        await server.all_closed()
