"""How many requests each key has made in the last minute, kept in memory.

A process counts its own requests only, and a restart forgets them. What is refused does not count.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection

MINUTE_SECONDS = 60.0


class RequestRates:
    """The moments of the last minute's requests, by the name of the key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moments: dict[str, deque[float]] = {}

    def seconds_to_wait(self, name: str, per_minute: int) -> int:
        """Count one request of the key `name` and return 0; where that would be one too many,
        count nothing and return after how many seconds it would not."""
        now = self._clock()
        moments = self._moments.setdefault(name, deque())
        while moments and moments[0] <= now - MINUTE_SECONDS:
            moments.popleft()
        if len(moments) < per_minute:
            moments.append(now)
            return 0
        return max(1, math.ceil(moments[-per_minute] + MINUTE_SECONDS - now))

    def keep(self, names: Collection[str]) -> None:
        """Forget all other names."""
        self._moments = {name: m for name, m in self._moments.items() if name in names}
