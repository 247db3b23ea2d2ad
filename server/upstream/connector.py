"""Makes connections to HTTP servers: name look-up, TCP, TLS, and another try where one may help.

Until a connection stands nothing of a request has been sent, so trying again cannot do harm. What
may pass is tried again at once and then after pauses, as long as the connect time-out lasts: a
name server that is busy (EAI_AGAIN), a refused or broken connection, a handshake that was cut off.
An unknown name and a refused certificate will be the same a moment later and fail at once.
"""

import asyncio
import random
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from tornado.concurrent import Future
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import Resolver
from tornado.tcpclient import TCPClient

from open_llm_proxy.server.upstream.connection import Connection
from open_llm_proxy.server.upstream.exceptions import ConnectFailed, FetchTimeout
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.request import Attempts, StreamingRequest
from open_llm_proxy.server.upstream.shared_dns import is_passing

_PATIENCE_SECONDS = 10.0  # where the connect time-out has no limit
_LONGEST_PAUSE_SECONDS = 2.0
# A provider may be silent for minutes ahead of its answer. One whose machine is gone is found by
# TCP: the first probe after so much silence, then one every few seconds, and a few unanswered.
_KEEPALIVE_SECONDS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(slots=True)
class Patience:
    """How long connections are tried for; `attempts` counts them.

    `seconds` is the connect time-out, which ends at `until` (a time of the event loop). Without one
    an attempt may take as long as it likes, but after `until` there is no other. Without
    `keeps_trying` a failed attempt is followed by one more.
    """

    attempts: Attempts
    seconds: float
    until: float
    keeps_trying: bool = True

    @classmethod
    def of(cls, request: StreamingRequest) -> "Patience":
        """From now on."""
        seconds = request.timeouts.connect_seconds
        until = asyncio.get_running_loop().time() + (seconds or _PATIENCE_SECONDS)
        return cls(request.attempts, seconds, until, request.keeps_trying)


class Connector:
    """Connects until it can; pauses begin with `backoff_seconds` and are doubled up to a cap."""

    def __init__(self, resolver: Resolver, backoff_seconds: float) -> None:
        self.opened = 0  # connections made since the start
        self._resolver = resolver
        self._backoff_seconds = backoff_seconds

    async def connect(self, origin: Origin, patience: Patience) -> Connection:
        """A new connection, after the handshake if it is TLS.

        Raises `ConnectFailed` with the last reason, or `FetchTimeout("connect")` where the first
        attempt has taken all the time.
        """
        loop, tries = asyncio.get_running_loop(), 0
        failed: ConnectFailed | None = None
        try:
            async with asyncio.timeout_at(patience.until if patience.seconds else None):
                while True:
                    tries += 1
                    patience.attempts.connects += 1
                    try:
                        connection = await self._open(origin)
                        self.opened += 1
                        return connection
                    except (OSError, UnicodeError) as error:
                        cause, pause = _cause(error), self._pause(tries)
                        failed = _failed(origin, cause, tries)
                    is_last = loop.time() + pause >= patience.until
                    if is_last or not _may_pass(cause) or (tries > 1 and not patience.keeps_trying):
                        raise failed
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise failed or FetchTimeout("connect", patience.seconds, origin) from None

    def _pause(self, tries: int) -> float:
        """Ahead of the next try, in seconds: none at first, then doubled each time, and spread, so
        that many requests do not come back as one."""
        if tries == 1:
            return 0.0
        pause = min(self._backoff_seconds * 2.0 ** (tries - 2), _LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.5, 1.5)

    async def _open(self, origin: Origin) -> Connection:
        connected = await self._connected_socket(origin)
        _keep_alive(connected)
        # From here on asyncio closes the socket, also where the handshake fails or is cancelled.
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(origin),
            sock=connected,
            ssl=origin.tls,
            server_hostname=origin.host if origin.tls is not None else None,
        )
        return connection

    async def _connected_socket(self, origin: Origin) -> socket.socket:
        attempt = _Attempt(self._resolver)
        try:
            stream = await attempt.connect(origin.host, origin.port)
        except BaseException:
            attempt.close_streams()
            raise
        # What Tornado's own `start_tls` does to a stream whose socket goes to another one.
        connected: socket.socket = stream.socket
        stream.io_loop.remove_handler(connected)
        stream.socket = None  # type: ignore[assignment]
        return connected


class _Attempt(TCPClient):
    """A `TCPClient` for one connection that knows its streams.

    A `TCPClient.connect` that is cancelled in the moment in which the connection is there loses
    it, and it stays open (seen in Tornado 6.6). So we close the streams ourselves.
    """

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(resolver)
        self._streams: list[IOStream] = []

    def _create_stream(self, *args: Any, **kwargs: Any) -> tuple[IOStream, "Future[IOStream]"]:
        stream, connected = super()._create_stream(*args, **kwargs)
        self._streams.append(stream)
        return stream, connected

    def close_streams(self) -> None:
        for stream in self._streams:
            stream.close()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_SECONDS.items():
        if hasattr(socket, name):  # not every system has all three
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _failed(origin: Origin, cause: BaseException, tries: int) -> ConnectFailed:
    often = f", tried {tries} times" if tries > 1 else ""
    failed = ConnectFailed(f"{origin}: {_describe(cause)}{often}")
    failed.__cause__ = cause
    return failed


def _cause(error: Exception) -> BaseException:
    if isinstance(error, StreamClosedError) and error.real_error is not None:
        return error.real_error
    return error


def _may_pass(cause: BaseException) -> bool:
    """Whether the same attempt may succeed a moment later."""
    if isinstance(cause, socket.gaierror):
        return is_passing(cause)
    if isinstance(cause, ssl.SSLError):
        # A handshake that was cut off may succeed; a refused certificate or version will not.
        return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(cause, OSError)


def _describe(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted ({cause.verify_message}); if it is right, name its "
            "authority's PEM file in SSL_CERT_FILE"
        )
    if isinstance(cause, ssl.SSLError):
        return f"the TLS handshake failed ({cause.reason or 'cut off'})"
    if isinstance(cause, socket.gaierror):
        return f"the name cannot be resolved ({cause.strerror})"
    if isinstance(cause, StreamClosedError):
        return "the connection was closed while it was being set up"
    if isinstance(cause, OSError):
        return f"no connection ({cause.strerror or type(cause).__name__})"
    return "the host name is not valid"
