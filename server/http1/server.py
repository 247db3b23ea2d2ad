"""The server's side of clients' connections: how many there are, and how long each may wait.

Nothing here belongs to a single call: once a second all connections are looked at, and those that
stood still for too long are closed, with an answer where a body stopped. So a
call pays for no timer of its own.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import select
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_llm_proxy.server.http1.connection import (
    ClientConnection,
    Phase,
    Server,
    reset_when_closed,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05
# How long a connection may take to send its next request to a server that leaves: a client that has
# just connected, or got the end of an answer, is about to.
NEXT_REQUEST_SECONDS = 1.0
TCP_FIN_WAIT2 = 5  # of linux/tcp_states.h
ACCEPTS_PER_TURN = 128
ACCEPT_PAUSE_SECONDS = 1.0
WARNING_SECONDS = 60.0
# Files beside the connections: the queue, its uploads, libraries.
OTHER_FILES = 128
MAX_FILES = 1 << 20
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# Balancers that keep connections close them after 60 s, and after 600 s at the most. They must be
# the first to close, or a request could meet a connection that is just being closed.
PATIENCE_SECONDS: Mapping[Phase, float] = {
    "new": 30.0,
    "head": 30.0,
    "body": 30.0,
    "idle": 75.0,
    "idle with key": 610.0,
    "taking": 300.0,
    "refused": 2.0,
    "answering": float("inf"),  # calls have time-outs of their own
}


@dataclass(slots=True)
class _Seen:
    """What a connection was last seen waiting for, and since when."""

    progress: tuple[Phase, int]
    since: float


class ClientServer:
    """Listens, with at most `max_connections`; `server` answers what comes on them.

    Beyond the limit a new connection takes the place of the oldest that has not shown a key, else
    of the one that was idle for longest; where all are busy with calls, it is closed.
    """

    def __init__(self, server: Server, *, max_connections: int = 10_000) -> None:
        self.patience_seconds = dict(PATIENCE_SECONDS)
        self._server = server
        self._max_connections = max_connections
        self._listening: set[socket.socket] = set()
        self._connections: dict[ClientConnection, _Seen] = {}  # the oldest first
        self._connecting: set[asyncio.Task[Any]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._warned_at = float("-inf")
        self._half_closed: list[socket.socket] = []

    @property
    def connections(self) -> int:
        return len(self._connections)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for listening in sockets:
            self._listening.add(listening)
            self._resume(listening)
        if self._look is None:
            self._look = loop.call_later(LOOK_SECONDS, self._look_at_all)

    def stop(self) -> None:
        """Accept no more; connections that are there go on."""
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            self._accept(listening)  # what the kernel has taken already would be reset
            loop.remove_reader(listening)
            listening.close()
        self._listening.clear()

    async def drain(self) -> None:
        """Close each connection that carries no request; return when none is open.

        To be called after `stop`. Requests that are there are served, for as long as they take.
        Clients that hear nothing of a server that leaves, as they do not call in that time, so
        connect to another one. A call that crosses with the closing fails: HTTP/1.1 has no way to
        tell a client that it was not taken.

        Of these connections the sockets stay until `reset_half_closed`.
        """
        while True:
            self._forget_closed()
            if not self._connections:
                return
            for client in self._connections:
                if _carries_nothing(client):
                    self._half_close(client)
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    def reset_half_closed(self) -> None:
        """Reset what `drain` closed and its client did not, where all that was sent has arrived.

        To be called at the very end. Many clients see that a connection was closed only when they
        want to use it. Is the server's address gone by then, their close is never acknowledged, and
        a NAT on the way, such as a Kubernetes Service's, sends a new connection from the same port
        to that address.
        """
        for kept in self._half_closed:
            if _all_has_arrived(kept):
                reset_when_closed(kept)
            kept.close()
        self._half_closed.clear()

    def _half_close(self, client: ClientConnection) -> None:
        with contextlib.suppress(OSError):  # the client was quicker
            kept = client.socket.dup()
            self._half_closed.append(kept)
            kept.shutdown(socket.SHUT_RDWR)
        client.close()

    def close_all_connections(self) -> None:
        """Close each now, with what it carries; to be called after `stop`."""
        if self._look is not None:
            self._look.cancel()
        for connection in self._connections:
            connection.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, address = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(listening, error)
                return
            self._take(connection, address)

    def _take(self, connection: socket.socket, address: Any) -> None:
        if len(self._connections) >= self._max_connections:
            self._warn("There are MAX_CONNECTIONS=%d connections", self._max_connections)
            if not self._make_room():
                connection.close()
                return
        client = ClientConnection(connection, address[0], self._server)
        self._connections[client] = _Seen(client.progress(), time.monotonic())
        loop = asyncio.get_running_loop()
        connecting = loop.create_task(loop.connect_accepted_socket(lambda: client, connection))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Without descriptors accept fails at once, again and again: wait, and make room."""
        if error.errno not in _NO_ROOM:
            log.error("A connection could not be accepted: %s", error)
        else:
            self._warn("No connection can be accepted (%s)", error.strerror)
            self._make_room()
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(ACCEPT_PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _make_room(self) -> bool:
        """Close the connection that is missed least; False where every one is needed."""
        self._forget_closed()
        victim = next((client for client in self._connections if not client.has_shown_key), None)
        if victim is None:
            idle = [s for s in self._connections if s.progress()[0] == "idle with key"]
            victim = min(idle, key=lambda client: client.waits_since, default=None)
        if victim is None:
            return False
        victim.close()
        del self._connections[victim]
        return True

    def _look_at_all(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_at_all)
        self._forget_closed()
        now = time.monotonic()
        for client, seen in self._connections.items():
            progress = client.progress()
            if progress != seen.progress:
                seen.progress, seen.since = progress, now
            elif now - seen.since > self.patience_seconds[progress[0]]:
                seen.since = now
                client.stood_still(progress[0])

    def _forget_closed(self) -> None:
        for client in [client for client in self._connections if client.is_closed]:
            del self._connections[client]

    def _warn(self, text: str, argument: object) -> None:
        now = time.monotonic()
        if now - self._warned_at > WARNING_SECONDS:
            self._warned_at = now
            log.warning(f"{text}; idle ones and strangers' are closed for new ones", argument)


def _carries_nothing(client: ClientConnection) -> bool:
    phase, _ = client.progress()
    if phase not in ("new", "idle", "idle with key"):
        return False
    if time.monotonic() - client.waits_since < NEXT_REQUEST_SECONDS:
        return False
    # What has arrived and was not read yet is a request too.
    poll = select.poll()
    poll.register(client.socket.fileno(), select.POLLIN)
    return not poll.poll(0)


def _all_has_arrived(connection: socket.socket) -> bool:
    """Whether the client's system has acknowledged everything, and has not closed its side."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == TCP_FIN_WAIT2


def listen_backlog() -> int:
    """The longest queue of connections that the kernel keeps for a socket."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def connections_for(files: int, max_connections: int) -> int:
    """How many connections of clients `files` allow, each with one to a provider beside it."""
    return max(1, min(max_connections, (files - OTHER_FILES) // 2))
