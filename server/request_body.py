"""The body of a request while it arrives: gathered up to a limit, or refused and forgotten.

A refusal is answered before the body is read. Closing the socket right after it would reset the
connection, and a client that sends all before it reads would never see the answer (RFC 9112,
section 9.6). So the rest of the body is still taken in and thrown away, within bounds.
"""

import re

from tornado.httputil import HTTPHeaders

# A refused body of up to this size is read to its end, and the connection stays usable. No route
# but the relay's takes more.
SMALL_BYTES = 64 * 1024
LINGER_MAX_BYTES = 256 * 1024 * 1024
LINGER_SECONDS = 30.0
LINGER_SILENCE_SECONDS = 2.0

# So many digits are enough for every size, and few enough for an int of any other reader.
_LENGTH = re.compile(r"[0-9]{1,18}")


class BodyBudget:
    """The bytes of bodies that all calls in progress may hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes

    @property
    def is_spent(self) -> bool:
        return self.held_bytes > self._max_bytes


class RequestBody:
    """Counts chunks, and gathers them until `forget`.

    `is_too_large` as soon as that is known, by the header or by the bytes. Headers whose framing
    is ambiguous are taken without complaint; `framing_problem` tells of them.
    """

    def __init__(self, headers: HTTPHeaders, max_bytes: int, budget: BodyBudget) -> None:
        announced = headers.get("Content-Length", "")
        self._announced = int(announced) if _LENGTH.fullmatch(announced) else 0
        self._is_chunked = "Transfer-Encoding" in headers
        self._awaits_100 = headers.get("Expect", "").lower() == "100-continue"
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_forgotten = False
        self._budget = budget

    @property
    def has_no_room(self) -> bool:
        """Whether it is one body too many, with those of other calls."""
        return not self._is_forgotten and self._budget.is_spent

    @property
    def is_too_large(self) -> bool:
        return max(self._size, self._announced) > self._max_bytes

    @property
    def is_small(self) -> bool:
        """Whether reading it to the end costs next to nothing."""
        return not self._is_chunked and self._announced <= SMALL_BYTES

    @property
    def is_coming(self) -> bool:
        """Whether the client sends it without waiting for our word."""
        return not self._awaits_100

    @property
    def has_lingered(self) -> bool:
        """Whether enough of a refused body was taken in."""
        return self._is_forgotten and self._size > LINGER_MAX_BYTES

    @property
    def received_bytes(self) -> int:
        """How much has come; of a body that is thrown away, since then."""
        return self._size

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if not self._is_forgotten:
            self._chunks.append(chunk)
            self._budget.held_bytes += len(chunk)

    def replace(self, sent: bytes, decoded: bytes) -> None:
        """What was taken is held decoded from now on."""
        self._size += len(decoded) - len(sent)
        self._budget.held_bytes += len(decoded) - len(sent)

    def forget(self) -> None:
        """Throw away what has arrived and what still will; nobody holds it any more."""
        if not self._is_forgotten:
            self._is_forgotten = True
            self._budget.held_bytes -= self._size
        self._size = 0
        self._chunks.clear()

    def take(self) -> bytes:
        """The whole body, which is held until `forget`."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body


def framing_problem(version: str, headers: HTTPHeaders) -> str | None:
    """Why two servers could disagree about where this request ends, or None.

    Such a request may carry a second one inside its body ("request smuggling", RFC 9112, section
    11.2). Stricter than section 6.3, which allows a Content-Length that is repeated unchanged.
    """
    lengths = headers.get_list("Content-Length")
    codings = headers.get_list("Transfer-Encoding")
    if codings and lengths:
        return "it has both Transfer-Encoding and Content-Length"
    if len(lengths) > 1:
        return "it has more than one Content-Length"
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return "its Content-Length is not a number of at most 18 digits"
    if codings and version != "HTTP/1.1":
        return f"it has a Transfer-Encoding in {version}"
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        return "its Transfer-Encoding is not `chunked`"
    return None
