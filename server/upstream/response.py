"""One request and its answer on one connection.

The head is written and read here, the body by a `BodyReader`, both straight on the `IOStream`.
Tornado's `HTTP1Connection` pushes what it reads into a delegate, where an exception or a
cancellation becomes a logged traceback; a proxy has to pull, so that a slow client slows the
provider, and to see every failure as what it is.
"""

import asyncio
import re
from dataclasses import dataclass

from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from open_llm_proxy.server.upstream.body import BodyReader, body_framing
from open_llm_proxy.server.upstream.connector import CHUNK_BYTES, Origin
from open_llm_proxy.server.upstream.exceptions import ConnectionLost, MalformedResponse
from open_llm_proxy.server.upstream.pool import unread_bytes

# A connection that the server closed while it was idle shows it within a round trip of our
# sending. One that ends later was being worked on, and its request is not sent a second time.
_STALE_SECONDS = 5.0
_MAX_INTERIM_HEADS = 10
_HEAD_END = b"\r?\n\r?\n"
# Status codes have three digits; the reason may be missing with its space (RFC 9112, section 4).
_STATUS_LINE = re.compile(r"(HTTP/1\.[0-9]) ([1-9][0-9]{2})(?: ([\t \x21-\x7e\x80-\xff]*))?")


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

    def __init__(self, request: PreparedRequest, stream: IOStream) -> None:
        self.status = 0
        self.reason = ""
        self.headers = HTTPHeaders()
        self.was_stale = False  # whether the connection had ended before the server could answer
        self._request = request
        self._stream = stream
        self._version = ""
        self._saw_interim = False
        self._body: BodyReader | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    @property
    def reusable(self) -> bool:
        """Whether the whole answer was read and another request may follow on its connection."""
        body = self._body
        return (
            body is not None
            and body.is_complete
            and not body.has_excess
            and self._version == "HTTP/1.1"
            and not self._request.says_close
            and not says_close(self.headers)
        )

    async def begin(self) -> None:
        """Send the request and read the final head of its answer, after any 1xx.

        Raises `ConnectionLost` or `MalformedResponse`.
        """
        request, started = self._request, asyncio.get_running_loop().time()
        try:
            # Not awaited: a server may answer, with a 413 for one, before it has read it all.
            if len(request.body) <= CHUNK_BYTES:
                self._stream.write(request.head + request.body)
            else:
                self._stream.write(request.head)
                self._stream.write(request.body)
            for _ in range(_MAX_INTERIM_HEADS):
                await self._read_head()
                if self.status >= 200:
                    break
                self._saw_interim = True
            else:
                raise self._malformed("more than 10 heads of status 1xx")
        except OSError as error:
            seconds = asyncio.get_running_loop().time() - started
            raise self._lost(error, seconds) from error
        framing = body_framing(request.origin, request.method, self.status, self.headers)
        self._body = BodyReader(self._stream, request.origin, framing, request.idle_timeout)

    async def read(self) -> bytes:
        """The next piece of the body as soon as it arrives, or b"" at the body's end.

        Raises `ConnectionLost`, `MalformedResponse` or `FetchTimeout("idle")`.
        """
        assert self._body is not None, "read after begin"
        return await self._body.read()

    def end_within(self, seconds: float) -> None:
        """Close the connection if the body's end does not come in time, so that `read` fails."""
        if self._end_timer is None and self._body is not None and not self._body.is_complete:
            loop = asyncio.get_running_loop()
            self._end_timer = loop.call_later(seconds, self._stream.close)

    def close(self) -> None:
        """Stop all timers; nothing is read any more. The connection is the pool's to close."""
        if self._body is not None:
            self._body.close()
        if self._end_timer is not None:
            self._end_timer.cancel()

    async def _read_head(self) -> None:
        data = await self._stream.read_until_regex(
            _HEAD_END, max_bytes=self._request.max_header_bytes
        )
        text = data.decode("latin-1").lstrip("\r\n")
        start_line, _, fields = text.partition("\n")
        found = _STATUS_LINE.fullmatch(start_line.removesuffix("\r"))
        if found is None:
            raise self._malformed("the answer does not begin with an HTTP/1.1 status line")
        self._version, self.status, self.reason = found[1], int(found[2]), found[3] or ""
        try:
            self.headers = HTTPHeaders.parse(fields)
        except HTTPInputError as error:
            raise self._malformed("the answer's head is not valid HTTP/1.1") from error
        if self.status < 200 and _has_body(self.headers):
            raise self._malformed(f"a head of status {self.status} announces a body")

    def _malformed(self, problem: str) -> MalformedResponse:
        return MalformedResponse(f"{self._request.origin}: {problem}")

    def _lost(self, error: OSError, seconds: float) -> ConnectionLost | MalformedResponse:
        cause = error.real_error if isinstance(error, StreamClosedError) else error
        if isinstance(cause, UnsatisfiableReadError):
            limit = self._request.max_header_bytes
            return self._malformed(f"the answer's head exceeds {limit} bytes")
        begun = self._saw_interim or unread_bytes(self._stream) > 0
        self.was_stale = not begun and seconds < _STALE_SECONDS
        how = "closed" if cause is None else "broken off"
        where = "within the head of the answer" if begun else "before any answer"
        return ConnectionLost(
            f"{self._request.origin}: the connection was {how} {where}", response_started=begun
        )


def says_close(headers: HTTPHeaders) -> bool:
    """Whether a Connection header has the option `close`."""
    value = headers.get("Connection")
    if value is None:
        return False
    return "close" in (option.strip() for option in value.lower().split(","))


def _has_body(headers: HTTPHeaders) -> bool:
    return "Content-Length" in headers or "Transfer-Encoding" in headers
