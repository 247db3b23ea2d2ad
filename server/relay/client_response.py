"""The client's side of a call: the head, the bytes, and one of two ends.

An answer ends complete, after its closing entry is durable, or visibly broken off. A stream that
breaks off gets an error event first, and the client a moment to take it, because browsers drop
what they have not read when the connection is cut.
"""

import asyncio
import logging
import socket
import struct

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError

from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay.stream_error import StreamError

log = logging.getLogger(__name__)

# How long a client that reads slowly has to take the error that ends its stream, and how long
# one has to read it before the connection is cut.
ERROR_EVENT_SECONDS = 2.0
CUT_DELAY_SECONDS = 0.1


class ClientResponse:
    """Writes one answer through a Tornado handler."""

    def __init__(self, handler: ProxyHandler) -> None:
        self.is_sending = False  # bytes wait for the client to take them
        self._handler = handler
        self._is_stream = False
        self._stream_error = StreamError()

    @property
    def request_id(self) -> str:
        return self._handler.request_id

    @property
    def begun(self) -> bool:
        """Whether the head was sent, so that no other answer can be given any more."""
        return self._handler.head_sent

    async def begin(
        self, status: int, reason: str, headers: HTTPHeaders, *, is_stream: bool
    ) -> None:
        """Set the head of the answer; for a stream, send it."""
        handler = self._handler
        self._is_stream = is_stream
        handler.set_status(status, reason or None)
        handler.clear_header("Content-Type")
        handler.clear_header("X-Request-Id")
        handler.take_headers(headers)
        if handler.request.version != "HTTP/1.1":
            # There are no chunks, so the connection's end is the answer's; Tornado would still
            # promise to keep it open to a client that asked for that.
            handler.request.headers.pop("Connection", None)
            handler.set_header("Connection", "close")
        if is_stream:
            await handler.flush()

    async def send(self, data: bytes) -> None:
        """Send bytes and wait until the client's socket has taken them."""
        if self._is_stream:
            self._stream_error.follow(data)
        self._handler.write(data)
        self.is_sending = True
        await self._handler.flush()
        self.is_sending = False

    async def end(self, held: bytes) -> None:
        """The closing entry is durable: let the client have the end of its answer."""
        handler = self._handler
        if handler.connection.stream.closed():
            return
        # Tornado takes an empty write for a body, which a 204 must not have.
        await handler.finish(held or None)

    async def fail(self, error: ProxyError) -> None:
        """Say in place of the answer, or of its rest, why there is none."""
        handler = self._handler
        if not self.begun:
            handler.clear()
            handler.answer_error(error)
            return
        if self._is_stream and not handler.is_coded:
            handler.write(self._stream_error.event(error.body()))
            try:
                await asyncio.wait_for(handler.flush(), ERROR_EVENT_SECONDS)
                await self._pause_before_the_cut()
            except (StreamClosedError, TimeoutError):
                log.debug("The client of call %s did not take its error", handler.request_id)
        self.cut()

    async def _pause_before_the_cut(self) -> None:
        await asyncio.sleep(CUT_DELAY_SECONDS)

    def cut(self) -> None:
        """Close the connection in a way that shows that the answer is not complete."""
        connection = self._handler.connection
        stream = connection.stream
        is_delimited = self._handler.request.version == "HTTP/1.1" or self._is_stream
        if not is_delimited and not stream.closed():
            # Without chunks an orderly close would be the end of a complete answer: reset it.
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
