"""The time-outs of a request to a provider, and the one timer that serves all requests.

`connect` bounds the wait for a connection, `idle` the silence within an answer's body, `total`
everything. Before the head of an answer only `total` counts: a completion that is not streamed
sends nothing until it is done, and TCP keep-alive finds a peer that is gone meanwhile.

Almost no time-out is ever over, and a stream waits anew for each of its tokens. So a wait starts no
timer of its own: it notes when its time is over, and the shared timer looks at the notes of all
when the first of them that it knows of may be over. Time-outs are as exact as with timers of their
own; where all are minutes long, the timer runs once in minutes.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds; 0 is no limit."""

    connect_seconds: float = 0.0
    idle_seconds: float = 0.0
    total_seconds: float = 0.0


NO_TIMEOUTS = Timeouts()


class Timed(Protocol):
    """Something of which parts may take too long."""

    def check(self, now: float) -> float:
        """End what is over by `now`; returns when the next part is, or `NEVER`."""


class SharedTimer:
    """Checks all that are `watched`, in time for each moment that `after` has given."""

    def __init__(self) -> None:
        self.watched: set[Timed] = set()
        self._next_look = NEVER
        self._handle: asyncio.TimerHandle | None = None

    def after(self, seconds: float) -> float:
        """The moment in so many seconds, as the event loop counts them."""
        moment = asyncio.get_running_loop().time() + seconds
        if moment < self._next_look:
            self._look_at(moment)
        return moment

    def _look_at(self, moment: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next_look = moment
        self._handle = asyncio.get_running_loop().call_at(moment, self._look)

    def _look(self) -> None:
        self._next_look = NEVER
        now = asyncio.get_running_loop().time()
        first = min([timed.check(now) for timed in list(self.watched)], default=NEVER)
        if first < self._next_look:
            self._look_at(first)
