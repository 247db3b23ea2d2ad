"""Connections that outlive a request: kept open, bounded per origin, dropped when they die.

An origin is scheme, host, port and TLS settings; two requests share a connection only where all
four agree. At most `max_connections_per_host` connections of an origin are in use at a time; who
comes later waits, first come first served. At most `max_idle_per_host` are kept for the next
request, the youngest first, each for `idle_expiry_seconds` at most.

A connection waits in the pool only while it is silent. One that the server closes leaves the pool
at once. One on which bytes arrive that nobody asked for is not used again, because they would be
taken for the answer to the next request (RFC 9112, section 9.2).
"""

import asyncio
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from open_llm_proxy.server.upstream.connection import Connection
from open_llm_proxy.server.upstream.connector import Connector, Patience
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.request import Attempts
from open_llm_proxy.server.upstream.timeouts import Deadline


@dataclass(slots=True, eq=False)
class _Host:
    """The state of one origin; it exists while a connection or a waiting request needs it."""

    places: asyncio.Semaphore
    requests: int = 0  # that hold a place or wait for one
    idle: deque[Connection] = field(default_factory=deque)


class ConnectionPool:
    """Lends connections out. Whoever acquires one must release it, whatever happens."""

    def __init__(
        self,
        connector: Connector,
        *,
        max_idle_per_host: int,
        max_connections_per_host: int | None,
        idle_expiry_seconds: float,
    ) -> None:
        self.in_use = 0
        self._connector = connector
        self._max_idle = max_idle_per_host
        self._max_connections = max_connections_per_host or sys.maxsize
        self._idle_expiry_seconds = idle_expiry_seconds
        self._hosts: dict[Origin, _Host] = {}
        self._closed = False
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Connections that wait for a next request."""
        return sum(len(host.idle) for host in self._hosts.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection: for a place, DNS, TCP or TLS."""
        return sum(host.requests for host in self._hosts.values()) - self.in_use

    async def acquire(
        self,
        origin: Origin,
        attempts: Attempts,
        timeout_seconds: float | None = None,
        *,
        keeps_trying: bool = True,
    ) -> Connection:
        """An idle connection at once if there is one; else wait for a place and make one.

        Raises `ConnectFailed`, and `FetchTimeout("connect")` after so long a wait.
        """
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(asyncio.Semaphore(self._max_connections))
        host.requests += 1
        try:
            connection = None if host.places.locked() else self._take_idle(host)
            if connection is not None:
                await host.places.acquire()  # does not wait
            else:
                patience = Patience.of(attempts, timeout_seconds, keeps_trying)
                connection = await self._in_a_place(host, origin, patience)
        except BaseException:
            host.requests -= 1
            self._forget_if_unused(origin)
            raise
        self.in_use += 1
        return connection

    async def _in_a_place(self, host: _Host, origin: Origin, patience: Patience) -> Connection:
        async with Deadline("connect", patience.seconds, origin):
            await host.places.acquire()
        try:
            return self._take_idle(host) or await self._connector.connect(origin, patience)
        except BaseException:
            host.places.release()
            raise

    async def replace(self, connection: Connection, patience: Patience) -> Connection:
        """Close a stale connection and make a new one in its place; `ConnectFailed` if none.

        The new one is to be released instead of the old one.
        """
        connection.close()
        return await self._connector.connect(connection.origin, patience)

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back: keep it if it can serve another request, else close it now."""
        host = self._hosts[connection.origin]
        if reusable and not self._closed and self._max_idle and connection.is_silent:
            self._keep(host, connection)
        else:
            connection.close()
        self.in_use -= 1
        host.requests -= 1
        host.places.release()
        self._forget_if_unused(connection.origin)

    def close(self) -> None:
        """Close what is idle now, and what is in use as soon as it is released."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        for host in list(self._hosts.values()):
            while host.idle:
                self._drop(host.idle[0])

    def _keep(self, host: _Host, connection: Connection) -> None:
        if len(host.idle) >= self._max_idle:
            self._drop(host.idle[0])
        connection.reused = True
        connection.on_closed = partial(self._drop, connection)
        loop = asyncio.get_running_loop()
        connection.expires_at = loop.time() + self._idle_expiry_seconds
        host.idle.append(connection)
        if self._expiry is None:
            self._expiry = loop.call_at(connection.expires_at, self._drop_expired)

    def _drop_expired(self) -> None:
        """One timer serves all connections: those of a host expire in the order of `idle`."""
        loop = asyncio.get_running_loop()
        for host in list(self._hosts.values()):
            while host.idle and host.idle[0].expires_at <= loop.time():
                self._drop(host.idle[0])
        oldest = [host.idle[0].expires_at for host in self._hosts.values() if host.idle]
        self._expiry = loop.call_at(min(oldest), self._drop_expired) if oldest else None

    def _take_idle(self, host: _Host) -> Connection | None:
        while host.idle:
            connection = host.idle.pop()
            connection.on_closed = None
            if connection.is_silent and not connection.has_news:
                return connection
            connection.close()
        return None

    def _drop(self, connection: Connection) -> None:
        """Close an idle connection: it expired, died, or has to make room."""
        host = self._hosts.get(connection.origin)
        if host is not None and connection in host.idle:
            host.idle.remove(connection)
            connection.on_closed = None
            connection.close()
            self._forget_if_unused(connection.origin)

    def _forget_if_unused(self, origin: Origin) -> None:
        host = self._hosts.get(origin)
        if host is not None and not host.requests and not host.idle:
            del self._hosts[origin]
