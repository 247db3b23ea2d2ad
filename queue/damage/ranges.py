"""Ranges of seq: what follows each other, and what is missing between them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

Range = tuple[int, int]  # first and last, both in it


def runs(numbers: Iterable[int]) -> Iterator[Range]:
    """Ascending `numbers` as ranges without gaps; a number may come twice."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = number
        elif number > last + 1:
            yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in any order, in ascending order and where two touch as one."""
    result: list[Range] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(result[-1][1], last)
        else:
            result.append((first, last))
    return result


def clipped(ranges: Sequence[Range], within: Range) -> list[Range]:
    """The part of `ranges`, ascending and apart from each other, that lies in one range."""
    first, last = within
    found = []
    for i in range(bisect_left(ranges, first, key=itemgetter(1)), len(ranges)):
        if ranges[i][0] > last:
            break
        found.append((max(ranges[i][0], first), min(ranges[i][1], last)))
    return found


def gaps(ranges: Iterable[Range], within: Range) -> Iterator[Range]:
    """What ascending `ranges` leave out of one range."""
    expected, end = within
    for first, last in ranges:
        if first > expected:
            yield expected, first - 1
        expected = max(expected, last + 1)
    if expected <= end:
        yield expected, end


def count(ranges: Iterable[Range]) -> int:
    """How many numbers the ranges hold, none of which overlap."""
    return sum(last - first + 1 for first, last in ranges)


def spelled(ranges: Sequence[Range], limit: int = 20) -> str:
    """As a sentence has it: ``row 7``, ``rows 7, 9 to 12 and 3 more ranges``."""
    told = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in ranges[:limit])
    noun = "row" if count(ranges) == 1 else "rows"
    more = f" and {len(ranges) - limit} more ranges" if len(ranges) > limit else ""
    return f"{noun} {told}{more}"
