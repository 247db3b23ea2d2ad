"""Connections that outlive a request: kept open, bounded per origin, dropped when they die.

An origin is host, port and TLS settings; two requests share a connection only where all three
agree. At most `max_connections_per_host` connections of an origin are in use at a time; who comes
later waits, first come first served. At most `max_idle_per_host` are kept for the next request, the
youngest first, each for `idle_expiry_seconds` at most.

A connection waits in the pool only while it is silent. One that the server closes leaves the pool
at once. One on which bytes arrive that nobody asked for is not used again, because they would be
taken for the answer to the next request (RFC 9112, section 9.2); so the kernel is asked for such
bytes once more before a request is sent, which costs less than half a microsecond.
"""

import asyncio
import sys
from collections import deque
from dataclasses import dataclass, field

from open_llm_proxy.server.upstream.connection import Connection
from open_llm_proxy.server.upstream.connector import Connector, Patience
from open_llm_proxy.server.upstream.exceptions import FetchTimeout
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.request import StreamingRequest
from open_llm_proxy.server.upstream.timeouts import NEVER, SharedTimer


@dataclass(slots=True, eq=False)
class _Host:
    """The state of one origin; it exists while a connection or a waiting request needs it.

    While requests wait there is no free place: each place that becomes free is the next one's.
    """

    free_places: int
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    idle: deque[Connection] = field(default_factory=deque)


class ConnectionPool:
    """Lends connections out. Whoever acquires one must release it, whatever happens.

    `in_use`: connections with a request. `waiting`: requests that have no connection yet, for want
    of a place, or during DNS, TCP and TLS. `replaced`: see `replace`.
    """

    def __init__(
        self,
        connector: Connector,
        timer: SharedTimer,
        *,
        max_idle_per_host: int,
        max_connections_per_host: int | None,
        idle_expiry_seconds: float,
    ) -> None:
        self.in_use = 0
        self.waiting = 0
        self.replaced = 0
        self._connector = connector
        self._timer = timer
        self._max_idle = max_idle_per_host
        self._places = max_connections_per_host or sys.maxsize
        self._idle_expiry_seconds = idle_expiry_seconds
        self._hosts: dict[Origin, _Host] = {}
        self._closed = False
        timer.watched.add(self)

    @property
    def idle(self) -> int:
        """Connections that wait for a next request."""
        return sum(len(host.idle) for host in self._hosts.values())

    async def acquire(self, origin: Origin, request: StreamingRequest) -> Connection:
        """An idle connection at once if there is one; else wait for a place and make one.

        Raises `ConnectFailed`, and `FetchTimeout("connect")` after so long a wait.
        """
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(self._places)
        connection = self._take_idle(host) if host.free_places else None
        if connection is not None:
            host.free_places -= 1
        else:
            self.waiting += 1
            try:
                connection = await self._in_a_place(host, origin, Patience.of(request))
            finally:
                self.waiting -= 1
        self.in_use += 1
        return connection

    async def replace(self, connection: Connection, request: StreamingRequest) -> Connection:
        """Close a stale connection and make a new one in its place; `ConnectFailed` if none.

        The new one is to be released instead of the old one.
        """
        self.replaced += 1
        connection.close()
        return await self._connector.connect(connection.origin, Patience.of(request))

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back: keep it if it can serve another request, else close it now."""
        host = self._hosts[connection.origin]
        if reusable and not self._closed and self._max_idle and connection.is_silent:
            self._keep(host, connection)
        else:
            connection.close()
        self.in_use -= 1
        self._leave_place(host, connection.origin)

    def close(self) -> None:
        """Close what is idle now, and what is in use as soon as it is released."""
        self._closed = True
        for host in list(self._hosts.values()):
            while host.idle:
                self._drop(host.idle[0])

    def check(self, now: float) -> float:
        """Drop what has expired; connections of a host expire in the order of `idle`."""
        for host in list(self._hosts.values()):
            while host.idle and host.idle[0].expires_at <= now:
                self._drop(host.idle[0])
        oldest = [host.idle[0].expires_at for host in self._hosts.values() if host.idle]
        return min(oldest, default=NEVER)

    async def _in_a_place(self, host: _Host, origin: Origin, patience: Patience) -> Connection:
        if host.free_places:
            host.free_places -= 1
        else:
            await self._wait_for_place(host, origin, patience)
        try:
            return self._take_idle(host) or await self._connector.connect(origin, patience)
        except BaseException:
            self._leave_place(host, origin)
            raise

    async def _wait_for_place(self, host: _Host, origin: Origin, patience: Patience) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host.waiting.append(place)
        try:
            async with asyncio.timeout_at(patience.until if patience.seconds else None):
                await place
        except BaseException as error:
            if not place.cancelled():  # it was handed over in this moment
                self._leave_place(host, origin)
            elif place in host.waiting:
                host.waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise FetchTimeout("connect", patience.seconds, origin) from None
            raise

    def _leave_place(self, host: _Host, origin: Origin) -> None:
        while host.waiting:
            next_one = host.waiting.popleft()
            if not next_one.done():
                next_one.set_result(None)
                return
        host.free_places += 1
        self._forget_if_unused(host, origin)

    def _keep(self, host: _Host, connection: Connection) -> None:
        if len(host.idle) >= self._max_idle:
            self._drop(host.idle[0])
        connection.reused = True
        connection.on_closed = self._drop
        connection.expires_at = self._timer.after(self._idle_expiry_seconds)
        host.idle.append(connection)

    def _take_idle(self, host: _Host) -> Connection | None:
        while host.idle:
            connection = host.idle.pop()
            if not connection.has_news:
                return connection
            connection.close()
        return None

    def _drop(self, connection: Connection) -> None:
        """Close a connection, if it is idle: it expired, died, or has to make room."""
        host = self._hosts.get(connection.origin)
        if host is not None and connection in host.idle:
            host.idle.remove(connection)
            connection.close()
            self._forget_if_unused(host, connection.origin)

    def _forget_if_unused(self, host: _Host, origin: Origin) -> None:
        if host.free_places == self._places and not host.idle:
            del self._hosts[origin]
