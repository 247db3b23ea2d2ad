"""An `AsyncHTTPClient` for proxies: pooled connections, back-pressure, real cancellation.

Tornado's own two implementations do not fit. simple_httpclient opens a connection, and for https
a TLS session, for every request; neither it nor curl_httpclient can cancel a fetch, hands over the
parsed head before the body, or limits silence rather than the whole. This one stands on Tornado's
`TCPClient` and `HTTP1Connection`. Select it once, before the first `AsyncHTTPClient()`:

    AsyncHTTPClient.configure(PooledHTTPClient, max_connections_per_host=500)
    response = await AsyncHTTPClient().fetch(StreamingRequest(url, ...), raise_error=False)

What it promises:

- `fetch` returns a task. Cancelling it closes the connection to the server at once; so does a
  callback that fails, and its exception reaches the caller as it is.
- `streaming_callback` is awaited before the next read, so memory does not grow with the body.
- Bytes pass as they are. Redirects are not followed, nothing is decompressed, no header is added
  but Host and Content-Length. `follow_redirects` and `decompress_response` are ignored.
- TLS is verified against the system's authorities, or those that SSL_CERT_FILE names.
- A request is sent once, with one exception. A kept connection may be closed by the server in the
  moment in which we send on it; the request then dies with the connection before a server has
  taken it up, and is sent again, once, on a new connection. A POST may be repeated only by a client
  that can tell that the first was not acted upon (RFC 9110, section 9.2.2; RFC 9112, section
  9.3.1). Here three things tell it: the connection had served before, not one byte of an answer
  came, not even a 1xx, and the end came within seconds, as in this race and unlike in a server
  that works on an answer. Should it be wrong all the same, a model computes an answer twice.
- Before anything is sent, a failed connect or a name server that is busy (EAI_AGAIN) is tried
  again a few times.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httputil import RequestStartLine
from tornado.netutil import Resolver

from open_llm_proxy.server.upstream.connector import Connector, Origin
from open_llm_proxy.server.upstream.errors import (
    ConnectFailed,
    ConnectionLost,
    Deadline,
    FetchTimeout,
    MalformedResponse,
    ResponseTooLarge,
    UpstreamError,
)
from open_llm_proxy.server.upstream.exchange import Call, Exchange, settle
from open_llm_proxy.server.upstream.pool import Connection, ConnectionPool
from open_llm_proxy.server.upstream.request import (
    StreamingRequest,
    check_supported,
    parse_target,
    request_headers,
)
from open_llm_proxy.server.upstream.shared_dns import SharedLookups
from open_llm_proxy.server.upstream.tls import TLSContexts

__all__ = [
    "ConnectFailed",
    "ConnectionLost",
    "FetchTimeout",
    "MalformedResponse",
    "PooledHTTPClient",
    "ResponseTooLarge",
    "StreamingRequest",
    "UpstreamError",
]


class PooledHTTPClient(AsyncHTTPClient):
    """The client; its options go to `AsyncHTTPClient.configure`, or here with `force_instance`.

    `max_connections_per_host`: connections in use at a time to one origin, None for no limit;
    waiting for one counts against the connect and the total time-out. `max_idle_per_host` and
    `idle_expiry_seconds`: how many are kept for the next request, and for how long; a little less
    than the 60 s after which common balancers close them. `connect_attempts` in all, the first
    `connect_backoff_seconds` after the other, then doubled. `max_body_size`: bytes of an answer
    held in memory when there is no `streaming_callback`. `max_header_size`: bytes of its head.
    `ssl_options` (a context or a dict), `resolver` and `defaults` are as in Tornado's clients.

    `fetch` raises the errors of errors.py, `HTTPError` for a status other than 2xx unless
    `raise_error=False`, `ValueError` for a request that cannot be sent, and what a callback raised.
    """

    defaults: dict[str, Any]

    def initialize(
        self,
        defaults: dict[str, Any] | None = None,
        *,
        max_idle_per_host: int = 100,
        max_connections_per_host: int | None = 1024,
        idle_expiry_seconds: float = 55.0,
        connect_attempts: int = 3,
        connect_backoff_seconds: float = 0.1,
        max_body_size: int = 100 * 1024 * 1024,
        max_header_size: int = 64 * 1024,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        super().initialize(defaults)
        self.stale_retries = 0  # requests sent again because a kept connection had ended
        self._max_body_size = max_body_size
        self._max_header_size = max_header_size
        self._tls_contexts = TLSContexts(ssl_options)
        self._resolver = resolver or SharedLookups()
        self._owns_resolver = resolver is None
        self._connector = Connector(self._resolver, connect_attempts, connect_backoff_seconds)
        self._pool = ConnectionPool(
            self._connector,
            max_idle_per_host=max_idle_per_host,
            max_connections_per_host=max_connections_per_host,
            idle_expiry_seconds=idle_expiry_seconds,
        )

    @property
    def connections_opened(self) -> int:
        """Connections made since the start."""
        return self._connector.opened

    @property
    def connections_in_use(self) -> int:
        """Connections with a request under way."""
        return self._pool.in_use

    @property
    def idle_connections(self) -> int:
        """Connections kept for a next request."""
        return self._pool.idle

    @property
    def waiting_requests(self) -> int:
        """Requests that have no connection yet."""
        return self._pool.waiting

    def close(self) -> None:
        """Close idle connections now, and the others when their fetches end."""
        super().close()
        self._pool.close()
        if self._owns_resolver:
            self._resolver.close()

    def fetch(
        self, request: str | HTTPRequest, raise_error: bool = True, **kwargs: Any
    ) -> "asyncio.Task[HTTPResponse]":
        """Start a request; the task that is returned can be awaited and cancelled."""
        if self._closed:
            raise RuntimeError("fetch() on a client that has been closed")
        if not isinstance(request, HTTPRequest):
            request = HTTPRequest(url=request, **kwargs)
        elif kwargs:
            raise ValueError("options belong into the HTTPRequest when fetch is given one")
        return asyncio.ensure_future(self._fetch(request, raise_error))

    async def _fetch(self, request: HTTPRequest, raise_error: bool) -> HTTPResponse:
        started_at, begun = time.time(), self.io_loop.time()
        body = BytesIO()
        call = self._call(request, body)
        async with Deadline("total", self._seconds(request, "request_timeout"), call.origin):
            exchange = await self._send(call, self._seconds(request, "connect_timeout"))
        response = HTTPResponse(
            request,
            exchange.start_line.code,
            headers=exchange.headers,
            buffer=body,
            reason=exchange.start_line.reason,
            request_time=self.io_loop.time() - begun,
            start_time=started_at,
        )
        if raise_error:
            response.rethrow()
        return response

    async def _send(self, call: Call, connect_timeout: float | None) -> Exchange:
        async with Deadline("connect", connect_timeout, call.origin):
            connection = await self._pool.acquire(call.origin)
        reusable = False
        try:
            exchange = await self._exchange(call, connection, connect_timeout)
            reusable = exchange.reusable
        finally:
            self._pool.release(connection, reusable=reusable)
        return exchange

    async def _exchange(
        self, call: Call, connection: Connection, connect_timeout: float | None
    ) -> Exchange:
        exchange = Exchange(call, connection.stream)
        try:
            await exchange.run()
            return exchange
        except ConnectionLost:
            if not (connection.reused and exchange.was_stale):
                raise
        self.stale_retries += 1
        async with Deadline("connect", connect_timeout, call.origin):
            await self._pool.replace(connection)
        exchange = Exchange(call, connection.stream)
        await exchange.run()
        return exchange

    def _call(self, request: HTTPRequest, body: BytesIO) -> Call:
        check_supported(request)
        target = parse_target(request.url)
        tls = self._tls_contexts.of(request, self.defaults) if target.scheme == "https" else None
        origin = Origin(target.scheme, target.host, target.port, tls)
        user_agent: str | None = request.user_agent or self.defaults.get("user_agent")
        idle_timeout, on_response = None, None
        if isinstance(request, StreamingRequest):
            idle_timeout, on_response = request.idle_timeout, request.on_response
        return Call(
            origin=origin,
            start_line=RequestStartLine(request.method, target.path, ""),
            headers=request_headers(request, target.authority, user_agent),
            body=request.body or b"",
            idle_timeout=idle_timeout,
            max_header_bytes=self._max_header_size,
            header_callback=request.header_callback,
            on_response=on_response,
            on_body=self._on_body(request, origin, body),
        )

    def _on_body(
        self, request: HTTPRequest, origin: Origin, body: BytesIO
    ) -> Callable[[bytes], Awaitable[None]]:
        callback = request.streaming_callback

        async def pass_on(data: bytes) -> None:
            assert callback is not None
            await settle(callback(data))

        async def hold(data: bytes) -> None:
            if body.tell() + len(data) > self._max_body_size:
                raise ResponseTooLarge(
                    f"{origin}: the body exceeds max_body_size ({self._max_body_size} bytes); "
                    "give a streaming_callback or raise the limit"
                )
            body.write(data)

        return hold if callback is None else pass_on

    def _seconds(self, request: HTTPRequest, name: str) -> float | None:
        seconds: float | None = getattr(request, name)
        if seconds is None and not isinstance(request, StreamingRequest):
            seconds = self.defaults[name]
        return seconds
