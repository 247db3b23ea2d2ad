"""Reads one answer from a server's bytes, and decides where it ends.

Answers are parsed by llhttp, the parser of Node.js, which is strict about all that two readers
could read differently (RFC 9112, section 11): line ends, folded headers, lengths that are repeated,
chunks that are not as long as they say. What it leaves open is decided here: other codings than
`chunked`, heads and trailers without an end.
"""

import httptools

from open_llm_proxy.server.http1.headers import Headers

_MAX_INTERIM_HEADS = 10
# Chunk extensions and trailers are skipped; so many bytes without any of the body are no answer.
_MAX_BYTES_WITHOUT_BODY = 16 * 1024


class AnswerParser:
    """Fed with bytes; `status`, `reason` and `headers` are there once `has_head`.

    `problem` says why what follows cannot be read; what came before it counts.
    """

    def __init__(self, method: str, max_header_bytes: int) -> None:
        self.status = 0
        self.reason = ""
        self.headers: Headers
        self.has_head = False
        self.ends_with_connection = False
        self.is_complete = False
        self.problem: str | None = None
        self.head_bytes = 0  # that came before the end of the final head
        self.body_bytes = 0
        self.waiting_bytes = 0  # of the body, for `take`
        self._pieces: list[bytes] = []
        self._method = method
        self._max_header_bytes = max_header_bytes
        # It holds this parser: `close` parts them, so that neither waits for the collector.
        self._llhttp: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._interim_heads = 0
        self._keeps_alive = False
        self._has_excess = False  # bytes that nobody asked for came behind the body
        self._bytes_without_body = 0

    @property
    def reusable(self) -> bool:
        """Whether it is all there, and another request may follow on its connection."""
        return self.is_complete and self._keeps_alive and not self._has_excess

    def feed(self, data: memoryview) -> None:
        """Read on; never raises."""
        if self.is_complete:
            self._has_excess = True
        if self.is_complete or self.problem is not None or self._llhttp is None:
            return
        body_bytes = self.body_bytes
        if not self.has_head:
            self.head_bytes += len(data)
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserError as error:
            if self.is_complete:
                self._has_excess = True
            else:
                self._refuse(f"it is not valid HTTP/1.1 ({error})")
        except httptools.HttpParserUpgrade:
            self._refuse("it changes the protocol")
        if not self.is_complete:
            self._check_bounds(len(data), self.body_bytes > body_bytes)

    def take(self) -> bytes:
        """What has come of the body since it was last asked."""
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.waiting_bytes = 0
        return data

    def close(self) -> None:
        """Nothing is read any more."""
        self._llhttp = None

    # Called by llhttp.

    def on_message_begin(self) -> None:
        self._has_excess = self.is_complete
        self.reason = ""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # else it is a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.has_head or self.problem is not None or self._llhttp is None:
            return
        self.status, version = self._llhttp.get_status_code(), self._llhttp.get_http_version()
        self.headers = headers = Headers.of_raw(self._fields)
        self._fields = []
        coding = headers.get("Transfer-Encoding")
        has_length = "Content-Length" in headers
        if not version.startswith("1."):
            self._refuse("it is not HTTP/1.1")
        elif self.status < 200:
            self._interim_heads += 1
            if has_length or coding is not None:
                self._refuse(f"a head of status {self.status} announces a body")
            elif self._interim_heads == _MAX_INTERIM_HEADS:
                self._refuse("more than 10 heads of status 1xx")
        elif coding is not None and (coding.lower() != "chunked" or has_length):
            self._refuse("it has a Transfer-Encoding other than chunked")
        else:
            self.has_head = True
            self.is_complete = self._method == "HEAD" or self.status in (204, 304)
            self.ends_with_connection = not (self.is_complete or has_length or coding is not None)
            self._keeps_alive = version == "1.1" and self._llhttp.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if self.is_complete:
            self._has_excess = True
        else:
            self._pieces.append(data)
            self.body_bytes += len(data)
            self.waiting_bytes += len(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_complete = True

    def _check_bounds(self, size: int, has_body: bool) -> None:
        if not self.has_head:
            if self.head_bytes >= self._max_header_bytes:
                self._refuse(f"its head exceeds {self._max_header_bytes} bytes")
            return
        self._bytes_without_body = 0 if has_body else self._bytes_without_body + size
        if self._bytes_without_body > _MAX_BYTES_WITHOUT_BODY:
            self._refuse("a chunk's size or the trailers do not end")

    def _refuse(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
