"""A redactor that remembers the texts it has seen.

Applications send the same system prompt with every call, and each step of an agent repeats the
whole conversation before it. Looking for credentials takes some 10 microseconds per kB, and would
be done anew for each repetition; looking a text up costs a tenth of that.
"""

from collections import OrderedDict
from collections.abc import Iterable
from sys import getsizeof

from open_llm_proxy.server.redaction.redactor import Redactor, RowRedactor

REMEMBERED_BYTES = 16 * 1024 * 1024
MIN_CHARACTERS = 256  # shorter texts are read as quickly as they are looked up
_LARGEST_SHARE = 16


class RememberingRedactor(Redactor):
    """Remembers texts of up to `max_bytes` in memory, those used last; used from one thread."""

    __slots__ = ("_bytes", "_max_bytes", "_seen")

    def __init__(self, secrets: Iterable[str] = (), max_bytes: int = REMEMBERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # Text → what it became, None where nothing had to go.
        self._seen: OrderedDict[str, str | None] = OrderedDict()
        super().__init__(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replace these values, too; what was remembered without them is forgotten."""
        super().learn(secrets)
        self._seen.clear()
        self._bytes = 0

    def for_row(self) -> RowRedactor:
        """A redactor for the texts of one row, which share `MAX_PLACES`."""
        return _RememberingRow(self, self._known)

    def recalled(self, text: str) -> str | None:
        """What a text became, None if it is not remembered."""
        if text not in self._seen:
            return None
        self._seen.move_to_end(text)
        return self._seen[text] or text

    def remember(self, text: str, redacted: str) -> None:
        """Remember what a text became, if it is not too large."""
        if getsizeof(text) > self._max_bytes // _LARGEST_SHARE:
            return
        became = None if redacted == text else redacted
        self._seen[text] = became
        self._bytes += _size(text, became)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(*self._seen.popitem(last=False))


class _RememberingRow(RowRedactor):
    __slots__ = ("_memory",)

    def __init__(self, memory: RememberingRedactor, known: tuple[str, ...]) -> None:
        super().__init__(known)
        self._memory = memory

    def text(self, text: str) -> str:
        if len(text) < MIN_CHARACTERS or self._depth:
            return super().text(text)
        if (remembered := self._memory.recalled(text)) is not None:
            return remembered
        redacted = super().text(text)
        if not self.is_exhausted:  # else another row may keep more of the text
            self._memory.remember(text, redacted)
        return redacted


def _size(text: str, redacted: str | None) -> int:
    return getsizeof(text) + (getsizeof(redacted) if redacted else 0)
