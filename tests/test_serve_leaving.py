"""A server that leaves: what becomes of connections that are open already, and of their calls."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import known_content
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from raw_client import RawClient
from scripted_provider import ScriptedProvider
from stores import DirectoryStore
from waiting import wait_until

TCP_CLOSE = 7  # of linux/tcp_states.h

pytestmark = pytest.mark.timeout(seconds=60)


def request(number: int, behaviour: str = "ok", **options: object) -> bytes:
    """The bytes of a streamed call."""
    messages = [{"role": "user", "content": known_content.question(number, behaviour, **options)}]
    body = json.dumps({"model": "kimi", "messages": messages, "stream": True}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\n"
        f"Authorization: Bearer {PROXY_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def leaving(proxy: ProxyProcess) -> AsyncIterator[RawClient]:
    """A server with a stream of 3 s under way that takes no new connections any more."""
    async with RawClient(proxy.port) as busy:
        await busy.send(request(1, deltas=6, pace=0.5))
        assert (await busy.begin()).status == 200
        proxy.terminate()
        await wait_until(lambda: refuses(proxy.port), "no new connection is taken")
        yield busy


async def refuses(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return True  # refused, or reset where it met the closing
    writer.close()
    return False


@pytest.fixture
def proxy(
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
    start_proxy: Callable[..., ProxyProcess],
) -> ProxyProcess:
    return start_proxy(one_provider(provider.url), directory_store.env())


async def test_an_idle_connection_is_closed_while_calls_are_finished(
    proxy: ProxyProcess,
) -> None:
    await proxy.start()
    async with RawClient(proxy.port) as idle:
        await idle.send(request(2))
        assert (await idle.answer()).is_complete
        async with leaving(proxy) as busy:
            assert await idle.everything() == b""  # closed, and nothing was said
            assert proxy.running
            last = b""
            while piece := await busy.piece():
                last = piece
            assert last == b"data: [DONE]\n\n"
    assert await proxy.wait() == 0


async def test_a_call_that_began_to_arrive_is_answered_and_its_connection_closed(
    proxy: ProxyProcess,
) -> None:
    await proxy.start()
    whole = request(2)
    in_head, in_body = 30, len(whole) - 5
    async with RawClient(proxy.port) as first, RawClient(proxy.port) as second:
        await first.send(whole[:in_head])
        await second.send(whole[:in_body])
        async with leaving(proxy):
            for client, sent in ((first, in_head), (second, in_body)):
                await client.send(whole[sent:])
                answer = await client.answer()
                assert (answer.status, answer.is_complete) == (200, True)
                assert answer.header("Connection") == "close"
                assert answer.body.endswith(b"data: [DONE]\n\n")
                assert await client.everything() == b""
    assert await proxy.wait() == 0


async def test_a_call_that_follows_an_answer_at_once_is_answered_too(proxy: ProxyProcess) -> None:
    """The answer began before the server left, so its client was not told to connect anew."""
    await proxy.start()
    async with leaving(proxy) as busy:
        while await busy.piece():
            pass
        await asyncio.sleep(0.1)  # longer than the server takes to see that the answer has ended
        await busy.send(request(2))
        answer = await busy.answer()
        assert (answer.status, answer.is_complete) == (200, True)
        assert answer.header("Connection") == "close"
    assert await proxy.wait() == 0


async def lazy_client(port: int, receive_bytes: int = 65536) -> socket.socket:
    """A connection whose client looks at it only when it wants something of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def test_a_connection_that_its_client_leaves_open_is_reset_at_the_end(
    proxy: ProxyProcess,
) -> None:
    """Else it outlives the server's address, and with it what a NAT remembers of it."""
    await proxy.start()
    with await lazy_client(proxy.port) as connection:
        proxy.terminate()
        assert await proxy.wait() == 0
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        assert state == TCP_CLOSE


async def test_an_answer_that_is_still_on_its_way_is_not_cut_by_the_reset(
    proxy: ProxyProcess,
) -> None:
    await proxy.start()
    loop = asyncio.get_running_loop()
    with await lazy_client(proxy.port, receive_bytes=4096) as connection:
        await loop.sock_sendall(connection, request(2, "big", megabytes=1))
        await proxy.drained()
        proxy.terminate()
        assert await proxy.wait() == 0
        received = b""
        while data := await loop.sock_recv(connection, 65536):
            received += data
    assert len(received) > 900_000
    assert received.endswith(b"\r\n0\r\n\r\n")
