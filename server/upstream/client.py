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
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.netutil import Resolver

from open_llm_proxy.server.upstream.connector import Connector
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
    parse_target,
    request_head,
)
from open_llm_proxy.server.upstream.response import UpstreamResponse
from open_llm_proxy.server.upstream.shared_dns import SharedLookups
from open_llm_proxy.server.upstream.timeouts import SharedTimer, Timeouts
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
    "Timeouts",
    "UpstreamError",
    "UpstreamResponse",
]

# Attributes of HTTPRequest that change what is sent, or where to, and that are not offered.
_UNSUPPORTED = (
    "auth_username", "body_producer", "expect_100_continue", "network_interface",
    "prepare_curl_callback", "proxy_host",
)  # fmt: skip


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
        self._max_body_size = max_body_size
        self._max_header_size = max_header_size
        self._tls_contexts = TLSContexts(ssl_options)
        self._resolver = resolver or SharedLookups()
        self._owns_resolver = resolver is None
        self._connector = Connector(self._resolver, connect_backoff_seconds)
        self._timer = SharedTimer()
        self._pool = ConnectionPool(
            self._connector,
            self._timer,
            max_idle_per_host=max_idle_per_host,
            max_connections_per_host=max_connections_per_host,
            idle_expiry_seconds=idle_expiry_seconds,
        )

    @property
    def connections_opened(self) -> int:
        """Connections made since the start."""
        return self._connector.opened

    @property
    def stale_retries(self) -> int:
        """Requests sent again because a kept connection had ended."""
        return self._pool.replaced

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

    def stream(self, request: StreamingRequest) -> UpstreamResponse:
        """Send a request: `async with` begins when the head of the answer is there.

        `ValueError` for a request that must not be sent.
        """
        self._check_open()
        target = parse_target(request.url)
        tls = request.tls
        if tls is None and target.scheme == "https":
            tls = self._tls_contexts.default()
        return UpstreamResponse(
            request,
            Origin(target.host, target.port, tls),
            request_head(request, target),
            self._pool,
            self._timer,
            self._max_header_size,
        )

    def fetch(
        self,
        request: str | HTTPRequest | StreamingRequest,
        raise_error: bool = True,
        **kwargs: Any,
    ) -> "asyncio.Task[HTTPResponse]":
        """Start a request; the task that is returned can be awaited and cancelled."""
        self._check_open()
        if isinstance(request, str):
            request = HTTPRequest(url=request, **kwargs)
        elif kwargs:
            raise ValueError("options belong into the HTTPRequest when fetch is given one")
        return asyncio.ensure_future(self._fetch(request, raise_error))

    async def _fetch(
        self, request: HTTPRequest | StreamingRequest, raise_error: bool
    ) -> HTTPResponse:
        started_at, begun = time.time(), self.io_loop.time()
        if isinstance(request, StreamingRequest):
            streamed, asked = request, HTTPRequest(request.url)
        else:
            streamed, asked = self._streaming_request(request), request
        body = BytesIO()
        async with self.stream(streamed) as answer:
            if asked.header_callback is not None:
                _show_head(answer, asked.header_callback)
            while data := await answer.read():
                if asked.streaming_callback is None:
                    self._hold(data, body)
                elif (taken := asked.streaming_callback(data)) is not None:
                    await taken
        headers = HTTPHeaders()
        for name, value in answer.headers.get_all():
            headers.add(name, value)
        response = HTTPResponse(
            asked,
            answer.status,
            headers=headers,
            buffer=body,
            reason=answer.reason,
            request_time=self.io_loop.time() - begun,
            start_time=started_at,
        )
        if raise_error:
            response.rethrow()
        return response

    def _streaming_request(self, request: HTTPRequest) -> StreamingRequest:
        """The same as this client sends it; `ValueError` for an option that it does not offer."""
        for name in _UNSUPPORTED:
            if getattr(request, name):
                raise ValueError(f"{name} is not supported by PooledHTTPClient")
        given = request.headers
        headers = list((given if isinstance(given, HTTPHeaders) else HTTPHeaders(given)).get_all())
        user_agent = request.user_agent or self.defaults.get("user_agent")
        if user_agent is not None:
            headers = [pair for pair in headers if pair[0] != "User-Agent"]
            headers.append(("User-Agent", user_agent))
        is_secure = request.url.lower().startswith("https:")
        return StreamingRequest(
            request.url,
            request.method,
            headers,
            request.body,
            Timeouts(
                connect_seconds=self._seconds(request.connect_timeout, "connect_timeout"),
                total_seconds=self._seconds(request.request_timeout, "request_timeout"),
            ),
            tls=self._tls_contexts.of(request, self.defaults) if is_secure else None,
        )

    def _hold(self, data: bytes, body: BytesIO) -> None:
        if body.tell() + len(data) > self._max_body_size:
            raise ResponseTooLarge(
                f"the body exceeds max_body_size ({self._max_body_size} bytes); "
                "give a streaming_callback or raise the limit"
            )
        body.write(data)

    def _seconds(self, given: float | None, name: str) -> float:
        return float(self.defaults[name] if given is None else given)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client has been closed")


def _show_head(answer: UpstreamResponse, show: Callable[[str], None]) -> None:
    show(f"HTTP/1.1 {answer.status} {answer.reason}\r\n")
    for name, value in answer.headers.get_all():
        show(f"{name}: {value}\r\n")
    show("\r\n")
