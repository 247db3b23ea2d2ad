"""A redactor that remembers the texts it has seen."""

from collections.abc import Iterable

from open_llm_proxy.server.recent_texts import MAX_BYTES, RecentTexts
from open_llm_proxy.server.redaction.redactor import Redactor, RowRedactor

MIN_CHARACTERS = 256  # shorter texts are read as quickly as they are looked up


class RememberingRedactor(Redactor):
    """Remembers texts of up to `max_bytes` in memory."""

    __slots__ = ("_max_bytes", "_seen")

    def __init__(self, secrets: Iterable[str] = (), max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        super().__init__(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replace these values, too; what was remembered without them is forgotten."""
        super().learn(secrets)
        self._seen = RecentTexts(self._max_bytes)

    def for_row(self) -> RowRedactor:
        seen = self._seen  # before the secrets, which may become more meanwhile
        return _RememberingRow(self._known, seen)


class _RememberingRow(RowRedactor):
    __slots__ = ("_seen",)

    def __init__(self, known: tuple[str, ...], seen: RecentTexts) -> None:
        super().__init__(known)
        self._seen = seen

    def text(self, text: str) -> str:
        if len(text) < MIN_CHARACTERS or self._depth:
            return super().text(text)
        redacted = self._seen.get(text)
        if redacted is None:
            redacted = super().text(text)
            if not self.is_exhausted:  # else another row may keep more of the text
                self._seen.put(text, redacted)
        return redacted
