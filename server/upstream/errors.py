"""What a fetch can fail with: one class per thing that a caller can act on.

A message names the host and port and what happened there. It never holds a header value, a key, a
path or a query string, so it may be logged and shown to anybody as it stands.
"""

import asyncio
from types import TracebackType
from typing import Literal

DeadlineKind = Literal["connect", "idle", "total"]

_WHAT_DID_NOT_HAPPEN: dict[DeadlineKind, str] = {
    "connect": "no connection could be had",
    "idle": "nothing more was received",
    "total": "the answer was not complete",
}


class UpstreamError(Exception):
    """The server gave no complete and valid answer."""


class ConnectFailed(UpstreamError):
    """No connection: refused, unresolvable, or TLS failed. No server has taken up the request."""


class ConnectionLost(UpstreamError):
    """The server ended the connection before the end of its answer.

    `response_started` is true once a byte of the answer had arrived. While it is false nothing can
    be said about the request: the server may have acted on it or never have seen it.
    """

    def __init__(self, message: str, *, response_started: bool) -> None:
        super().__init__(message)
        self.response_started = response_started


class MalformedResponse(UpstreamError):
    """What arrived is not valid HTTP/1.1, or two readers could disagree about where it ends."""


class ResponseTooLarge(UpstreamError):
    """A body to be held in memory exceeds the client's `max_body_size`; stream it instead."""


class FetchTimeout(UpstreamError):
    """A time-out of the request fired; `deadline` says which."""

    def __init__(self, deadline: DeadlineKind, seconds: float, origin: object) -> None:
        super().__init__(
            f"{origin}: {_WHAT_DID_NOT_HAPPEN[deadline]} within {seconds:g} s ({deadline} time-out)"
        )
        self.deadline = deadline


class Deadline:
    """`async with Deadline("idle", seconds, origin)` raises `FetchTimeout` when the time is over.

    `None` and 0 seconds mean no limit. A `TimeoutError` from inside passes through unchanged.
    """

    __slots__ = ("_kind", "_origin", "_seconds", "_timeout")

    def __init__(self, kind: DeadlineKind, seconds: float | None, origin: object) -> None:
        self._kind = kind
        self._seconds = seconds or 0
        self._origin = origin
        self._timeout = asyncio.timeout(seconds or None)

    def restart(self) -> None:
        """Let the whole time begin anew."""
        if self._seconds:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise FetchTimeout(self._kind, self._seconds, self._origin) from None
