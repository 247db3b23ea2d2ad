"""One request and its answer on one connection.

Answers are parsed by llhttp, the parser of Node.js, which is strict about all that two readers
could read differently (RFC 9112, section 11): line ends, folded headers, lengths that are repeated,
chunks that are not as long as they say. What it leaves open is decided here: other codings than
`chunked`, heads and trailers without an end.

The parser is fed as bytes arrive and the caller pulls what it found, so that a slow client slows
the provider. Every byte that arrives is handed over before the response fails; what arrived
together is handed over together; memory holds no more than twice 32 KiB of a response.
"""

import asyncio
from dataclasses import dataclass

import httptools
from tornado.http1connection import is_transfer_encoding_chunked
from tornado.httputil import HTTPHeaders, HTTPInputError

from open_llm_proxy.server.upstream.connection import CHUNK_BYTES, Connection
from open_llm_proxy.server.upstream.exceptions import (
    ConnectionLost,
    FetchTimeout,
    MalformedResponse,
    UpstreamError,
)
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.timeouts import SilenceLimit

# A connection that the server closed while it was idle shows it within a round trip of our
# sending. One that ends later was being worked on, and its request is not sent a second time.
_STALE_SECONDS = 5.0
_MAX_INTERIM_HEADS = 10
# Chunk extensions and trailers are skipped; so many bytes without any of the body are no answer.
_MAX_BYTES_WITHOUT_BODY = 16 * 1024


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A checked request: `head` is its request line and headers, with the blank line."""

    origin: Origin
    method: str
    head: bytes
    body: bytes
    says_close: bool
    idle_timeout: float | None
    max_header_bytes: int


class UpstreamResponse:
    """The answer to one request; `status`, `reason` and `headers` are there after `begin`."""

    def __init__(self, request: PreparedRequest, connection: Connection) -> None:
        self.status = 0
        self.reason = ""
        self.headers: HTTPHeaders
        self.was_stale = False  # whether the connection had ended before the server could answer
        self._request = request
        self._connection = connection
        # It holds this response: `close` parts them, so that neither waits for the collector.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._version = ""
        self._fields: list[tuple[bytes, bytes]] = []
        self._interim_heads = 0
        self._head_bytes = 0  # that came before the end of the final head
        self._has_head = False
        self._ends_with_connection = False
        self._is_complete = False
        self._has_excess = False  # bytes that nobody asked for came behind the body
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        self._received_bytes = 0
        self._bytes_without_body = 0
        self._failure: UpstreamError | None = None
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._waiter: asyncio.Future[None] | None = None
        self._silence: SilenceLimit | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    @property
    def reusable(self) -> bool:
        """Whether the whole answer was read and another request may follow on its connection."""
        return (
            self._is_complete
            and not self._has_excess
            and not self._ends_with_connection
            and self._version == "1.1"
            and not self._request.says_close
            and not says_close(self.headers)
        )

    async def begin(self) -> None:
        """Send the request and read the final head of its answer, after any 1xx.

        Raises `ConnectionLost` or `MalformedResponse`.
        """
        self._connection.begin(self, self._request.head + self._request.body)
        while not self._has_head:
            if self._failure is not None:
                raise self._failure
            await self._news()

    async def read(self) -> bytes:
        """The next piece of the body as soon as it arrives, or b"" at the body's end.

        Raises `ConnectionLost`, `MalformedResponse` or `FetchTimeout("idle")`.
        """
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            if self._is_complete:
                return b""
            if self._silence is None:
                self._silence = SilenceLimit(self._request.idle_timeout, self._fell_silent)
            self._silence.begin()
            await self._news()
            self._silence.end()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._pending_bytes > CHUNK_BYTES:
            self._connection.resume()
        self._pending_bytes = 0
        return data

    def end_within(self, seconds: float) -> None:
        """Close the connection if the body's end does not come in time, so that `read` fails."""
        if self._end_timer is None and not self._is_complete:
            self._end_timer = self._loop.call_later(seconds, self._connection.close)

    def close(self) -> None:
        """Stop all timers; nothing is read any more. The connection is the pool's to close."""
        self._connection.end()
        self._parser = None
        if self._silence is not None:
            self._silence.cancel()
        if self._end_timer is not None:
            self._end_timer.cancel()

    # Called by the connection.

    def data_received(self, data: bytes) -> None:
        if self._is_complete:
            self._has_excess = True
            return
        if self._failure is not None or self._parser is None:
            return
        received = self._received_bytes
        self._head_bytes += 0 if self._has_head else len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._is_complete:
                self._has_excess = True
            else:
                self._refuse(f"it is not valid HTTP/1.1 ({error})")
        except httptools.HttpParserUpgrade:
            self._refuse("it changes the protocol")
        self._check_bounds(len(data), self._received_bytes > received)
        if self._pending_bytes > CHUNK_BYTES:
            self._connection.pause()
        self._wake()

    def connection_ended(self, error: Exception | None) -> None:
        if self._ends_with_connection and error is None:
            self._is_complete = True
        elif not self._is_complete and self._failure is None:
            self._failure = self._lost(error)
        self._wake()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._has_excess = self._is_complete
        self.reason = ""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # else it is a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._has_head or self._failure is not None or self._parser is None:
            return
        self.status, self._version = self._parser.get_status_code(), self._parser.get_http_version()
        self.headers = headers = _headers(self._fields)
        self._fields = []
        if not self._version.startswith("1."):
            self._refuse("it is not HTTP/1.1")
            return
        if self.status < 200:
            self._interim_heads += 1
            if "Content-Length" in headers or "Transfer-Encoding" in headers:
                self._refuse(f"a head of status {self.status} announces a body")
            elif self._interim_heads == _MAX_INTERIM_HEADS:
                self._refuse("more than 10 heads of status 1xx")
            return
        try:
            is_chunked = is_transfer_encoding_chunked(headers)
        except HTTPInputError:
            self._refuse("it has a Transfer-Encoding other than chunked")
            return
        self._has_head = True
        if self._request.method == "HEAD" or self.status in (204, 304):
            self._is_complete = True
        self._ends_with_connection = not (
            is_chunked or self._is_complete or "Content-Length" in headers
        )

    def on_body(self, data: bytes) -> None:
        if self._is_complete:
            self._has_excess = True
        else:
            self._pieces.append(data)
            self._pending_bytes += len(data)
            self._received_bytes += len(data)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True

    def _check_bounds(self, size: int, has_body: bool) -> None:
        if self._has_head:
            self._bytes_without_body = 0 if has_body else self._bytes_without_body + size
            if self._bytes_without_body > _MAX_BYTES_WITHOUT_BODY and not self._is_complete:
                self._refuse("a chunk's size or the trailers do not end")
        elif self._head_bytes >= self._request.max_header_bytes:
            self._refuse(f"its head exceeds {self._request.max_header_bytes} bytes")

    async def _news(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fell_silent(self) -> None:
        seconds = self._silence.seconds if self._silence is not None else 0.0
        self._failure = FetchTimeout("idle", seconds, self._request.origin)
        self._connection.close()

    def _refuse(self, problem: str) -> None:
        if self._failure is None:
            self._failure = MalformedResponse(f"{self._request.origin}: the answer: {problem}")

    def _lost(self, error: Exception | None) -> ConnectionLost:
        begun = self._head_bytes > 0
        how = "was closed" if error is None else "was broken off"
        where = "within the head of the answer" if begun else "before any answer"
        if not self._has_head:
            self.was_stale = not begun and self._loop.time() - self._began < _STALE_SECONDS
        elif error is not None:
            how, where = "broke", f"after {self._received_bytes} bytes of the body"
        else:
            length = self.headers.get("Content-Length")
            of = "" if length is None else f" of {length}"
            where = f"after {self._received_bytes}{of} bytes of the body, before its end"
        lost = ConnectionLost(
            f"{self._request.origin}: the connection {how} {where}", response_started=begun
        )
        lost.__cause__ = error
        return lost


def says_close(headers: HTTPHeaders) -> bool:
    """Whether a Connection header has the option `close`."""
    value = headers.get("Connection")
    if value is None:
        return False
    return "close" in (option.strip() for option in value.lower().split(","))


def _headers(fields: list[tuple[bytes, bytes]]) -> HTTPHeaders:
    """The parser has checked them, so they are not checked again."""
    headers = HTTPHeaders()
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            headers.add(name, value)
        else:
            headers[name] = value
    return headers
