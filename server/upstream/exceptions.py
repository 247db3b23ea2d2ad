"""What a request to a provider can fail with: one class per thing that a caller can act on.

A message names the host and port and what happened there. It never holds a header value, a key, a
path or a query string, so it may be logged and shown to anybody.
"""

from typing import Literal

TimeoutKind = Literal["connect", "idle", "total"]

_REASONS: dict[TimeoutKind, str] = {
    "connect": "no connection within",
    "idle": "the answer stopped: nothing received for",
    "total": "the answer was not complete within",
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

    def __init__(self, deadline: TimeoutKind, seconds: float, origin: object) -> None:
        super().__init__(f"{origin}: {_REASONS[deadline]} {seconds:g} s ({deadline} time-out)")
        self.deadline = deadline
