"""Work that is done again and again, by the monotonic clock.

Tornado's PeriodicCallback goes by the wall clock: where that is set back by two days, it pauses
for two days, and a drain with it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Periodic:
    """Does `work` from `start` on, `seconds` after each time that it was done, until `stop`.

    At most one is in progress at a time. What `work` raises is logged and ends nothing.
    """

    def __init__(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: asyncio.Future[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin, the first time after `seconds`; from a running loop."""
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._begin)

    def stop(self) -> None:
        """Begin no more; what is in progress runs to its end."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._under_way = asyncio.ensure_future(self._do())

    async def _do(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("%r failed and is tried again", self._work)
        if not self._is_stopped:
            self.start()
