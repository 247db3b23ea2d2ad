"""How often the texts of one row may be looked at closely, so that none can hold up the rest.

Finding the places where a credential may stand costs next to nothing; reading the grammar around
one takes some ten microseconds, on the event loop. Ordinary text has such a place every few
hundred characters. A text that has one every ten would stop every other call for seconds per
megabyte, and says nothing that a log needs: it is read as far as its looks last, and its rest is
replaced as a whole.

Looks are a budget in characters. Each costs `LOOK_CHARACTERS`, or `GLANCE_CHARACTERS` where it is
only a short string of JSON that is looked through; each character that is passed gives one back,
and `SPARE_LOOKS` are there at the start. So text of any length whose places are further apart
than that is never cut.
"""

from collections.abc import Iterator

LOOK_CHARACTERS = 128
GLANCE_CHARACTERS = 32
SPARE_LOOKS = 8_000


def rest_of(text: str, start: int) -> tuple[int, int]:
    """The span of all that follows `start`; it ends behind the text, as no other span does."""
    return start, len(text) + 1


class Looks:
    """What is left of the budget; used for the texts of one row, one after the other.

    `ran_out` tells whether one of them was not read to its end.
    """

    __slots__ = ("_floor", "_left", "_position", "ran_out")

    def __init__(self, spare: int = SPARE_LOOKS) -> None:
        self.ran_out = False
        self._left = spare * LOOK_CHARACTERS
        self._floor = 0
        self._position = 0

    def begin(self, passes: int) -> None:
        """Begin a pass over a text, of so many that may follow; it leaves the others a share."""
        self._floor = self._left - max(0, self._left) // passes
        self._position = 0

    def shares(self, rules: int) -> Iterator[None]:
        """Let so many rules read the text one after the other, each with its share of the pass."""
        floor = self._floor
        for rules_left in range(rules, 0, -1):
            self._floor = self._left - max(0, self._left - floor) // rules_left
            yield
        self._floor = floor

    def take(self, offset: int, cost: int = LOOK_CHARACTERS) -> bool:
        """Take a look at `offset` of the text; False if none is left."""
        self._left -= cost
        if offset > self._position:
            self._left += offset - self._position
            self._position = offset
        if self._left < self._floor:
            self.ran_out = True
            return False
        return True
