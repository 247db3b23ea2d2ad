"""Reads the body of an HTTP/1.1 response off a stream (RFC 9112, sections 6 and 7).

`HTTP1Connection` could do it, and does not fit a proxy in three ways, seen in Tornado 6.6: what it
has read of a chunked body and not yet passed on is lost when the connection breaks in the same
moment, so a client would miss a provider's last words; it takes neither chunk extensions nor
trailers, which a recipient has to (RFC 9112, sections 7.1.1 and 7.1.2); and it turns an exception
or a cancellation in a callback into a logged traceback.

Every byte that arrives is passed on before the reader waits for more and before it fails. Chunks
that have arrived together are passed on together. The next read begins when the receiver's
coroutine is done, so a slow receiver slows the sender, and memory holds a few times 64 KiB.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Literal, cast

from tornado.http1connection import is_transfer_encoding_chunked
from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from open_llm_proxy.server.upstream.connector import CHUNK_BYTES
from open_llm_proxy.server.upstream.errors import ConnectionLost, Deadline, MalformedResponse

# The number of bytes that follow, or how to find the end without one.
Framing = int | Literal["chunked", "until close"]

_CHUNK_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNK_SIZE_LINE_BYTES = 1024
_TRAILER_BYTES = 16 * 1024

# Reads that find their data already there return without a turn of the event loop. After this
# much such work, other tasks and time-outs get their turn; a read counts as some bytes itself.
_WORK_BYTES_PER_TURN = 256 * 1024
_WORK_BYTES_PER_READ = 512


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
    """Reads one body and awaits `deliver` for every piece of it, in order."""

    def __init__(
        self,
        stream: IOStream,
        origin: object,
        idle_timeout: float | None,
        deliver: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._stream = stream
        self._origin = origin
        self._idle_timeout = idle_timeout
        self._deliver = deliver
        self._pending = bytearray()  # of a chunked body: read, and not yet passed on
        self._received_bytes = 0
        self._work = 0

    async def read(self, framing: Framing) -> None:
        """Return after the body's last byte has been delivered.

        Raises `ConnectionLost`, `MalformedResponse`, `FetchTimeout("idle")`, and whatever
        `deliver` raises, unchanged.
        """
        if framing == "chunked":
            try:
                await self._read_chunks()
            except (ConnectionLost, MalformedResponse):
                await self._pass_on()
                raise
            await self._pass_on()
        elif framing == "until close":
            while data := await self._read_body(CHUNK_BYTES):
                await self._deliver(data)
        else:
            await self._read_length(framing)

    async def _read_length(self, length: int) -> None:
        while self._received_bytes < length:
            data = await self._read_body(length - self._received_bytes)
            if not data:
                raise self._cut_off(f" of {length}")
            await self._deliver(data)

    async def _read_chunks(self) -> None:
        while size := await self._read_chunk_size():
            await self._read_chunk(size)
        await self._skip_trailers()

    async def _read_chunk(self, size: int) -> None:
        end = b""
        while len(end) < 2:
            # The line end with the data: one read for what has mostly arrived together.
            wanted = min(CHUNK_BYTES, size + 2 - len(end))
            data = await self._read_some(self._stream.read_bytes, wanted, partial=True)
            body, end = data[:size], end + data[size:]
            size -= len(body)
            self._received_bytes += len(body)
            self._pending += body
            if len(self._pending) >= CHUNK_BYTES:
                await self._pass_on()
        if end != b"\r\n":
            raise MalformedResponse(f"{self._origin}: a chunk is longer than its size says")

    async def _skip_trailers(self) -> None:
        left = _TRAILER_BYTES
        while line := await self._read_some(self._stream.read_until, b"\r\n", left):
            if line == b"\r\n":
                return
            left -= len(line)

    async def _read_chunk_size(self) -> int:
        line = await self._read_some(self._stream.read_until, b"\r\n", _CHUNK_SIZE_LINE_BYTES)
        match = _CHUNK_SIZE_LINE.fullmatch(line)
        if match is None:
            raise MalformedResponse(f"{self._origin}: a chunk does not begin with its size")
        return int(match[1], 16)

    async def _read_some(
        self, read: Callable[..., Awaitable[bytes]], *arguments: object, **options: object
    ) -> bytes:
        data = await self._read(read, *arguments, **options)
        if not data:
            raise self._cut_off()
        return data

    async def _read_body(self, missing: int) -> bytes:
        data = await self._read(self._stream.read_bytes, min(CHUNK_BYTES, missing), partial=True)
        self._received_bytes += len(data)
        return data

    async def _read(
        self, read: Callable[..., Awaitable[bytes]], *arguments: object, **options: object
    ) -> bytes:
        """What `read` gives, or b"" where the server has closed the connection in good order."""
        try:
            # IOStream declares awaitables and returns futures, mostly resolved ones.
            future = cast("asyncio.Future[bytes]", read(*arguments, **options))
        except OSError as error:
            return self._end(error)
        if not future.done():
            await self._pass_on()
        elif self._work > _WORK_BYTES_PER_TURN:
            self._work = 0
            await asyncio.sleep(0)
        # Only the read stands in the try: a callback may fail with a StreamClosedError of its own.
        try:
            if future.done():
                data = future.result()
            else:
                async with Deadline("idle", self._idle_timeout, self._origin):
                    data = await future
        except OSError as error:
            return self._end(error)
        self._work += len(data) + _WORK_BYTES_PER_READ
        return data

    async def _pass_on(self) -> None:
        if self._pending:
            data = bytes(self._pending)
            self._pending.clear()
            await self._deliver(data)

    def _end(self, error: OSError) -> bytes:
        cause = error.real_error if isinstance(error, StreamClosedError) else error
        if cause is None:
            return b""
        if isinstance(cause, UnsatisfiableReadError):
            raise MalformedResponse(f"{self._origin}: a chunk's size or the trailers do not end")
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
