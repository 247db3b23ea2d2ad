"""One connection to a server: a protocol on asyncio's transport, so that reading costs one call.

What arrives goes to the response that is being received; bytes and ends that nobody asked for end
the connection, as they would be taken for the answer to the next request (RFC 9112, section 9.2).
The transport stays registered with the event loop for the connection's whole life: a stream of
tokens costs no system call but its reads.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Protocol, cast

from open_llm_proxy.server.upstream.origin import Origin

# A read, and how much may wait unread before the connection is not read any more.
CHUNK_BYTES = 32 * 1024
# One buffer serves all connections: it is emptied within the call that filled it.
_BUFFER = memoryview(bytearray(CHUNK_BYTES))


class Receiver(Protocol):
    """Who receives an answer."""

    def data_received(self, data: memoryview) -> None:
        """`data` is good for this call only."""

    def connection_ended(self, error: Exception | None) -> None:
        """Nothing more comes; None is an orderly end, by the server or by ourselves."""


class Connection(asyncio.BufferedProtocol):
    """Made by a `Connector`, lent out by a `ConnectionPool`."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.is_closed = False
        self.reused = False
        self.expires_at = 0.0  # while it is idle
        self.on_closed: Callable[[Connection], None] | None = None
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport
        self._is_paused = False
        self._ended_in_order = False
        self._poll = select.poll()

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport

    @property
    def is_silent(self) -> bool:
        """Whether nothing is under way: neither bytes of ours nor a response."""
        return not (
            self.is_closed or self._receiver is not None or self._transport.get_write_buffer_size()
        )

    @property
    def has_news(self) -> bool:
        """Whether the kernel holds bytes or an end of file that the event loop has not seen yet."""
        return bool(self._poll.poll(0))

    def begin(self, receiver: Receiver, data: bytes) -> None:
        """Send a request; `receiver` gets the answer, maybe before the server has read it all."""
        self._receiver = receiver
        if self.is_closed:
            receiver.connection_ended(None)
        else:
            self._transport.write(data)

    def end(self) -> None:
        """The response is there, or nobody wants it any more."""
        self._receiver = None
        self.resume()

    def pause(self) -> None:
        """Read no more until `resume`, so that a slow receiver slows the server."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and not self.is_closed:
            self._is_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close now; what was not sent yet is dropped."""
        if not self.is_closed:
            self._transport.abort()
            self._has_ended(None)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def get_buffer(self, _size_hint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, size: int) -> None:
        if self._receiver is not None:
            self._receiver.data_received(_BUFFER[:size])
        else:
            self.close()

    def eof_received(self) -> None:
        self._ended_in_order = True
        self._has_ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and not self._ended_in_order:
            # TLS without its close_notify: an answer that was cut off must not pass for a whole one
            # (RFC 9112, section 9.8).
            error = ConnectionResetError("TLS was cut off")
        self._has_ended(error)

    def _has_ended(self, error: Exception | None) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.connection_ended(error)
        if self.on_closed is not None:
            self.on_closed(self)
