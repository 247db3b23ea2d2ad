"""One connection of a client: what it waits for, and a strict reading of heads and chunks.

Heads of requests whose lines end in LF alone are refused. Tornado 6.6 takes a bare LF for the end
of a line, which RFC 9112, section 2.2, allows. A server in front of the proxy may take it for a
part of a header's value, and the two would see other headers: a hidden Transfer-Encoding makes one
request of what the other reads as two (section 11.2).

A head that is too large becomes a short one, whose request is answered 431 like any other refusal;
Tornado would hang up without a word. Extensions of chunks and trailers are taken and mean nothing
here; Tornado refuses both. They have bounds, and no line of them can be read in two ways either.

A request target may be a whole URL, as for a proxy (RFC 9112, section 3.2.2); its path counts.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from tornado.httputil import HTTPInputError, HTTPMessageDelegate
from tornado.web import Application

from open_llm_proxy.server.client_transport import ClientTransport

# What extensions and trailers may take of one request, and one line of them.
MAX_EXTRA_BYTES = 16 * 1024

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [!-~]+ HTTP/1\.[01]\r\n")
_ABSOLUTE = re.compile(rb"([\r\n]*[A-Z]+ )https?://[^/?# ]+/?", re.IGNORECASE)
_TRAILER = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[^\r\n\0]*\r\n")
# The rest of a large head is read as a body, and thrown away within the bounds for refused ones.
_SHORT_HEAD = b"%bHost: -\r\nConnection: close\r\nContent-Length: 999999999999\r\n\r\n"

# new: nothing came yet. idle: between two requests. taking: an answer waits for the client.
Phase = Literal["new", "idle", "idle with key", "head", "body", "answering", "taking"]


class ClientStream(ClientTransport):
    """Counts what passes, so that a look at it from time to time tells what stands still."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_shown_key = False
        self.head_is_too_large = False
        self.waits_since = time.monotonic()  # for its next request
        self._requests = 0
        self._head_began = 0  # bytes that had come before this request
        self._awaits_body = False
        self._extra_bytes = 0  # of the request's extensions and trailers
        self._has_last_chunk = False
        self._on_stop: Callable[[], None] | None = None

    def begin_request(self) -> None:
        """The next request's head is waited for."""
        self._requests += 1
        self.head_is_too_large = False
        self._extra_bytes = 0
        self._has_last_chunk = False
        self.waits_since = time.monotonic()
        self._head_began = self.received_bytes - self.unread_bytes
        self._awaits_body = False
        self._on_stop = None

    def head_came(self, on_stop: Callable[[], None]) -> None:
        """The head was read; what comes now is its body. `on_stop` answers if it stops."""
        self._awaits_body = True
        self._on_stop = on_stop

    def stood_still(self, phase: Phase) -> None:
        """It has waited for too long: answer the request whose body stopped, or close."""
        on_stop, self._on_stop = self._on_stop, None
        if phase == "body" and on_stop is not None:
            on_stop()
        else:
            self.close()

    def progress(self) -> tuple[Phase, int]:
        """What the connection waits for, and a number that changes when it gets on with that."""
        if self.writing():
            return "taking", self.sent_bytes
        if not self.reading():
            return "answering", 0
        if self._awaits_body:
            return "body", self.received_bytes
        if self.received_bytes > self._head_began:
            return "head", self._requests
        if self._requests <= 1:
            return "new", 0
        return "idle with key" if self.has_shown_key else "idle", self._requests

    def read_until_regex(
        self, regex: bytes, max_bytes: int | None = None
    ) -> "asyncio.Future[bytes]":
        """Tornado reads heads with this; `HTTPInputError` where one is not strict."""
        return self.read_match(regex, max_bytes, self._checked_head)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> "Awaitable[bytes]":
        """Tornado reads the sizes of chunks with this, and gets them without their extensions."""
        line = self.read_match(re.escape(delimiter), MAX_EXTRA_BYTES)
        if line.done() and line.exception() is None:
            size = line.result()[:-2]
            if size.isalnum() and size.strip(b"0"):
                return line  # no coroutine for each chunk
        return self._chunk_size(line)

    def read_bytes(self, num_bytes: int, partial: bool = False) -> "Awaitable[bytes]":
        if not self._has_last_chunk:
            return super().read_bytes(num_bytes, partial)
        # The end of the body was read with its trailers.
        self._has_last_chunk = False
        end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        end.set_result(b"\r\n")
        return end

    async def _chunk_size(self, coming: "asyncio.Future[bytes]") -> bytes:
        line = (await coming).removesuffix(b"\r\n")
        size, semicolon, extension = line.partition(b";")
        self._count_extra(len(extension))
        if b"\r" in extension or b"\n" in extension:
            raise HTTPInputError("a chunk's extension has a bare CR or LF")
        if semicolon:
            size = size.rstrip(b" \t")
        if size and not size.strip(b"0"):
            await self._skip_trailers()
            self._has_last_chunk = True
        return size + b"\r\n"

    async def _skip_trailers(self) -> None:
        while (line := await self.read_match(b"\r\n", MAX_EXTRA_BYTES)) != b"\r\n":
            self._count_extra(len(line))
            if not _TRAILER.fullmatch(line):
                raise HTTPInputError("a trailer is no header")

    def _count_extra(self, size: int) -> None:
        self._extra_bytes += size
        if self._extra_bytes > MAX_EXTRA_BYTES:
            raise HTTPInputError("extensions of chunks or trailers are too large")

    def too_long(self, max_bytes: int) -> int:
        if self._awaits_body:
            return super().too_long(max_bytes)
        self.head_is_too_large = True
        return max_bytes

    def _checked_head(self, head: bytes) -> bytes:
        if self.head_is_too_large:
            line = _REQUEST_LINE.match(head)
            head = _SHORT_HEAD % (line[0] if line else b"GET / HTTP/1.1\r\n")
        elif _BARE_LINE_FEED.search(head):
            raise HTTPInputError("a line of the request's head ends in LF without CR")
        absolute = _ABSOLUTE.match(head)
        return head if absolute is None else b"%b/%b" % (absolute[1], head[absolute.end() :])


class ClientApplication(Application):
    """An `Application` for a server whose connections are `ClientStream`s."""

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        """Called by Tornado's server for each request, before its head is read."""
        request_conn.stream.begin_request()
        return super().start_request(server_conn, request_conn)
