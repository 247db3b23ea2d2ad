"""The headers of a request or an answer: what llhttp has checked, found by name in any case.

Tornado's `HTTPHeaders` has the same methods; it normalizes each name whenever it is asked for one,
which a call does some thirty times.
"""

from collections.abc import Iterable, Sequence
from typing import overload


class Headers:
    """Pairs of name and value in the order in which they came; values are Latin-1."""

    __slots__ = ("_pairs", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = list(pairs)
        values = self._values = {name.lower(): value for name, value in self._pairs}
        if len(values) < len(self._pairs):  # some are given several times
            for name in values:
                values[name] = ",".join(self.get_list(name))

    @classmethod
    def of_raw(cls, fields: Iterable[tuple[bytes, bytes]]) -> "Headers":
        """From what llhttp gives, which may have blanks behind a value."""
        return cls(
            [(name.decode("ascii"), value.decode("latin-1").strip(" \t")) for name, value in fields]
        )

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """The value; those of a name that is given several times are joined by commas (RFC 9110,
        section 5.3)."""
        return self._values.get(name.lower(), default)

    def get_list(self, name: str) -> list[str]:
        """The values one by one."""
        lower = name.lower()
        return [value for given, value in self._pairs if given.lower() == lower]

    def get_all(self) -> Sequence[tuple[str, str]]:
        """Each pair as it came."""
        return self._pairs

    def without(self, *names: str) -> "Headers":
        """The others."""
        left_out = {name.lower() for name in names}
        return Headers(pair for pair in self._pairs if pair[0].lower() not in left_out)
