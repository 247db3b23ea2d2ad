"""Since when appends wait for their commit, and what becomes of those that wait too long.

On a disk that hangs a commit may not return for minutes. Nobody who opens a call is kept waiting
for that: after `STALL_SECONDS` the opening is answered with `QueueStalled`, and so never forwarded.
What closes a call waits on, as its call was made. Neither is taken back from the writer: what was
handed over may be stored later. One timer serves all appends, and a disk that answers pays only for
an entry in a dict.
"""

import asyncio
from typing import Any

from open_llm_proxy.queue.entry import Lines
from open_llm_proxy.queue.errors import QueueStalled

STALL_SECONDS = 5.0
LOOK_SECONDS = 0.5


class StallClock:
    """Used from one event loop. `stop` ends its timer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Since when each waits, and whether it closes a call; the first is the oldest.
        self._waiting: dict[asyncio.Future[Lines], tuple[float, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waited_seconds(self) -> float:
        """For how long the oldest append has been waiting for its commit."""
        for since, _ in self._waiting.values():
            return self._loop.time() - since
        return 0.0

    @property
    def refusal(self) -> QueueStalled | None:
        """Why no call can be opened now, or None."""
        return _stalled() if self.waited_seconds >= STALL_SECONDS else None

    def begin(self, future: "asyncio.Future[Lines]", closes: bool) -> None:
        """An append was handed over; `closes` says that it closes a call."""
        self._waiting[future] = (self._loop.time(), closes)
        if self._timer is None:
            self._timer = self._loop.call_later(STALL_SECONDS, self._look)

    def end(self, future: "asyncio.Future[Lines]") -> None:
        """The writer has answered; a future that never began is passed over."""
        self._waiting.pop(future, None)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for future, (since, closes) in self._waiting.items():
            if now - since < STALL_SECONDS:
                break
            if not closes and not future.done():
                fail(future, _stalled())
        if self._waiting:
            seconds = max(LOOK_SECONDS, STALL_SECONDS - self.waited_seconds)
            self._timer = self._loop.call_later(seconds, self._look)


def fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    """Answer with an error, of which asyncio need not hear if a handler that went away does not."""
    future.set_exception(error)
    future.exception()


def _stalled() -> QueueStalled:
    return QueueStalled("the disk of the log queue does not answer; try again later")
