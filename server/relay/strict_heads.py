"""Heads of requests whose lines end in LF alone are refused.

Tornado 6.6 takes a bare LF for the end of a line, which RFC 9112, section 2.2, allows. A server in
front of the proxy may take it for a part of a header's value, and the two would see other headers:
a hidden Transfer-Encoding makes one request of what the other reads as two (section 11.2).
"""

import re
from typing import Any

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

    async def read_strictly(regex: bytes, max_bytes: int | None = None) -> bytes:
        head = await read(regex, max_bytes)
        if _BARE_LINE_FEED.search(head):
            raise HTTPInputError("a line of the request's head ends in LF without CR")
        return head

    stream.read_until_regex = read_strictly  # type: ignore[method-assign]
