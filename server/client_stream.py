"""One connection of a client: what it waits for, and a strict reading of its heads.

Heads of requests whose lines end in LF alone are refused. Tornado 6.6 takes a bare LF for the end
of a line, which RFC 9112, section 2.2, allows. A server in front of the proxy may take it for a
part of a header's value, and the two would see other headers: a hidden Transfer-Encoding makes one
request of what the other reads as two (section 11.2).
"""

import asyncio
import re
import time
from functools import partial
from typing import Any, Literal, cast

from tornado.httputil import HTTPInputError, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.web import Application

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

# new: nothing came yet. idle: between two requests. taking: an answer waits for the client.
Phase = Literal["new", "idle", "idle with key", "head", "body", "answering", "taking"]


class ClientStream(IOStream):
    """Counts what passes, so that a look at it from time to time tells what stands still."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_shown_key = False
        self.waits_since = time.monotonic()  # for its next request
        self._received_bytes = 0
        self._sent_bytes = 0
        self._requests = 0
        self._head_began = 0  # bytes that had come before this request
        self._awaits_body = False

    def begin_request(self) -> None:
        """The next request's head is waited for."""
        self._requests += 1
        self.waits_since = time.monotonic()
        self._head_began = self._received_bytes
        self._awaits_body = False

    def head_came(self) -> None:
        """The head was read; what comes now is its body."""
        self._awaits_body = True

    def progress(self) -> tuple[Phase, int]:
        """What the connection waits for, and a number that changes when it gets on with that."""
        if self.writing():
            return "taking", self._sent_bytes
        if not self.reading():
            return "answering", 0
        if self._awaits_body:
            return "body", self._received_bytes
        if self._received_bytes > self._head_began:
            return "head", self._requests
        if self._requests <= 1:
            return "new", 0
        return "idle with key" if self.has_shown_key else "idle", self._requests

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        count = super().read_from_fd(buf)
        if count:
            self._received_bytes += count
        return count

    def write_to_fd(self, data: memoryview) -> int:
        count = super().write_to_fd(data)
        self._sent_bytes += count
        return count

    def read_until_regex(
        self, regex: bytes, max_bytes: int | None = None
    ) -> "asyncio.Future[bytes]":
        """Tornado reads heads with this; `HTTPInputError` where one is not strict."""
        # No coroutine: Tornado would make a task of it, for every request.
        head = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        checked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if head.done():
            _check(checked, head)
        else:
            head.add_done_callback(partial(_check, checked))
        return checked


class ClientApplication(Application):
    """An `Application` for a server whose connections are `ClientStream`s."""

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        """Called by Tornado's server for each request, before its head is read."""
        request_conn.stream.begin_request()
        return super().start_request(server_conn, request_conn)


def _check(checked: "asyncio.Future[bytes]", head: "asyncio.Future[bytes]") -> None:
    if checked.done():
        return
    error = head.exception()
    if error is None and _BARE_LINE_FEED.search(head.result()):
        error = HTTPInputError("a line of the request's head ends in LF without CR")
    if error is not None:
        checked.set_exception(error)
    else:
        checked.set_result(head.result())
