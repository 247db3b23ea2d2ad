"""What the upstream client sends, refuses to send, and does while it is sending."""

import asyncio
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders

from open_llm_proxy.server.upstream.client import (
    FetchTimeout,
    PooledHTTPClient,
    StreamingRequest,
    Timeouts,
)
from raw_server import (
    RawConnection,
    answer_all,
    ok,
    once,
    serving,
)


async def test_a_post_sends_the_body_with_its_length_and_no_header_of_our_own() -> None:
    async with serving(once(ok())) as (server, client):
        headers = HTTPHeaders({"Authorization": "Bearer k", "Content-Length": "99"})
        headers.add("X-Two", "a")
        headers.add("X-Two", "b")
        request = HTTPRequest(server.url, "POST", headers, body=b"\x00\xff" * 100_000)
        await client.fetch(request)
        assert headers["Content-Length"] == "99", "the caller's headers were changed"
    [sent] = server.requests
    assert sent.body == b"\x00\xff" * 100_000
    assert sent.headers == (
        ("Host", f"127.0.0.1:{server.port}"),
        ("Authorization", "Bearer k"),
        ("X-Two", "a"),
        ("X-Two", "b"),
        ("Content-Length", "200000"),
    )


async def test_a_post_without_a_body_says_that_it_is_empty() -> None:
    async with serving(once(ok())) as (server, client):
        await client.fetch(HTTPRequest(server.url, "POST", user_agent="proxy/1"))
    assert server.requests[0].header("Content-Length") == "0"
    assert server.requests[0].header("User-Agent") == "proxy/1"


async def test_a_callers_own_host_header_is_sent_instead() -> None:
    async with serving(once(ok())) as (server, client):
        await client.fetch(server.url, headers={"Host": "api.example.com"})
    assert [v for k, v in server.requests[0].headers if k == "Host"] == ["api.example.com"]


REFUSED: dict[str, dict[str, Any]] = {
    "user in the URL": {"url": "http://user:secret@127.0.0.1/"},
    "empty user in the URL": {"url": "http://@127.0.0.1/secret"},
    "scheme": {"url": "ftp://127.0.0.1/secret"},
    "no host": {"url": "http:///secret"},
    "line break in the URL": {"url": "http://127.0.0.1/secret HTTP/1.1\r\nX: y"},
    "tab in the URL": {"url": "http://127.0.0.1/sec\tret"},
    "not ASCII": {"url": "http://127.0.0.1/secret-ä"},
    "method": {"method": "GET / HTTP/1.1\r\nsecret: "},
    "CONNECT": {"method": "CONNECT"},
    "CR LF in a value": {"headers": {"X-Key": "secret\r\nEvil: yes"}},
    "LF in a value": {"headers": {"X-Key": "secret\nEvil: yes"}},
    "CR in a value": {"headers": {"X-Key": "secret\rEvil: yes"}},
    "NUL in a value": {"headers": {"X-Key": "secret\x00"}},
    "no Latin-1 in a value": {"headers": {"X-Key": "secret\u20ac"}},
    "CR LF in a name": {"headers": {"secret\r\nEvil": "yes"}},
    "colon in a name": {"headers": {"secret:": "yes"}},
    "user agent": {"user_agent": "secret\r\nEvil: yes"},
    "Transfer-Encoding": {"headers": {"transfer-encoding": "chunked"}},
    "proxy": {"proxy_host": "secret", "proxy_port": 1},
    "body producer": {"body_producer": lambda write: None},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED.keys())
async def test_what_must_not_reach_the_wire_is_refused_before_a_connection_is_made(
    options: dict[str, Any],
) -> None:
    async with serving(answer_all) as (server, client):
        if "127.0.0.1/" in (url := options.get("url", server.url)):
            url = url.replace("127.0.0.1/", f"127.0.0.1:{server.port}/")
        with pytest.raises(ValueError) as refused:
            await client.fetch(HTTPRequest(**{**options, "url": url}))
        assert "secret" not in str(refused.value)
        assert client.connections_opened == 0
        assert not server.connections


async def test_two_host_headers_are_refused() -> None:
    headers = HTTPHeaders()
    headers.add("Host", "a")
    headers.add("Host", "b")
    client = PooledHTTPClient(force_instance=True)
    with pytest.raises(ValueError, match="one Host"):
        await client.fetch("http://127.0.0.1:1/", headers=headers)
    client.close()


async def test_an_early_answer_arrives_while_the_request_is_still_being_written() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read(1000)
        await connection.send(ok(b"too large").replace(b"200 OK", b"413 Too Large"))
        await connection.closed_by_client()

    async with serving(script) as (server, client):
        answer = await client.fetch(
            HTTPRequest(server.url, "POST", body=b"x" * (64 << 20)), raise_error=False
        )
        assert (answer.code, answer.body) == (413, b"too large")
        # Half a request is on that connection: nothing else may follow it.
        assert client.idle_connections == 0


async def test_an_upload_that_goes_on_is_not_silence() -> None:
    body = b"x" * (24 << 20)

    async def script(connection: RawConnection) -> None:
        for _ in range(24):
            await connection.read(1 << 20)
            await asyncio.sleep(0.02)  # in all, far longer than the idle time-out
        await connection.send(ok(b"read it"))
        await connection.closed_by_client()

    async with serving(script) as (server, client):
        request = StreamingRequest(
            server.url, "POST", body=body, timeouts=Timeouts(idle_seconds=0.2)
        )
        assert (await client.fetch(request)).body == b"read it"


async def test_a_server_that_does_not_read_the_request_has_until_the_total_time_out() -> None:
    done = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await done.wait()

    body = b"x" * (64 << 20)
    async with serving(script) as (server, client):
        request = StreamingRequest(
            server.url, "POST", body=body, timeouts=Timeouts(total_seconds=0.1)
        )
        with pytest.raises(FetchTimeout, match="total"):
            await client.fetch(request)
        done.set()


async def test_a_caller_that_asks_for_close_gets_a_connection_that_is_not_kept() -> None:
    async with serving(answer_all) as (server, client):
        await client.fetch(server.url, headers={"Connection": "close"})
        assert client.idle_connections == 0
        await server.all_closed()
