"""When to try a store again: exponential, with jitter and a cap, for ever.

Each batch has its own delay, so that one refused object does not stop the others; and when the
store as a whole seems to be away, all attempts pause together, so that an outage costs one
probe at a time and not one per batch. Times are on the monotonic clock.
"""

import random
from dataclasses import dataclass, field

FIRST_SECONDS = 1.0
CAP_SECONDS = 60.0
# So many failures of different batches in a row are the store's fault and not a batch's.
STORE_FAILURES = 2


@dataclass(slots=True)
class Delay:
    """One thing's waiting time: doubles from failure to failure, up to `cap_seconds`."""

    cap_seconds: float = CAP_SECONDS
    failures: int = 0
    due: float = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        seconds = min(self.cap_seconds, FIRST_SECONDS * 2 ** min(self.failures - 1, 16))
        self.due = now + seconds * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        self.failures = 0
        self.due = 0.0


@dataclass(slots=True)
class Backoff:
    """The delays of one queue file's batches, by first seq, and of the store behind them."""

    cap_seconds: float = CAP_SECONDS
    _store: Delay = field(init=False)
    _batches: dict[int, Delay] = field(default_factory=dict)
    _failed_in_a_row: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._store = Delay(self.cap_seconds)

    def is_due(self, first: int, now: float) -> bool:
        """Whether the batch that starts at `first` may be tried now."""
        delay = self._batches.get(first)
        return now >= self._store.due and (delay is None or now >= delay.due)

    def failed(self, first: int, now: float) -> None:
        self._batches.setdefault(first, Delay(self.cap_seconds)).failed(now)
        self._failed_in_a_row.add(first)
        if len(self._failed_in_a_row) >= STORE_FAILURES:
            self._store.failed(now)

    def succeeded(self, first: int) -> None:
        self._batches.pop(first, None)
        self._failed_in_a_row.clear()
        self._store.succeeded()

    def try_now(self) -> None:
        """Forget all delays: an operator asked, or the process is about to end."""
        self._batches.clear()
        self._failed_in_a_row.clear()
        self._store.succeeded()
