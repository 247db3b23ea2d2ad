"""Requests as llhttp reads them from a connection's bytes, and what is refused beside its rules.

llhttp is strict: a bare LF, a folded line, a space before a colon, two lengths or a length beside
a coding end the connection. Two servers could see different requests there, and a second request
could hide in what one of them takes for the first (RFC 9112, section 11.2). For the same reason
codings other than `chunked` alone and more than one Host are refused here.

A request may be followed by others before it is answered. They are read as far as they have come,
and nothing is read while an answer is on its way, so at most one read's worth waits here.
"""

import re
from collections import deque

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.proxy_errors import ProxyError

MAX_HEAD_BYTES = 64 * 1024
# What extensions of chunks and trailers, which mean nothing here, may take of one request behind
# the read that brought its head.
MAX_EXTRA_BYTES = 16 * 1024
# What a chunk needs beside its content: its size, and the ends of two lines.
_CHUNK_BYTES = 8
# So many digits are enough for every size, and few enough for an int of any other reader.
_LENGTH = re.compile(r"[0-9]{1,18}")
_ABSOLUTE = re.compile(r"https?://[^/?# ]+/?", re.IGNORECASE)


class Request:
    """One request; `take` gives what has come of its body since it was last asked."""

    __slots__ = (
        "_pieces", "has_ended", "headers", "keeps_alive", "method", "path", "query", "remote_ip",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        version: str,
        headers: Headers,
        *,
        keeps_alive: bool = False,
        remote_ip: str = "",
    ) -> None:
        # A target may be a whole URL, as for a proxy (RFC 9112, section 3.2.2); its path counts.
        if not target.startswith("/"):
            target = _ABSOLUTE.sub("/", target, count=1)
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.version = version
        self.headers = headers
        self.remote_ip = remote_ip
        self.keeps_alive = keeps_alive and version == "1.1"
        self.has_ended = False  # all of it has come
        self._pieces: list[bytes] = []

    @property
    def awaits_100(self) -> bool:
        """Whether the client waits for our word before it sends the body: in any case of letters,
        but not in HTTP/1.0 (RFC 9110, section 10.1.1)."""
        return self.version == "1.1" and self.headers.get("Expect", "").lower() == "100-continue"

    @property
    def announced_bytes(self) -> int | None:
        """The body's length; None where its end is told by its last chunk."""
        if "Transfer-Encoding" in self.headers:
            return None
        return int(self.headers.get("Content-Length", "0"))

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces


class RequestParser:
    """Fed with bytes; `requests` are what has come, the oldest first.

    `problem` says why nothing of what follows can be read; it is set once and for all.
    """

    def __init__(self, remote_ip: str) -> None:
        self.requests: deque[Request] = deque()
        self.problem: ProxyError | None = None
        self.is_within_head = False
        self._remote_ip = remote_ip
        self._llhttp = HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._coming: Request | None = None  # its body
        self._heads = 0
        self._head_bytes = 0
        self._extra_bytes = 0  # of a body, so far as they are neither its content nor needed
        self._upgrades = False

    def feed(self, data: bytes) -> None:
        """Read on; never raises."""
        if self.problem is not None:
            return
        heads, coming = self._heads, self._coming
        self._read(data)
        if self._heads != heads:
            self._head_bytes = self._extra_bytes = 0
        elif coming is None or self.is_within_head:
            self._head_bytes += len(data)
            if self._head_bytes >= MAX_HEAD_BYTES:
                self._refuse(proxy_errors.headers_too_large())
        else:
            self._extra_bytes += len(data)
            if self._extra_bytes > MAX_EXTRA_BYTES:
                coming.has_ended = False
                self._refuse(
                    proxy_errors.malformed_request("extensions of chunks or trailers are too large")
                )

    def _read(self, data: bytes) -> None:
        try:
            self._llhttp.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self._refuse(proxy_errors.malformed_request(str(error)))

    def _read_without_upgrade(self, rest: bytes) -> None:
        """No other protocol is offered, so the request goes on as if the client had not asked
        (RFC 9110, section 7.8). llhttp stops behind such a head, even where a body follows."""
        method = self._llhttp.get_method()
        if method == b"CONNECT":
            self._refuse(proxy_errors.malformed_request("CONNECT is not offered"))
            return
        fields = [b"%b: %b\r\n" % field for field in self._fields if field[0].lower() != b"upgrade"]
        version = self._llhttp.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._target, version, b"".join(fields))
        self._llhttp = HttpRequestParser(self)
        self._upgrades = False
        self._read(head + rest)

    def _refuse(self, problem: ProxyError) -> None:
        if self.problem is None:
            self.problem = problem
            self._coming = None

    # Called by llhttp.

    def on_message_begin(self) -> None:
        self.is_within_head = True
        self._target, self._fields = b"", []

    def on_url(self, part: bytes) -> None:
        self._target += part  # a long one comes in parts

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._coming is None:  # else it is a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        llhttp = self._llhttp
        if llhttp.should_upgrade():
            self._upgrades = True
            return
        self.is_within_head = False
        self._heads += 1
        headers = Headers.of_raw(self._fields)
        version = llhttp.get_http_version()
        problem = framing_problem(version, headers)
        if problem is not None:
            self._refuse(problem)
        if self.problem is None:
            self._coming = Request(
                llhttp.get_method().decode(),
                self._target.decode("latin-1"),
                version,
                headers,
                keeps_alive=llhttp.should_keep_alive(),
                remote_ip=self._remote_ip,
            )
            self.requests.append(self._coming)

    def on_chunk_header(self) -> None:
        self._extra_bytes -= _CHUNK_BYTES

    def on_body(self, piece: bytes) -> None:
        self._extra_bytes -= len(piece)
        if self._coming is not None:
            self._coming.add(piece)

    def on_message_complete(self) -> None:
        if self._coming is not None and not self._upgrades:
            self._coming.has_ended = True
            self._coming = None


def framing_problem(version: str, headers: Headers) -> ProxyError | None:
    """Why two servers could disagree about this request, which llhttp takes, or None.

    Stricter than RFC 9112, section 6.1, which leaves codings other than `chunked` to the server.
    """
    hosts = headers.get_list("Host")
    lengths = headers.get_list("Content-Length")
    codings = headers.get_list("Transfer-Encoding")
    if version not in ("1.0", "1.1"):
        return proxy_errors.malformed_request(f"it is of HTTP/{version}")
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return proxy_errors.malformed_request("it has no Host header, or more than one")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return proxy_errors.ambiguous_framing(
            "its Content-Length is not a number of at most 18 digits"
        )
    if codings and version != "1.1":
        return proxy_errors.ambiguous_framing(f"it has a Transfer-Encoding in HTTP/{version}")
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        return proxy_errors.ambiguous_framing("its Transfer-Encoding is not `chunked`")
    return None
