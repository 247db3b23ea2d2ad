"""One client's connection on asyncio's transport: requests one after the other, answers likewise.

What has come is handed to an `Exchange`, which answers. While it does, the connection is read on,
to notice that the client leaves, and what comes is kept unread, up to a bound. What arrived is
handed over before the end of the connection is told.

A request that is refused before its body has come is answered at once. Closing the socket right
after that would reset the connection, and a client that sends all before it reads would never see
the answer (RFC 9112, section 9.6). So the rest is taken in and thrown away, within bounds.
"""

import asyncio
import socket
import struct
import time
from typing import Literal, Protocol, cast

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.http1.request import Request, RequestParser
from open_llm_proxy.server.proxy_errors import ProxyError

# A read, and how much may wait unread before the connection is not read any more.
CHUNK_BYTES = 64 * 1024
# One buffer serves all connections: it is emptied within the call that filled it.
_BUFFER = memoryview(bytearray(CHUNK_BYTES))
# What is taken in of a refused request, and for how long.
LINGER_MAX_BYTES = 256 * 1024 * 1024
LINGER_SECONDS = 30.0

# new: nothing came yet. idle: between two requests. taking: an answer waits for the client.
# refused: the rest of a refused request is thrown away.
Phase = Literal["new", "idle", "idle with key", "head", "body", "answering", "taking", "refused"]


class ClientGone(Exception):
    """The client's connection is closed, so nothing can be written to it any more."""


class Exchange(Protocol):
    """Who answers a request, told of what happens to it; it calls `answered` once it has."""

    def head_came(self) -> None:
        """The request's head is there; called first."""

    def body_came(self, piece: bytes) -> None:
        """More of the body is there."""

    def body_ended(self) -> None:
        """All of the request is there."""

    def body_failed(self, error: ProxyError) -> None:
        """The rest of the body will not come, or cannot be read."""

    def client_left(self) -> None:
        """The client has closed its connection."""


class Server(Protocol):
    """Makes who answers a request, or refuses what cannot be read as one."""

    def begin(self, connection: "ClientConnection", request: Request) -> Exchange: ...

    def refuse(self, connection: "ClientConnection", problem: ProxyError) -> Exchange: ...


class ClientConnection(asyncio.BufferedProtocol):
    """Made for an accepted socket; `progress` tells from time to time what stands still."""

    def __init__(self, connection: socket.socket, remote_ip: str, server: Server) -> None:
        self.socket = connection
        self.has_shown_key = False
        self.is_closed = False
        self.is_sending = False  # bytes wait for the client to take them
        self.received_bytes = 0
        self.waits_since = time.monotonic()  # for its next request
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(remote_ip)
        self._requests = 0  # answered
        self._request: Request | None = None  # that is being answered
        self._exchange: Exchange | None = None
        self._ahead = bytearray()  # came while an answer was on its way
        self._written_bytes = 0
        self._sent: list[asyncio.Future[None]] = []
        self._is_leaving = False
        self._linger_until: float | None = None
        self._linger_bytes = 0

    # For the server.

    def progress(self) -> tuple[Phase, int]:
        """What the connection waits for, and a number that changes when it gets on with that."""
        if self.is_sending and self._transport is not None:
            return "taking", self._written_bytes - self._transport.get_write_buffer_size()
        if self._linger_until is not None:
            return "refused", self.received_bytes
        if self._request is not None:
            return ("answering", 0) if self._request.has_ended else ("body", self.received_bytes)
        if self._parser.is_within_head:
            return "head", self._requests
        if not self._requests:
            return "new", 0
        return "idle with key" if self.has_shown_key else "idle", self._requests

    def stood_still(self, phase: Phase) -> None:
        """It has waited for too long: answer the request whose body stopped, or close."""
        if phase == "body" and self._exchange is not None:
            self._exchange.body_failed(proxy_errors.body_stopped())
        else:
            self.close()

    def close(self) -> None:
        """Close now; what was not sent yet is dropped."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._loop.call_soon(exchange.client_left)

    # For who answers.

    def write(self, data: bytes) -> None:
        """Raises `ClientGone` where nobody is there any more."""
        if self.is_closed or self._transport is None:
            raise ClientGone
        self._written_bytes += len(data)
        self._transport.write(data)

    async def sent(self) -> None:
        """Wait until the kernel has taken all that was written; raises `ClientGone`."""
        if self.is_sending and not self.is_closed:
            sent = self._loop.create_future()
            self._sent.append(sent)
            await sent
        if self.is_closed:
            raise ClientGone

    def answered(self, *, closes: bool) -> None:
        """The answer was written to its end. `closes`: it says that the connection will, too."""
        request, self._request, self._exchange = self._request, None, None
        self._requests += 1
        self.waits_since = time.monotonic()
        if request is not None and request.has_ended:
            self._parser.requests.popleft()
        if request is None or not (request.has_ended or request.awaits_100):
            self._linger()
        elif closes:
            self._leave()
        elif self._ahead or self._parser.requests or self._parser.problem is not None:
            self._loop.call_soon(self._go_on)

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.is_closed:
            self._transport.abort()
            return
        # A write is done when nothing is left of it.
        self._transport.set_write_buffer_limits(0)

    def get_buffer(self, _size_hint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, size: int) -> None:
        self.received_bytes += size
        if self._is_leaving:
            return
        data = bytes(_BUFFER[:size])
        if self._linger_until is not None:
            self._throw_away(data)
        elif self._can_take_more():
            self._parser.feed(data)
            self._advance()
        else:
            self._ahead += data
            if len(self._ahead) > CHUNK_BYTES and self._transport is not None:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._exchange is None and self._linger_until is None:
            self._leave()
        else:
            self.close()
        return True  # what was written is still sent

    def connection_lost(self, error: Exception | None) -> None:
        self.close()

    def pause_writing(self) -> None:
        self.is_sending = True

    def resume_writing(self) -> None:
        self.is_sending = False
        self._wake()
        if self._request is None and self._linger_until is None:
            self._go_on()

    def _can_take_more(self) -> bool:
        """Whether what comes now is the rest of a request that is waited for, or the next one."""
        if self._request is not None:
            return not self._request.has_ended
        return not (self._parser.requests or self._ahead or self.is_sending)

    def _wake(self) -> None:
        sent, self._sent = self._sent, []
        for future in sent:
            if not future.done():
                future.set_result(None)

    def _go_on(self) -> None:
        """Begin with what came meanwhile, once the last answer was taken."""
        if self.is_sending or self._exchange is not None or self._is_leaving or self.is_closed:
            return
        if not self._parser.requests and self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
            self._parser.feed(data)
        if self._transport is not None and not self._ahead:
            self._transport.resume_reading()  # or nobody would notice that the client leaves
        self._advance()

    def _advance(self) -> None:
        """Hand over what has come, as far as it is the next request's."""
        parser = self._parser
        if self._exchange is None:
            if parser.requests:
                self._request = parser.requests[0]
                self._exchange = self._server.begin(self, self._request)
                self._exchange.head_came()
            elif parser.problem is not None:
                self._exchange = self._server.refuse(self, parser.problem)
                self._exchange.head_came()
                return
            else:
                return
        request = self._request
        if request is None:
            return  # answered by its head already
        for piece in request.take():
            if self._exchange is not None:
                self._exchange.body_came(piece)
        if self._exchange is None:
            return
        if request.has_ended:
            self._exchange.body_ended()
        elif parser.problem is not None:
            self._exchange.body_failed(parser.problem)

    def _leave(self) -> None:
        """Close once all was sent."""
        self._is_leaving = True
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        self._linger_until = time.monotonic() + LINGER_SECONDS
        self._linger_bytes = self.received_bytes
        if self._parser.problem is not None and self._transport is not None:
            self._transport.write_eof()  # what is the end of the request is not known

    def _throw_away(self, data: bytes) -> None:
        """Leave once a refused request has ended, or goes on for too long."""
        self._parser.feed(data)
        too_many = self.received_bytes - self._linger_bytes > LINGER_MAX_BYTES
        for request in self._parser.requests:
            request.take()
        has_ended = any(request.has_ended for request in self._parser.requests)
        if too_many or has_ended or time.monotonic() > (self._linger_until or 0):
            self._leave()


def reset_when_closed(connection: socket.socket) -> None:
    """Let its closing be a reset, which nobody takes for the orderly end of an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
