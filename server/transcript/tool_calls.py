"""Which call a piece of a tool call belongs to, in whatever way a provider numbers them.

By the API a call has an index of its own, its first piece brings id and name, and the others only
arguments. Providers differ: all calls have index 0, or none has an index; ids are empty, missing,
repeated in each piece or new in each piece; calls come whole, several in one chunk. So a new call
begins with a new index; with an id that is new, if a name comes with it; and where a name comes
although the arguments so far are complete JSON.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from open_llm_proxy.archive.text import shortened
from open_llm_proxy.server.transcript.capped_text import Budget, CappedText

_MAX_LABEL_CHARACTERS = 512
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STRING_REST = re.compile(r'(?:[^"\\]++|\\.)*+"', re.DOTALL)


class CallParts:
    """One tool call under way."""

    __slots__ = ("_depth", "_has_begun", "_rest", "arguments", "id", "last_piece", "name")

    def __init__(self, budget: Budget) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = CappedText(budget)
        self.last_piece = ""  # the whole arguments, where they came in one piece
        self._depth = 0
        self._has_begun = False
        self._rest = ""  # of an unfinished string: its quote, or that and a backslash

    @property
    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole JSON object or array."""
        return self._has_begun and self._depth == 0 and not self._rest

    def name_it(self, call_id: str | None, name: str | None) -> None:
        """Set what a piece says of the call: the first id stays; a name may come in pieces."""
        if call_id and not self.id:
            self.id = shortened(call_id, _MAX_LABEL_CHARACTERS)
        if name and name != self.name and len(self.name or "") < _MAX_LABEL_CHARACTERS:
            self.name = shortened((self.name or "") + name, _MAX_LABEL_CHARACTERS)

    def add(self, arguments: str, *, is_cut: bool = False) -> None:
        """Take the next piece of the arguments; arguments that are only repeated are left out."""
        if arguments == self.last_piece and self.is_complete:
            return
        self.last_piece = "" if self.arguments else arguments
        if is_cut:
            self.arguments.add_cut(arguments)
        else:
            self.arguments.add(arguments)
        self._follow(arguments)

    def _follow(self, piece: str) -> None:
        """Count the brackets that are open, strings left out."""
        if self._rest:
            piece, rest = self._rest[1:] + piece, self._rest
            found = _STRING_REST.match(piece)
            if found is None:
                odd = (len(piece) - len(piece.rstrip("\\"))) % 2
                self._rest = rest[0] + "\\" * odd
                return
            piece, self._rest = piece[found.end() :], ""
        if '"' in piece:
            piece = _STRING.sub("", piece)
            piece, quote, string = piece.partition('"')
            odd = (len(string) - len(string.rstrip("\\"))) % 2
            self._rest = quote + "\\" * odd if quote else ""
        opened = piece.count("{") + piece.count("[")
        self._has_begun |= opened > 0
        self._depth += opened - piece.count("}") - piece.count("]")


@dataclass(frozen=True, slots=True)
class CallPiece:
    """One element of ``tool_calls``, of a delta or of a whole message."""

    index: int | None = None
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


class CallList:
    """The tool calls of one choice, in the order in which they began.

    ``begin`` makes a new call, or returns None where there are too many.
    """

    def __init__(self, begin: Callable[[], CallParts | None]) -> None:
        self.calls: list[CallParts] = []
        self._begin = begin
        self._by_index: dict[object, CallParts] = {}
        self._by_id: dict[str, CallParts] = {}

    def __bool__(self) -> bool:
        return bool(self.calls)

    def has_only(self, index: int) -> bool:
        """Whether there is no call but the one with that index, if there is one."""
        return all(call is self._by_index.get(index) for call in self.calls)

    def at(self, index: object) -> CallParts | None:
        """Return the call with that index; the last one where a provider gives none."""
        if isinstance(index, int):
            return self._by_index.get(index)
        return self.calls[-1] if self.calls else None

    def add_delta(self, pieces: Iterable[CallPiece], *, is_cut: bool = False) -> None:
        """Take the pieces that one chunk of a stream brings."""
        touched: set[CallParts] = set()
        for piece in pieces:
            known = self._continued_by(piece)
            if known is not None and piece.name and known in touched:
                known = None  # no provider sends one call in two pieces in one chunk
            call = self.add(known, piece, is_cut=is_cut)
            if call is not None:
                touched.add(call)

    def add(
        self, call: CallParts | None, piece: CallPiece, *, is_cut: bool = False
    ) -> CallParts | None:
        """Go on with ``call``, or begin one; None where there are too many."""
        if call is None:
            call = self._begin()
            if call is None:
                return None
            self.calls.append(call)
            if piece.index is not None:
                self._by_index[piece.index] = call
            if piece.id:
                self._by_id[piece.id] = call
        call.name_it(piece.id, piece.name)
        if piece.arguments:
            call.add(piece.arguments, is_cut=is_cut)
        return call

    def _continued_by(self, piece: CallPiece) -> CallParts | None:
        """Find the call that a piece goes on with; None if it begins one."""
        index, call_id, name, arguments = piece.index, piece.id, piece.name, piece.arguments
        same_id = self._by_id.get(call_id) if call_id else None
        if same_id is not None and not (name and self._is_unknown(index)):
            is_another = name and arguments and same_id.is_complete
            return None if is_another and arguments != same_id.last_piece else same_id
        known = self.at(index)
        if known is None:
            return None
        has_new_id = bool(call_id and known.id)
        if not name:
            is_another = has_new_id and arguments and known.is_complete
            return None if is_another or (index is None and call_id) else known
        if has_new_id or known.is_complete:
            return None
        if name != known.name:
            is_piece_of_name = index is not None and arguments is None
            return known if is_piece_of_name or not known.name else None
        return known if index is not None or known.arguments else None

    def _is_unknown(self, index: int | None) -> bool:
        return index is not None and index not in self._by_index
