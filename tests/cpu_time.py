"""A generous limit on processor time, for tests that tell linear from quadratic work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """Fail the test once the block has used this much processor time, at once and not after it.

    Time in which the process waits, or others run, does not count. Main thread only.
    """

    def stop(*_: object) -> None:
        raise AssertionError(f"took more than {limit} s of processor time: not linear?")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
