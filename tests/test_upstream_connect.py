"""How the upstream client connects, over TCP and TLS, and what it says when it cannot."""

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from tornado.netutil import Resolver

import wire
from open_llm_proxy.server.upstream.client import (
    ConnectFailed,
    ConnectionLost,
    FetchTimeout,
    PooledHTTPClient,
    StreamingRequest,
    Timeouts,
)
from open_llm_proxy.server.upstream.connector import Connector
from raw_server import (
    RawConnection,
    ScriptedResolver,
    answer_all,
    serving,
)

SECRET = "sk-secret"


class SilentResolver(Resolver):
    """Never answers."""

    async def resolve(self, *_: object) -> list[tuple[int, Any]]:
        await asyncio.Event().wait()
        raise AssertionError


def busy() -> Exception:
    return socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_a_refused_connection_is_tried_while_the_connect_time_out_lasts() -> None:
    resolver = ScriptedResolver([wire.free_port()])
    client = PooledHTTPClient(force_instance=True, resolver=resolver, connect_backoff_seconds=0.001)
    url = f"http://api.example.com/v1?key={SECRET}"
    request = StreamingRequest(
        url, headers=[("Authorization", SECRET)], timeouts=Timeouts(connect_seconds=0.5)
    )
    with pytest.raises(ConnectFailed) as failed:
        await client.fetch(request)
    tries = request.attempts.connects
    assert str(failed.value) == (
        f"api.example.com:80: no connection (Connection refused), tried {tries} times"
    )
    # 0, 0, 1, 2, 4 ... 256 ms and then as often as there is time for
    assert tries >= 5 and (tries, request.attempts.sends) == (resolver.asked, 0)
    assert (client.connections_opened, client.connections_in_use) == (0, 0)
    client.close()


async def test_who_does_not_keep_trying_tries_twice() -> None:
    resolver = ScriptedResolver([busy()])
    client = PooledHTTPClient(force_instance=True, resolver=resolver)
    request = StreamingRequest("http://api.example.com/", keeps_trying=False)
    with pytest.raises(ConnectFailed, match="cannot be resolved"):
        await client.fetch(request)
    assert resolver.asked == request.attempts.connects == 2
    client.close()


@pytest.mark.parametrize("first", [busy(), wire.free_port()], ids=["EAI_AGAIN", "refused"])
async def test_a_failure_that_passes_before_anything_was_sent_is_tried_again(
    first: Exception | int,
) -> None:
    resolver = ScriptedResolver([*[first] * 6, 0])
    async with serving(answer_all, resolver=resolver, connect_backoff_seconds=0.001) as (
        server,
        client,
    ):
        request = StreamingRequest(server.url)
        assert (await client.fetch(request)).body == b"/"
        again = StreamingRequest(server.url)
        await client.fetch(again)
    assert (request.attempts.connects, request.attempts.sends) == (7, 1)
    assert (again.attempts.connects, again.attempts.sends) == (0, 1)
    assert resolver.asked == 7
    assert len(server.requests) == 2


async def test_the_first_retry_comes_at_once_and_pauses_grow_and_are_spread() -> None:
    connector = Connector(ScriptedResolver([0]), 0.1)
    assert connector._pause(1) == 0
    for tries, pause in ((2, 0.1), (3, 0.2), (4, 0.4), (6, 1.6), (7, 2.0), (1000, 2.0)):
        pauses = {connector._pause(tries) for _ in range(50)}
        assert len(pauses) > 1 and pause / 2 <= min(pauses) and max(pauses) <= pause * 1.5


async def test_a_request_is_not_sent_twice_on_a_new_connection() -> None:
    """Not even where the server hangs up without a word: it may have read the request."""

    async def hang_up(connection: RawConnection) -> None:
        await connection.request()

    async with serving(hang_up) as (server, client):
        request = StreamingRequest(server.url)
        with pytest.raises(ConnectionLost):
            await client.fetch(request)
        assert (request.attempts.connects, request.attempts.sends) == (1, 1)
        assert len(server.requests) == 1


async def test_a_name_that_does_not_exist_is_asked_for_once() -> None:
    resolver = ScriptedResolver([socket.gaierror(socket.EAI_NONAME, "Name not known")])
    client = PooledHTTPClient(force_instance=True, resolver=resolver)
    with pytest.raises(ConnectFailed, match=r"^nowhere\.example:80: .*resolved \(Name not known\)"):
        await client.fetch("http://nowhere.example/")
    assert resolver.asked == 1
    client.close()


async def test_a_host_name_that_cannot_be_one_is_a_failed_connection() -> None:
    client = PooledHTTPClient(force_instance=True)
    with pytest.raises(ConnectFailed, match="not valid"):
        await client.fetch(f"http://{'a' * 70}.example/")
    client.close()


async def test_the_connect_time_out_covers_look_up_and_handshake() -> None:
    async def silent(connection: RawConnection) -> None:
        await connection.closed_by_client()

    async with serving(silent, resolver=SilentResolver()) as (server, client):
        with pytest.raises(FetchTimeout, match=r"0\.05 s") as fired:
            await client.fetch(
                StreamingRequest(server.url, timeouts=Timeouts(connect_seconds=0.05))
            )
        assert fired.value.deadline == "connect"
    async with serving(silent) as (server, client):
        url = server.url.replace("http:", "https:")  # whose handshake nobody answers
        with pytest.raises(FetchTimeout) as fired:
            await client.fetch(StreamingRequest(url, timeouts=Timeouts(connect_seconds=0.05)))
        assert fired.value.deadline == "connect"
        await server.all_closed()


async def test_an_unknown_authority_fails_and_names_the_remedy(
    certificates: wire.Certificates,
) -> None:
    async with serving(answer_all, certificates=certificates, ssl_options={}) as (server, _):
        client = PooledHTTPClient(force_instance=True)
        with pytest.raises(ConnectFailed, match=r"not trusted \(.*\).*SSL_CERT_FILE") as failed:
            await client.fetch(server.url)
        assert isinstance(failed.value.__cause__, ssl.SSLCertVerificationError)
        # No second attempt: a certificate does not get better.
        assert len(server.connections) <= 1
        assert client.connections_opened == 0
        # Unless the caller does not want to know.
        assert (await client.fetch(server.url, validate_cert=False)).code == 200
        client.close()


async def test_a_certificate_for_another_name_fails(tmp_path: Path) -> None:
    certificates = wire.make_certificates(tmp_path, names="DNS:other.example")
    async with serving(answer_all, certificates=certificates) as (server, client):
        with pytest.raises(ConnectFailed, match="mismatch"):
            await client.fetch(server.url)


async def test_the_server_is_told_which_name_is_wanted(tmp_path: Path) -> None:
    certificates = wire.make_certificates(tmp_path, names="DNS:api.example.com")
    context = certificates.server_context()
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Certificates, "server_context", lambda _: context)
        async with serving(
            answer_all, certificates=certificates, resolver=ScriptedResolver([0])
        ) as (server, client):
            url = f"https://api.example.com:{server.port}/"
            assert (await client.fetch(url)).code == 200
    assert asked == ["api.example.com"]


async def test_ssl_cert_file_names_the_authorities_and_one_context_serves_all_requests(
    certificates: wire.Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    create = ssl.create_default_context

    def counting(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        nonlocal made
        made += 1
        return create(*args, **kwargs)

    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificates.authority))
    async with serving(answer_all, certificates=certificates, ssl_options=None) as (server, client):
        monkeypatch.setattr(ssl, "create_default_context", counting)
        for path in ("a", "b"):
            answer = await client.fetch(server.url + path)
            assert answer.body == b"/" + path.encode()
        assert (made, client.connections_opened) == (1, 1)
        # Other TLS settings, another connection.
        options: dict[str, Any] = {"ca_certs": os.fspath(certificates.authority)}
        await client.fetch(server.url, **options)
        await client.fetch(server.url, **options)
        await client.fetch(server.url, ssl_options=options)
        await client.fetch(server.url, ssl_options=options)
        assert (made, client.connections_opened) == (2, 3)


async def test_a_server_that_speaks_no_tls_fails_at_once() -> None:
    async def plain(connection: RawConnection) -> None:
        await connection.send(b"220 mail.example ESMTP\r\n" * 10)
        await connection.closed_by_client()

    async with serving(plain) as (server, client):
        with pytest.raises(ConnectFailed, match="TLS handshake failed"):
            await client.fetch(server.url.replace("http:", "https:"))
        assert len(server.connections) == 1
