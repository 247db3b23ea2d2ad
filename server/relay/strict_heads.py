"""Heads of requests whose lines end in LF alone are refused.

Tornado 6.6 takes a bare LF for the end of a line, which RFC 9112, section 2.2, allows. A server in
front of the proxy may take it for a part of a header's value, and the two would see other headers:
a hidden Transfer-Encoding makes one request of what the other reads as two (section 11.2).
"""

import asyncio
import re
from functools import partial
from typing import Any, cast

from tornado.httputil import HTTPInputError, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.web import Application

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class StrictApplication(Application):
    """An `Application` that answers such a request with 400 and closes the connection."""

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        """Called by Tornado's server for each request, before its head is read."""
        refuse_bare_line_feeds(request_conn.stream)
        return super().start_request(server_conn, request_conn)


def refuse_bare_line_feeds(stream: IOStream) -> None:
    """Check every head that is read from the stream; `HTTPInputError` where one is not strict."""
    if "read_until_regex" in vars(stream):
        return  # a further request on this connection
    read = stream.read_until_regex

    def read_strictly(regex: bytes, max_bytes: int | None = None) -> "asyncio.Future[bytes]":
        # No coroutine: Tornado would make a task of it, for every request.
        head = cast("asyncio.Future[bytes]", read(regex, max_bytes))
        checked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if head.done():
            _check(checked, head)
        else:
            head.add_done_callback(partial(_check, checked))
        return checked

    stream.read_until_regex = read_strictly  # type: ignore[method-assign]


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
