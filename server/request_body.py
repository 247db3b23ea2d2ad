"""The body of a request while it arrives: gathered up to a limit, or refused and forgotten."""

from open_llm_proxy.server.http1.request import Request

# A refused body of up to this size is read to its end, and the connection stays usable. No route
# but the relay's takes more.
SMALL_BYTES = 64 * 1024


class BodyBudget:
    """The bytes of bodies that all calls in progress may hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes

    @property
    def is_spent(self) -> bool:
        return self.held_bytes > self._max_bytes


class RequestBody:
    """Counts pieces, and gathers them until `forget`.

    `is_too_large` as soon as that is known, by the header or by the bytes.
    """

    def __init__(self, request: Request, max_bytes: int, budget: BodyBudget) -> None:
        announced = request.announced_bytes
        # Whether reading it to the end costs next to nothing.
        self.is_small = announced is not None and announced <= SMALL_BYTES
        self._announced = announced or 0
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
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

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if not self._is_forgotten:
            self._pieces.append(piece)
            self._budget.held_bytes += len(piece)

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
        self._pieces.clear()

    def take(self) -> bytes:
        """The whole body, which is held until `forget`."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body
