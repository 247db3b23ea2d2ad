"""An `AsyncHTTPClient` for proxies: pooled connections, back-pressure, real cancellation.

Tornado's own two implementations do not fit. simple_httpclient opens a connection, and for https
a TLS session, for every request; neither it nor curl_httpclient can cancel a fetch, hands over the
parsed head before the body, or limits silence rather than the whole. This one is built on
Tornado's `TCPClient`, asyncio's transports and llhttp. It reads answers in two ways:

    AsyncHTTPClient.configure(PooledHTTPClient, max_connections_per_host=500)
    response = await AsyncHTTPClient().fetch(url, raise_error=False)    # as Tornado's clients do

    async with PooledHTTPClient().stream(StreamingRequest(url, ...)) as answer:
        print(answer.status, answer.headers)
        while data := await answer.read():
            ...

What it promises:

- Cancelling a fetch, or leaving the block of `stream`, closes the connection to the server at
  once; so does a callback that fails, and its exception reaches the caller unchanged.
- Nothing is read before the caller asks for more, so memory does not grow with the body.
- Bytes pass unchanged. Redirects are not followed, nothing is decompressed, no header is added
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
  again until the connect time-out is over. A name that was resolved before is not needed anew.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.netutil import Resolver

from open_llm_proxy.server.upstream.connection import Connection
from open_llm_proxy.server.upstream.connector import Connector, Patience
from open_llm_proxy.server.upstream.exceptions import (
    ConnectFailed,
    ConnectionLost,
    FetchTimeout,
    MalformedResponse,
    ResponseTooLarge,
    UpstreamError,
)
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.pool import ConnectionPool
from open_llm_proxy.server.upstream.request import (
    Attempts,
    StreamingRequest,
    check_supported,
    parse_target,
    request_head,
)
from open_llm_proxy.server.upstream.response import PreparedRequest, UpstreamResponse, says_close
from open_llm_proxy.server.upstream.shared_dns import SharedLookups
from open_llm_proxy.server.upstream.timeouts import Deadline
from open_llm_proxy.server.upstream.tls import TLSContexts

__all__ = [
    "Attempts",
    "ConnectFailed",
    "ConnectionLost",
    "FetchTimeout",
    "MalformedResponse",
    "PooledHTTPClient",
    "ResponseTooLarge",
    "StreamingRequest",
    "UpstreamError",
    "UpstreamResponse",
]


class PooledHTTPClient(AsyncHTTPClient):
    """The client; its options go to `AsyncHTTPClient.configure`, or here with `force_instance`.

    `max_connections_per_host`: connections in use at a time to one origin, None for no limit;
    waiting for one counts against the connect and the total time-out. `max_idle_per_host` and
    `idle_expiry_seconds`: how many are kept for the next request, and for how long; a little less
    than the 60 s after which common balancers close them. `connect_backoff_seconds`: the pause
    between failed connects; the first has none behind it, and later ones double. `max_body_size`:
    bytes of an answer held in memory when there is no `streaming_callback`. `max_header_size`:
    bytes of its head.
    `ssl_options` (a context or a dict), `resolver` and `defaults` are as in Tornado's clients.

    `stream` raises the errors of exceptions.py, and `ValueError` for a request that cannot be
    sent; `fetch` also `HTTPError` for a status other than 2xx unless `raise_error=False`, and what
    a callback raised.
    """

    defaults: dict[str, Any]

    def initialize(
        self,
        defaults: dict[str, Any] | None = None,
        *,
        max_idle_per_host: int = 100,
        max_connections_per_host: int | None = 1024,
        idle_expiry_seconds: float = 55.0,
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
        self._connector = Connector(self._resolver, connect_backoff_seconds)
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
        if not isinstance(request, HTTPRequest):
            request = HTTPRequest(url=request, **kwargs)
        elif kwargs:
            raise ValueError("options belong into the HTTPRequest when fetch is given one")
        self._check_open()
        return asyncio.ensure_future(self._fetch(request, raise_error))

    def stream(self, request: HTTPRequest) -> "Exchange":
        """Send a request; `async with` begins when the head of the answer is there.

        The block reads the body. Leaving it before the body's end closes the connection at once,
        for whatever reason. The total time-out counts within the block and is raised at its end.
        """
        self._check_open()
        return Exchange(
            self,
            self._pool,
            self._prepare(request),
            *_attempts_of(request),
            self._seconds(request, "connect_timeout"),
            self._seconds(request, "request_timeout"),
        )

    async def _fetch(self, request: HTTPRequest, raise_error: bool) -> HTTPResponse:
        started_at, begun = time.time(), self.io_loop.time()
        body = BytesIO()
        async with self.stream(request) as answer:
            if request.header_callback is not None:
                _show_head(answer, request.header_callback)
            while data := await answer.read():
                if request.streaming_callback is None:
                    self._hold(data, body)
                elif (taken := request.streaming_callback(data)) is not None:
                    await taken
        response = HTTPResponse(
            request,
            answer.status,
            headers=answer.headers,
            buffer=body,
            reason=answer.reason,
            request_time=self.io_loop.time() - begun,
            start_time=started_at,
        )
        if raise_error:
            response.rethrow()
        return response

    def _prepare(self, request: HTTPRequest) -> PreparedRequest:
        check_supported(request)
        target = parse_target(request.url)
        tls = self._tls_contexts.of(request, self.defaults) if target.scheme == "https" else None
        user_agent: str | None = request.user_agent or self.defaults.get("user_agent")
        headers = request.headers
        if not isinstance(headers, HTTPHeaders):
            headers = HTTPHeaders(headers)
        return PreparedRequest(
            origin=Origin(target.scheme, target.host, target.port, tls),
            method=request.method,
            head=request_head(request, target, headers, user_agent),
            body=request.body or b"",
            says_close=says_close(headers),
            idle_timeout=request.idle_timeout if isinstance(request, StreamingRequest) else None,
            max_header_bytes=self._max_header_size,
        )

    def _hold(self, data: bytes, body: BytesIO) -> None:
        if body.tell() + len(data) > self._max_body_size:
            raise ResponseTooLarge(
                f"the body exceeds max_body_size ({self._max_body_size} bytes); "
                "give a streaming_callback or raise the limit"
            )
        body.write(data)

    def _seconds(self, request: HTTPRequest, name: str) -> float | None:
        seconds: float | None = getattr(request, name)
        if seconds is None and not isinstance(request, StreamingRequest):
            seconds = self.defaults[name]
        return seconds

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client has been closed")


class Exchange:
    """One request and its answer, made by `PooledHTTPClient.stream` for one `async with`."""

    def __init__(
        self,
        client: PooledHTTPClient,
        pool: ConnectionPool,
        request: PreparedRequest,
        attempts: Attempts,
        keeps_trying: bool,
        connect_timeout: float | None,
        total_timeout: float | None,
    ) -> None:
        self._client = client
        self._pool = pool
        self._request = request
        self._attempts = attempts
        self._keeps_trying = keeps_trying
        self._connect_timeout = connect_timeout
        self._deadline = Deadline("total", total_timeout, request.origin)
        self._connection: Connection | None = None
        self._response: UpstreamResponse | None = None

    async def __aenter__(self) -> UpstreamResponse:
        await self._deadline.__aenter__()
        try:
            self._connection = connection = await self._pool.acquire(
                self._request.origin,
                self._attempts,
                self._connect_timeout,
                keeps_trying=self._keeps_trying,
            )
            return await self._begin(connection)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        response, connection = self._response, self._connection
        if response is not None:
            response.close()
        if connection is not None:
            self._pool.release(connection, reusable=response is not None and response.reusable)
        await self._deadline.__aexit__(kind, error, trace)

    async def _begin(self, connection: Connection) -> UpstreamResponse:
        self._response = response = UpstreamResponse(self._request, connection)
        self._attempts.sends += 1
        try:
            await response.begin()
            return response
        except ConnectionLost:
            if not (connection.reused and response.was_stale):
                raise
        self._client.stale_retries += 1
        patience = Patience.of(self._attempts, self._connect_timeout)
        self._connection = connection = await self._pool.replace(connection, patience)
        self._response = response = UpstreamResponse(self._request, connection)
        self._attempts.sends += 1
        await response.begin()
        return response


def _attempts_of(request: HTTPRequest) -> tuple[Attempts, bool]:
    """Where to count, and whether to keep trying."""
    if isinstance(request, StreamingRequest):
        return request.attempts, request.keeps_trying
    return Attempts(), True


def _show_head(answer: UpstreamResponse, show: Callable[[str], None]) -> None:
    show(f"HTTP/1.1 {answer.status} {answer.reason}\r\n")
    for name, value in answer.headers.get_all():
        show(f"{name}: {value}\r\n")
    show("\r\n")
