"""From an `HTTPRequest` to what goes on the wire, with everything refused that must not get there.

A URL or a header that could end its line early would let a caller's data become a second request;
a second Host or a Transfer-Encoding would let two servers see two requests where we sent one
(RFC 9112, sections 3.2 and 11.2). All of that is a `ValueError` before any connection is made, and
its message repeats neither a header's value nor the URL.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FORBIDDEN = "holds characters that HTTP forbids, such as CR or LF (RFC 9110, section 5)"

# Attributes of HTTPRequest that change what is sent, or where to, and that are not offered.
_UNSUPPORTED = (
    "auth_username", "body_producer", "expect_100_continue", "network_interface",
    "prepare_curl_callback", "proxy_host",
)  # fmt: skip


@dataclass(slots=True)
class Attempts:
    """What a request took, counted while it is made: connections tried (0: a kept one was used),
    and how often it was sent (2: again, because a kept connection had ended)."""

    connects: int = 0
    sends: int = 0


class StreamingRequest(HTTPRequest):
    """An `HTTPRequest` with the time-outs that a streamed answer needs.

    `idle_timeout` is the longest silence in seconds within the answer's body; the time that the
    receiver takes does not count. `connect_timeout` and `request_timeout` (the whole) are those of
    `HTTPRequest`, but here `None` means no limit, as 0 does. `attempts` counts what it takes, also
    where it fails. Without `keeps_trying` a failed connection is tried once more and not for all
    of `connect_timeout`.
    """

    def __init__(
        self,
        *args: Any,
        idle_timeout: float | None = None,
        attempts: Attempts | None = None,
        keeps_trying: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.idle_timeout = idle_timeout
        self.attempts = attempts or Attempts()
        self.keeps_trying = keeps_trying


class Target(NamedTuple):
    """What a request needs of its URL; `path` includes the query string."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str


@lru_cache(maxsize=256)
def parse_target(url: str) -> Target:
    """Take an absolute http or https URL apart; `ValueError` says what is wrong with it."""
    if not _VISIBLE_ASCII.fullmatch(url):
        raise ValueError("a URL holds visible ASCII characters only; percent-encode all others")
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("a URL begins with http:// or https:// and a host name")
    if "@" in parts.netloc:
        raise ValueError("a URL holds no user or password; send an Authorization header instead")
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname, port, parts.netloc, path)


def check_supported(request: HTTPRequest) -> None:
    """`ValueError` for a method or an option that the client does not offer."""
    if request.method not in _METHODS:
        raise ValueError(f"the method must be one of {', '.join(sorted(_METHODS))}")
    for name in _UNSUPPORTED:
        if getattr(request, name):
            raise ValueError(f"{name} is not supported by PooledHTTPClient")


def request_head(
    request: HTTPRequest, target: Target, given: HTTPHeaders, user_agent: str | None
) -> bytes:
    """The bytes ahead of the body: Host, the given headers, checked, and Content-Length.

    Nothing else is added, neither Accept-Encoding nor a User-Agent that nobody set.
    """
    if len(given.get_list("Host")) > 1:
        raise ValueError("a request has one Host header at most")
    if "Transfer-Encoding" in given:
        raise ValueError("Transfer-Encoding cannot be set; bodies are sent with Content-Length")
    lines = [f"{request.method} {target.path} HTTP/1.1"]
    if "Host" not in given:
        lines.append(f"Host: {target.authority}")
    left_out = ("Content-Length",) if user_agent is None else ("Content-Length", "User-Agent")
    lines += [_line(name, value) for name, value in given.get_all() if name not in left_out]
    if user_agent is not None:
        lines.append(_line("User-Agent", user_agent))
    if request.body is not None or request.method in _METHODS_WITH_BODY:
        lines.append(f"Content-Length: {len(request.body or b'')}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _line(name: str, value: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"a header's name {_FORBIDDEN}")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"header {name} {_FORBIDDEN}")
    return f"{name}: {value}"
