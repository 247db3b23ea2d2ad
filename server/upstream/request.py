"""From a request to the bytes ahead of its body, with everything refused that must not get there.

A URL or a header that could end its line early would let a caller's data become a second request;
a second Host or a Transfer-Encoding would let two servers see two requests where we sent one
(RFC 9112, sections 3.2 and 11.2). All of that is a `ValueError` before any connection is made, and
its message repeats neither a header's value nor the URL.
"""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from open_llm_proxy.server.upstream.timeouts import NO_TIMEOUTS, Timeouts

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_OF_THE_CLIENT = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FORBIDDEN = "holds characters that HTTP forbids, such as CR or LF (RFC 9110, section 5)"


@dataclass(slots=True)
class Attempts:
    """What a request took, counted while it is made: connections tried (0: a kept one was used),
    and how often it was sent (2: again, because a kept connection had ended)."""

    connects: int = 0
    sends: int = 0


@dataclass(slots=True)
class StreamingRequest:
    """What `PooledHTTPClient.stream` sends.

    `attempts` counts what it takes, also where it fails. Without `keeps_trying` a failed connection
    is tried once more and not for all of the connect time-out. `tls` replaces the client's own TLS
    settings.
    """

    url: str
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    timeouts: Timeouts = NO_TIMEOUTS
    attempts: Attempts = field(default_factory=Attempts)
    keeps_trying: bool = True
    tls: ssl.SSLContext | None = None


class Target(NamedTuple):
    """What a request needs of its URL; `path` includes the query string."""

    scheme: str
    host: str
    port: int
    authority: str
    path: str


class RequestHead(NamedTuple):
    """The request line and the headers with the blank line; `says_close`: the connection is to end
    with the answer."""

    data: bytes
    says_close: bool


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


def request_head(request: StreamingRequest, target: Target) -> RequestHead:
    """The bytes ahead of the body: Host, the given headers, checked, and Content-Length.

    Nothing else is added, neither Accept-Encoding nor a User-Agent that nobody set.
    """
    if request.method not in _METHODS:
        raise ValueError(f"the method must be one of {', '.join(sorted(_METHODS))}")
    lines = [f"{request.method} {target.path} HTTP/1.1", f"Host: {target.authority}"]
    has_host = says_close = False
    for name, value in request.headers:
        known = _known(name)
        if known is None:
            lines.append(f"{name}: {value}")
        elif known == "connection":
            lines.append(f"{name}: {value}")
            says_close = says_close or "close" in re.split(r"[ \t,]+", value.lower())
        elif known == "host":
            if has_host:
                raise ValueError("a request has one Host header at most")
            has_host = True
            lines[1] = f"{name}: {value}"
        elif known == "transfer-encoding":
            raise ValueError("Transfer-Encoding cannot be set; bodies are sent with Content-Length")
    if request.body is not None or request.method in _METHODS_WITH_BODY:
        lines.append(f"Content-Length: {len(request.body or b'')}")
    _check_values(request.headers)
    return RequestHead("\r\n".join([*lines, "", ""]).encode("latin-1"), says_close)


@lru_cache(maxsize=1024)
def _known(name: str) -> str | None:
    """The name in lower case if `request_head` does something of its own with it."""
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"a header's name {_FORBIDDEN}")
    lower = name.lower()
    return lower if lower in _OF_THE_CLIENT else None


def _check_values(headers: Sequence[tuple[str, str]]) -> None:
    if not _HEADER_VALUE.fullmatch("".join([value for _, value in headers])):
        name = next(name for name, value in headers if not _HEADER_VALUE.fullmatch(value))
        raise ValueError(f"header {name} {_FORBIDDEN}")
