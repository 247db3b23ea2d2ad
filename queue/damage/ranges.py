"""Ranges of seq: what follows each other, and what is missing between them.

All of it works on iterators in ascending order, so that a million rows cost no memory.
"""

import heapq
from collections.abc import Iterable, Iterator

Range = tuple[int, int]  # first and last, both in it


def runs(numbers: Iterable[int]) -> Iterator[Range]:
    """Ascending `numbers` as ranges without gaps."""
    first = last = None
    for number in numbers:
        if last is not None and number > last + 1:
            assert first is not None
            yield first, last
            first = number
        elif first is None:
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def joined(*several: Iterable[Range]) -> Iterator[Range]:
    """Several ascending iterators of ranges as one, where ranges that touch are one range."""
    current: Range | None = None
    for first, last in heapq.merge(*several):
        if current is None:
            current = first, last
        elif first <= current[1] + 1:
            current = current[0], max(current[1], last)
        else:
            yield current
            current = first, last
    if current is not None:
        yield current


def gaps(covered: Iterable[Range], last: int = 0) -> Iterator[Range]:
    """What the ascending ranges `covered` leave out, from 1 to their end or to `last` behind it."""
    expected = 1
    for start, end in covered:
        if start > expected:
            yield expected, start - 1
        expected = max(expected, end + 1)
    if expected <= last:
        yield expected, last


def count(ranges: Iterable[Range]) -> int:
    """How many numbers the ranges hold, none of which overlap."""
    return sum(last - first + 1 for first, last in ranges)


def spelled(ranges: Iterable[Range]) -> str:
    """As a sentence has it: ``7, 9 to 12``."""
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in ranges)
