"""The body of a request while it arrives: gathered up to a limit, or refused and forgotten.

A refusal is answered before the body is read. Closing the socket right after it could reset the
connection before the client has read the answer (RFC 9112 section 9.6), so a bounded rest of
the body is still taken in and thrown away.
"""

from tornado.httputil import HTTPHeaders

# A refused body of up to this size is read to its end, and the connection stays usable.
SMALL_BYTES = 64 * 1024
LINGER_MAX_BYTES = 8 * 1024 * 1024
LINGER_SECONDS = 2.0


class RequestBody:
    """Gathers chunks; `is_too_large` as soon as it is known, by the header or by the bytes."""

    def __init__(self, headers: HTTPHeaders, max_bytes: int) -> None:
        announced = headers.get("Content-Length", "")
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else None
        self._is_chunked = "Transfer-Encoding" in headers
        self._awaits_100 = headers.get("Expect", "").lower() == "100-continue"
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._forgets = False

    @property
    def is_too_large(self) -> bool:
        return max(self._size, self._announced or 0) > self._max_bytes

    @property
    def is_small(self) -> bool:
        """Whether reading it to the end costs next to nothing."""
        return not self._is_chunked and (self._announced or 0) <= SMALL_BYTES

    @property
    def is_coming(self) -> bool:
        """Whether the client sends it without waiting for our word."""
        return not self._awaits_100

    @property
    def has_lingered(self) -> bool:
        """Whether enough of a refused body was taken in."""
        return self._forgets and self._size > LINGER_MAX_BYTES

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if not self._forgets:
            self._chunks.append(chunk)

    def forget(self) -> None:
        """Throw away what has arrived and what still will."""
        self._forgets = True
        self._size = 0
        self._chunks.clear()

    def take(self) -> bytes:
        """The whole body; the chunks are let go."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body
