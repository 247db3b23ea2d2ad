"""Reads the body of an HTTP/1.1 response off a stream (RFC 9112, sections 6 and 7).

`HTTP1Connection` could do it, and does not fit a proxy in three ways, seen in Tornado 6.6: what it
has read of a chunked body and not yet passed on is lost when the connection breaks in the same
moment, so a client would miss a provider's last words; it takes neither chunk extensions nor
trailers, which a recipient has to (RFC 9112, sections 7.1.1 and 7.1.2); and it turns an exception
or a cancellation in a callback into a logged traceback.

Every byte that arrives is handed over before the reader waits for more and before it fails. What
arrived together is handed over together. Nothing is read before the caller asks for more, so a slow
receiver slows the sender, and memory holds a few times 64 KiB.
"""

import asyncio
import re
from typing import Literal, cast

from tornado.http1connection import is_transfer_encoding_chunked
from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import IOStream, StreamClosedError

from open_llm_proxy.server.upstream.chunked import ChunkedDecoder
from open_llm_proxy.server.upstream.connector import CHUNK_BYTES
from open_llm_proxy.server.upstream.exceptions import (
    ConnectionLost,
    FetchTimeout,
    MalformedResponse,
)
from open_llm_proxy.server.upstream.timeouts import SilenceLimit

# The number of bytes that follow, or how to find the end without one.
Framing = int | Literal["chunked", "until close"]

# Reads that find their data already there return without a turn of the event loop. After this
# much such work, other tasks and time-outs get their turn; a read counts as some bytes itself.
_WORK_BYTES_PER_TURN = 256 * 1024
_WORK_BYTES_PER_READ = 512

# IOStream makes a buffer of full size for every read, which costs more than the read of a token.
_SMALL_READ_BYTES = 16 * 1024


def body_framing(origin: object, method: str, status: int, headers: HTTPHeaders) -> Framing:
    """How the body of a response ends (RFC 9112, section 6.3).

    Raises `MalformedResponse` where two readers could see two ends: both Content-Length and
    Transfer-Encoding, lengths that differ, or an encoding other than chunked.
    """
    if method == "HEAD" or status in (204, 304):
        return 0
    try:
        if is_transfer_encoding_chunked(headers):
            return "chunked"
    except HTTPInputError:
        raise MalformedResponse(
            f"{origin}: a Transfer-Encoding other than chunked, or a Content-Length beside it"
        ) from None
    lengths = {
        length.strip(" \t")
        for line in headers.get_list("Content-Length")
        for length in line.split(",")
    }
    if not lengths:
        return "until close"
    length = lengths.pop()
    if lengths or not re.fullmatch("[0-9]{1,18}", length):
        raise MalformedResponse(f"{origin}: the answer's Content-Length is not one number")
    return int(length)


class BodyReader:
    """Reads one body, a piece at a time."""

    def __init__(
        self, stream: IOStream, origin: object, framing: Framing, idle_timeout: float | None
    ) -> None:
        self.is_complete = framing == 0  # the last byte was read
        self.has_excess = False  # bytes that nobody asked for came behind the body
        self._stream = stream
        self._origin = origin
        self._length = framing if isinstance(framing, int) else None
        self._chunks = ChunkedDecoder() if framing == "chunked" else None
        self._silence = SilenceLimit(idle_timeout, stream.close)
        self._received_bytes = 0
        self._work = 0

    async def read(self) -> bytes:
        """The next piece of the body as soon as it arrives, or b"" at the body's end.

        Raises `ConnectionLost`, `MalformedResponse` or `FetchTimeout("idle")`.
        """
        if self._chunks is not None:
            return await self._read_chunks(self._chunks)
        if self.is_complete:
            return b""
        length = self._length
        missing = CHUNK_BYTES if length is None else length - self._received_bytes
        data = await self._read(min(CHUNK_BYTES, missing))
        self._received_bytes += len(data)
        if length is None:
            self.is_complete = not data
        elif not data:
            raise self._cut_off(f" of {length}")
        else:
            self.is_complete = self._received_bytes == length
        return data

    def close(self) -> None:
        """Stop the timer; `read` is not called any more."""
        self._silence.cancel()

    async def _read_chunks(self, chunks: ChunkedDecoder) -> bytes:
        while not self.is_complete:
            if chunks.problem is not None:
                raise MalformedResponse(f"{self._origin}: {chunks.problem}")
            received = await self._read(CHUNK_BYTES)
            if not received:
                raise self._cut_off()
            data = chunks.feed(received)
            self.is_complete, self.has_excess = chunks.is_complete, chunks.has_excess
            if data:
                self._received_bytes += len(data)
                return data
        return b""

    async def _read(self, max_bytes: int) -> bytes:
        """What has arrived, or b"" where the server has closed the connection in good order."""
        try:
            # IOStream declares an awaitable and returns a future, and it keeps what it has read.
            future = cast("asyncio.Future[bytes]", self._stream.read_bytes(max_bytes, partial=True))
            if not future.done():
                self._work = 0
                self._silence.begin()
            elif self._work > _WORK_BYTES_PER_TURN:
                self._work = 0
                await asyncio.sleep(0)
            data = await future
        except OSError as error:
            return self._end(error)
        self._silence.end()
        is_small = len(data) < _SMALL_READ_BYTES
        self._stream.read_chunk_size = _SMALL_READ_BYTES if is_small else CHUNK_BYTES
        self._work += len(data) + _WORK_BYTES_PER_READ
        return data

    def _end(self, error: OSError) -> bytes:
        if self._silence.is_over:
            raise FetchTimeout("idle", self._silence.seconds, self._origin) from None
        cause = error.real_error if isinstance(error, StreamClosedError) else error
        if cause is None:
            return b""
        raise ConnectionLost(
            f"{self._origin}: the connection broke after {self._received_bytes} bytes of the body",
            response_started=True,
        ) from cause

    def _cut_off(self, promised: str = "") -> ConnectionLost:
        return ConnectionLost(
            f"{self._origin}: the connection was closed after {self._received_bytes}{promised} "
            "bytes of the body, before its end",
            response_started=True,
        )
