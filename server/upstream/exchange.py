"""One request and its answer on one connection."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from open_llm_proxy.server.upstream.body import BodyReader, body_framing
from open_llm_proxy.server.upstream.connector import CHUNK_BYTES, Origin
from open_llm_proxy.server.upstream.errors import ConnectionLost, Deadline, MalformedResponse
from open_llm_proxy.server.upstream.pool import unread_bytes
from open_llm_proxy.server.upstream.request import OnResponse

# A connection that the server closed while it was idle shows it within a round trip of our
# sending. One that ends later was being worked on, and its request is not sent a second time.
_STALE_SECONDS = 5.0

# A big request body is written in pieces of this size, each of which restarts the idle time-out.
_PIECE_BYTES = 256 * 1024

_NO_ANSWER = ResponseStartLine("", 0, "")


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request, and where its answer goes."""

    origin: Origin
    start_line: RequestStartLine
    headers: HTTPHeaders
    body: bytes
    idle_timeout: float | None
    max_header_bytes: int
    header_callback: Callable[[str], None] | None
    on_response: OnResponse | None
    on_body: Callable[[bytes], Awaitable[None]]


class Exchange(HTTPMessageDelegate):
    """Sends a call on a connection and reads the answer; used once.

    `HTTP1Connection` writes the request and reads the head of the answer; then it is detached, as
    for an upgraded protocol, and a `BodyReader` takes over, which says why.
    """

    def __init__(self, call: Call, stream: IOStream) -> None:
        self.start_line = _NO_ANSWER
        self.headers = HTTPHeaders()
        self.reusable = False  # whether another request may follow on this connection
        self.was_stale = False  # whether the connection had ended before the server could answer
        self._call = call
        self._stream = stream
        self._connection = HTTP1Connection(
            stream, True, HTTP1ConnectionParameters(max_header_size=call.max_header_bytes)
        )
        self._unsent = memoryview(b"")
        self._saw_interim = False
        self._silence: Deadline | None = None

    async def run(self) -> None:
        """Return when the whole answer has been delivered; any `UpstreamError`, or a callback's."""
        call = self._call
        await self._exchange_heads()
        status = self.start_line.code
        framing = body_framing(call.origin, call.start_line.method, status, self.headers)
        await self._show_head()
        body = BodyReader(self._stream, call.origin, call.idle_timeout, call.on_body)
        await body.read(framing)
        self.reusable = (
            self.start_line.version == "HTTP/1.1"
            and not _says_close(self.headers)
            and not _says_close(call.headers)
            and not self._unsent
            and not body.has_excess
        )

    async def _exchange_heads(self) -> None:
        call, started = self._call, asyncio.get_running_loop().time()
        try:
            async with Deadline("idle", call.idle_timeout, call.origin) as self._silence:
                # Not awaited: a server may answer, with a 413 for one, before it has read it all.
                self._send()
                await self._connection.read_response(self)
        except OSError as error:
            seconds = asyncio.get_running_loop().time() - started
            raise self._lost(error, seconds) from error
        finally:
            self._silence = None
        if self.start_line is _NO_ANSWER:
            raise MalformedResponse(f"{call.origin}: the answer's head is not valid HTTP/1.1")

    def _send(self) -> None:
        call = self._call
        # A big body goes out in pieces behind the head: joined to it, it would be copied.
        with_head = len(call.body) <= CHUNK_BYTES
        if not with_head:
            self._unsent = memoryview(call.body)
        sent = self._connection.write_headers(
            call.start_line, call.headers, call.body if with_head else None
        )
        sent.add_done_callback(self._send_more)

    def _send_more(self, _: object) -> None:
        # While the server takes what we send, it is not silent.
        self._restart_silence()
        if self._unsent and not self._stream.closed():
            piece, self._unsent = self._unsent[:_PIECE_BYTES], self._unsent[_PIECE_BYTES:]
            self._stream.write(piece).add_done_callback(self._send_more)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Called by `HTTP1Connection`, for each 1xx and for the final head."""
        assert isinstance(start_line, ResponseStartLine)
        if start_line.code < 200:
            self._saw_interim = True
            self._restart_silence()
            return
        self.start_line, self.headers = start_line, headers
        self._connection.detach()

    def _restart_silence(self) -> None:
        if self._silence is not None:
            self._silence.restart()

    async def _show_head(self) -> None:
        call, start_line = self._call, self.start_line
        if call.header_callback is not None:
            call.header_callback("{} {} {}\r\n".format(*start_line))
            for name, value in self.headers.get_all():
                call.header_callback(f"{name}: {value}\r\n")
            call.header_callback("\r\n")
        if call.on_response is not None:
            await settle(call.on_response(start_line, self.headers))

    def _lost(self, error: OSError, seconds: float) -> ConnectionLost | MalformedResponse:
        origin = self._call.origin
        cause = error.real_error if isinstance(error, StreamClosedError) else error
        if isinstance(cause, UnsatisfiableReadError):
            limit = self._call.max_header_bytes
            return MalformedResponse(f"{origin}: the answer's head exceeds {limit} bytes")
        begun = self._saw_interim or unread_bytes(self._stream) > 0
        self.was_stale = not begun and seconds < _STALE_SECONDS
        how = "closed" if cause is None else "broken off"
        where = "within the head of the answer" if begun else "before any answer"
        return ConnectionLost(f"{origin}: the connection was {how} {where}", response_started=begun)


async def settle(result: Awaitable[None] | None) -> None:
    """Await what a callback returned, if it is a coroutine or a future."""
    if result is not None and inspect.isawaitable(result):
        await result


def _says_close(headers: HTTPHeaders) -> bool:
    options = headers.get("Connection", "").lower().split(",")
    return "close" in (option.strip() for option in options)
