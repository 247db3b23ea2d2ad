"""What was found out about texts that come again: a system prompt, the conversation so far.

Applications send the same texts with every call. Looking one up costs a tenth of searching it for
credentials, and less than hashing it.
"""

import threading
from collections import OrderedDict
from sys import getsizeof

MAX_BYTES = 16 * 1024 * 1024
_LARGEST_SHARE = 16


class RecentTexts:
    """Texts and what they became, those used last, up to so many bytes; for several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._found: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> str | None:
        with self._lock:
            found = self._found.get(text)
            if found is not None:
                self._found.move_to_end(text)
            return found

    def put(self, text: str, found: str) -> None:
        """Remember a text, if it is not too large a part of all."""
        size = _size(text, found)
        if size > self._max_bytes // _LARGEST_SHARE:
            return
        with self._lock:
            if text not in self._found:
                self.held_bytes += size
            self._found[text] = found
            while self.held_bytes > self._max_bytes:
                self.held_bytes -= _size(*self._found.popitem(last=False))


def _size(text: str, found: str) -> int:
    return getsizeof(text) + (getsizeof(found) if found is not text else 0)
