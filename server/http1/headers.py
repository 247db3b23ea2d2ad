"""The headers of a request: what llhttp has checked, found by name in any case.

Tornado's `HTTPHeaders` has the same methods; it normalizes each name whenever it is asked for one,
which a call does some thirty times.
"""

from collections.abc import Iterable
from typing import overload


class Headers:
    """Pairs of name and value in the order in which they came; values are Latin-1."""

    __slots__ = ("_pairs", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = [(name, value) for name, value in pairs]
        self._values: dict[str, str] = {}
        for name, value in self._pairs:
            self._add(name.lower(), value)

    def _add(self, name: str, value: str) -> None:
        before = self._values.get(name)
        self._values[name] = value if before is None else f"{before},{value}"

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

    def get_all(self) -> Iterable[tuple[str, str]]:
        """Each pair as it came."""
        return self._pairs
