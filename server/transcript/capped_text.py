"""Texts of one answer, of bounded size."""

from open_llm_proxy.archive.text import cut_mark, split_mark, whole_pairs

_PIECES_PER_BLOCK = 64


class Budget:
    """The bytes, as UTF-8, that may still be kept of one answer."""

    def __init__(self, max_bytes: int) -> None:
        self.left = max_bytes
        self.is_exceeded = False


class CappedText:
    """A text that grows by pieces for as long as the budget lasts, and counts the rest.

    Once a piece did not fit, no later one is kept: it would stand behind a gap. A short str takes
    ten times the room of its text, so the pieces are joined now and then.
    """

    __slots__ = ("_blocks", "_budget", "_characters", "_is_cut", "_pieces", "_unit_mark")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._blocks: list[str] = []
        self._pieces: list[str] = []
        self._characters = 0
        self._is_cut = False
        self._unit_mark = ""

    def __bool__(self) -> bool:
        return self._characters > 0

    def add(self, piece: str) -> None:
        """Take the next piece, or as much of it as the budget allows, in whole characters."""
        budget, length = self._budget, len(piece)
        self._characters += length
        if length <= budget.left and piece.isascii() and not self._is_cut:
            budget.left -= length
        else:
            piece = self._affordable(piece)
        if piece:
            self._pieces.append(piece)
            if len(self._pieces) >= _PIECES_PER_BLOCK:
                self._blocks.append("".join(self._pieces))
                self._pieces.clear()

    def add_cut(self, piece: str) -> None:
        """Take a piece that may end in the mark of an earlier cut."""
        text, mark, length = split_mark(piece)
        self.add(text)
        if mark:
            self._characters += length - len(text)
            self._is_cut = self._budget.is_exceeded = True

    def mark_document(self, size: int) -> None:
        """Say that parts of this text were left out of a document of so many bytes."""
        self._unit_mark = cut_mark(size, "bytes")
        self._characters += 1
        self._is_cut = self._budget.is_exceeded = True

    def value(self) -> str | None:
        """Return the text, None if nothing came; surrogates that came in halves are joined."""
        text = "".join(self._blocks + self._pieces)
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if self._is_cut:
            mark = self._unit_mark or cut_mark(self._characters, "characters")
            text = whole_pairs(text) + mark
        return text or None

    def _affordable(self, piece: str) -> str:
        if self._is_cut:
            return ""
        encoded = piece.encode("utf-8", "surrogatepass")
        left = self._budget.left
        if len(encoded) <= left:
            self._budget.left -= len(encoded)
            return piece
        self._budget.is_exceeded = self._is_cut = True
        while left > 0 and encoded[left] & 0xC0 == 0x80:
            left -= 1
        self._budget.left -= left
        return encoded[:left].decode("utf-8", "surrogatepass")
