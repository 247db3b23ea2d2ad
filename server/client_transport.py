"""The bytes of one client's connection, on asyncio's transport.

It has that part of `IOStream`'s interface that Tornado's HTTP/1 server uses, and its meaning: what
arrived is handed over before the end of the connection is told, and the end is told to whoever
reads or waits for it. An `IOStream` registers with and leaves the event loop several times for each
request and tries to read before anything can be there; here a request costs one read and one write.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from tornado.httputil import HTTPInputError
from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError, UnsatisfiableReadError

# A read, and how much may wait unread before the connection is not read any more.
CHUNK_BYTES = 64 * 1024
MAX_BUFFER_BYTES = 100 * 1024 * 1024
# One buffer serves all connections: it is emptied within the call that filled it.
_BUFFER = memoryview(bytearray(CHUNK_BYTES))


class ClientTransport(asyncio.BufferedProtocol):
    """One connection; `on_connected` is called with it once bytes can be read and written."""

    max_buffer_size = MAX_BUFFER_BYTES  # Tornado's default for a body

    def __init__(self, connection: socket.socket, on_connected: Callable[[Any], None]) -> None:
        self.socket = connection
        self.io_loop = IOLoop.current()
        self.received_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._on_connected = on_connected
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which no end was found
        self._reader: asyncio.Future[bytes] | None = None
        self._find_end: Callable[[], int | None] = lambda: None
        self._checked: Callable[[bytes], bytes] = bytes
        self._writers: list[asyncio.Future[None]] = []
        self._written_bytes = 0
        self._close_callback: Callable[[], None] | None = None
        self._is_closed = False
        self._has_ended = False  # the client sends no more
        self._is_lost = False
        self._error: BaseException | None = None

    @property
    def sent_bytes(self) -> int:
        return self._written_bytes - self._unsent_bytes()

    @property
    def unread_bytes(self) -> int:
        return len(self._buffer)

    def fileno(self) -> int:
        return self.socket.fileno()

    def reading(self) -> bool:
        return self._reader is not None

    def writing(self) -> bool:
        return self._unsent_bytes() > 0

    def closed(self) -> bool:
        return self._is_closed

    def set_nodelay(self, value: bool) -> None:
        """Nothing: asyncio has set it, and Tornado would switch it twice for each answer."""

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call it once the connection has ended, from the event loop."""
        self._close_callback = callback
        if callback is not None and self._has_ended:
            self._loop.call_soon(self.close)

    def read_until_regex(
        self, regex: bytes, max_bytes: int | None = None
    ) -> "asyncio.Future[bytes]":
        return self.read_match(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        return self.read_match(re.escape(delimiter), max_bytes)

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        def end() -> int | None:
            size = len(self._buffer)
            return min(size, num_bytes) if size >= num_bytes or (partial and size) else None

        return self._read(end)

    def read_match(
        self,
        regex: bytes,
        max_bytes: int | None,
        checked: Callable[[bytes], bytes] = bytes,
    ) -> "asyncio.Future[bytes]":
        """Up to the end of the first match; `checked` turns it into the result, or raises."""
        return self._read(partial(self._end_of_match, re.compile(regex), max_bytes), checked)

    def write(self, data: bytes) -> "asyncio.Future[None]":
        """Resolves when the kernel has taken all that was written so far."""
        written: asyncio.Future[None] = self._loop.create_future()
        if self._transport is None or self._is_closed or self._is_lost:
            self.close()
            _fail(written, self._error)
            return written
        self._written_bytes += len(data)
        self._transport.write(data)
        if self._unsent_bytes():
            self._writers.append(written)
        else:
            written.set_result(None)
        return written

    def close(self, exc_info: BaseException | bool = False) -> None:
        """Close now; what was not sent yet is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        if isinstance(exc_info, BaseException):
            self._error = exc_info
        if self._transport is not None:
            self._transport.abort()
        waiting: list[asyncio.Future[None]] = self._writers
        self._writers = []
        for written in waiting:
            _fail(written, self._error)
        if self._reader is not None:
            _fail(self._reader, self._error)
            self._reader = None
        if self._close_callback is not None:
            callback, self._close_callback = self._close_callback, None
            self._loop.call_soon(callback)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_closed:
            self._transport.abort()
            return
        # A write is done when nothing is left of it.
        self._transport.set_write_buffer_limits(0)
        self._on_connected(self)

    def get_buffer(self, _size_hint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, size: int) -> None:
        self.received_bytes += size
        self._buffer += _BUFFER[:size]
        if self._reader is not None:
            self._look()
        elif len(self._buffer) > CHUNK_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended()
        return True  # an answer can still be written

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._error = self._error or error
        self._ended()
        if self._writers:
            self.close()

    def resume_writing(self) -> None:
        writers, self._writers = self._writers, []
        for written in writers:
            if not written.done():
                written.set_result(None)

    def _ended(self) -> None:
        """Tell whoever waits for something; else the next one who does."""
        self._has_ended = True
        if self._reader is not None or self._close_callback is not None:
            self.close()

    def _unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _read(
        self, find_end: Callable[[], int | None], checked: Callable[[bytes], bytes] = bytes
    ) -> "asyncio.Future[bytes]":
        reader: asyncio.Future[bytes] = self._loop.create_future()
        self._reader, self._find_end, self._checked = reader, find_end, checked
        self._searched = 0
        self._look()
        if self._reader is None:
            return reader
        if self._is_closed:
            self._reader = None
            _fail(reader, self._error)
        elif self._has_ended:
            self.close()
        elif self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()
        return reader

    def _look(self) -> None:
        """Hand over what is read, if it is there."""
        try:
            end = self._find_end()
        except UnsatisfiableReadError as error:
            self.close(error)
            return
        if end is None:
            return
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        if len(self._buffer) <= CHUNK_BYTES and self._transport and not self._is_closed:
            self._transport.resume_reading()  # or nobody would notice that the client leaves
        reader, self._reader = self._reader, None
        if reader is None or reader.done():
            return
        try:
            reader.set_result(self._checked(data))
        except HTTPInputError as error:
            reader.set_exception(error)

    def _end_of_match(self, pattern: "re.Pattern[bytes]", max_bytes: int | None) -> int | None:
        found = pattern.search(self._buffer, max(0, self._searched - len(pattern.pattern)))
        self._searched = len(self._buffer)
        end = None if found is None else found.end()
        if max_bytes is not None and (end or len(self._buffer)) > max_bytes:
            return self.too_long(max_bytes)
        return end

    def too_long(self, max_bytes: int) -> int:
        """What is read does not end in time: how much of it is handed over instead."""
        raise UnsatisfiableReadError(f"no end within {max_bytes} bytes")


def _fail(
    future: "asyncio.Future[bytes] | asyncio.Future[None]", error: BaseException | None
) -> None:
    if not future.done():
        future.set_exception(StreamClosedError(real_error=error))
        future.exception()  # whoever gave up does not hear of it
