"""One answer on the wire: a head, a body framed as RFC 9112, section 6, has it, and an end.

The head goes with the first bytes of the body, in one write. Where the whole body is there by then,
its length is announced; else a client of HTTP/1.1 gets chunks, and an older one all until the end
of the connection.
"""

import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from open_llm_proxy.server.http1.connection import ClientConnection, reset_when_closed
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.http1.request import Request

_NO_BODY = (204, 304)


class Answer:
    """Set `status`, `reason`, `headers` and `passed_on`; then `write` as often as need be, and
    `end` once. `is_leaving` says whether connections are to end with their next answer."""

    def __init__(
        self,
        connection: ClientConnection,
        request: Request,
        headers: dict[str, str],
        is_leaving: Callable[[], bool],
    ) -> None:
        self.status = 200
        self.reason = ""
        self.headers = headers
        # A provider's headers, in place of ours of the same name; only `Vary` adds up.
        self.passed_on: Headers | None = None
        self.closes = not request.keeps_alive
        self.has_begun = False
        self._connection = connection
        self._is_old = request.version != "1.1"
        self._is_head = request.method == "HEAD"
        self._is_leaving = is_leaving
        self._is_chunked = False

    def begin(self) -> None:
        """Send the head alone; raises `ClientGone`, as all that write do."""
        self._connection.write(self._head(None))

    def write(self, data: bytes) -> None:
        """Send a part of the body, and the head with the first one."""
        head = b"" if self.has_begun else self._head(None)
        if self._is_chunked:
            self._connection.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        else:
            self._connection.write(head + data)

    def end(self, data: bytes = b"") -> None:
        """Send the last part and the end; the connection then goes on with its next request."""
        if not self.has_begun:
            head = self._head(len(data))
            data = head if self._has_no_body else head + data
        elif self._is_chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        if data:
            self._connection.write(data)
        self._connection.answered(closes=self.closes)

    def cut(self, *, resets: bool = True) -> None:
        """Close the connection in a way that shows that the answer is not complete. For an old
        client an orderly close would be the end of a complete answer: `resets` is for that."""
        if resets and self._is_old and not self._connection.is_closed:
            reset_when_closed(self._connection.socket)
        self._connection.close()

    @property
    def _has_no_body(self) -> bool:
        return self._is_head or self.status in _NO_BODY

    def _head(self, length: int | None) -> bytes:
        """The head, for a whole body of that length, or for one whose end is not there yet."""
        self.has_begun = True
        self.closes = self.closes or self._is_leaving()
        lines = [f"HTTP/1.1 {self.status} {_reason(self.status, self.reason)}"]
        lines.append(f"Date: {_date(int(time.time()))}")
        passed_on = self.passed_on
        for name, value in self.headers.items():
            if passed_on is None or name == "Vary" or name not in passed_on:
                lines.append(f"{name}: {value}")
        if passed_on is not None:
            lines += [f"{name}: {value}" for name, value in passed_on.get_all()]
        if passed_on is None or "Content-Length" not in passed_on:
            lines += self._framing(length)
        if self.closes:
            lines.append("Connection: close")
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1:
            raise ValueError("a header of the answer holds a line break")
        return head.encode("latin-1") + b"\r\n\r\n"

    def _framing(self, length: int | None) -> list[str]:
        if self.status in _NO_BODY:
            return []
        if length is not None:
            return [f"Content-Length: {length}"]
        if self._is_old:
            self.closes = True
            return []
        self._is_chunked = True
        return ["Transfer-Encoding: chunked"]


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


@lru_cache(maxsize=64)
def _reason(status: int, given: str) -> str:
    """The given phrase, without what a client could take for markup or in two ways."""
    if given:
        return given if given.isprintable() and "<" not in given else "Unknown"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
