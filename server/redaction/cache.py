"""A redactor that remembers the texts it has seen.

Applications send the same system prompt with every call, and each step of an agent repeats the
whole conversation before it. Looking for credentials takes 0.1 ms per kB, and would be done anew
for each repetition; looking a text up costs a hundredth of that.
"""

from collections import OrderedDict
from collections.abc import Iterable
from sys import getsizeof

from open_llm_proxy.server.redaction.looks import Looks
from open_llm_proxy.server.redaction.redactor import Redactor

REMEMBERED_BYTES = 16 * 1024 * 1024
MIN_CHARACTERS = 256  # shorter texts are read as quickly as they are looked up
_LARGEST_SHARE = 16


class RememberingRedactor(Redactor):
    """Remembers texts of up to `max_bytes` in memory, those used last; used from one thread."""

    __slots__ = ("_bytes", "_max_bytes", "_seen")

    def __init__(self, secrets: Iterable[str] = (), max_bytes: int = REMEMBERED_BYTES) -> None:
        super().__init__(secrets)
        self._max_bytes = max_bytes
        self._bytes = 0
        # Text → what it became, None where nothing had to go.
        self._seen: OrderedDict[str, str | None] = OrderedDict()

    def text(self, text: str, looks: Looks | None = None) -> str:
        """Redact a text of any kind; the same object comes back when nothing had to go."""
        looks = looks or Looks()
        if len(text) < MIN_CHARACTERS or getsizeof(text) > self._max_bytes // _LARGEST_SHARE:
            return super().text(text, looks)
        if text in self._seen:
            self._seen.move_to_end(text)
            return self._seen[text] or text
        redacted = super().text(text, looks)
        if not looks.ran_out:  # else another row may keep more of the text
            self._remember(text, None if redacted == text else redacted)
        return redacted

    def _remember(self, text: str, redacted: str | None) -> None:
        self._seen[text] = redacted
        self._bytes += _size(text, redacted)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(*self._seen.popitem(last=False))


def _size(text: str, redacted: str | None) -> int:
    return getsizeof(text) + (getsizeof(redacted) if redacted else 0)
