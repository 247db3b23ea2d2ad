"""The time-outs of a request to a provider.

`connect` bounds the wait for a connection, `idle` the silence within an answer's body, `total`
everything. Before the head of an answer only `total` counts: a completion that is not streamed
sends nothing until it is done, and TCP keep-alive finds a peer that is gone meanwhile.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from open_llm_proxy.server.upstream.exceptions import FetchTimeout, TimeoutKind


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds; 0 is no limit."""

    connect_seconds: float
    idle_seconds: float
    total_seconds: float


class Deadline:
    """`async with Deadline("total", seconds, origin)` raises `FetchTimeout` when the time is over.

    `None` and 0 seconds mean no limit. A `TimeoutError` from inside passes through unchanged.
    """

    __slots__ = ("_kind", "_origin", "_seconds", "_timeout")

    def __init__(self, kind: TimeoutKind, seconds: float | None, origin: object) -> None:
        self._kind = kind
        self._seconds = seconds or 0
        self._origin = origin
        self._timeout = asyncio.timeout(seconds or None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise FetchTimeout(self._kind, self._seconds, self._origin) from None


class SilenceLimit:
    """Calls `on_silence` when a single wait, from `begin` to `end`, lasts for `seconds`.

    A stream waits for every token, so a wait must cost next to nothing: one timer runs along and
    checks, when it fires, how long the present wait has lasted. None and 0 seconds mean no limit.
    """

    def __init__(self, seconds: float | None, on_silence: Callable[[], None]) -> None:
        self.seconds = seconds or 0.0
        self.is_over = False
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        if self.seconds:
            self._began = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self.seconds, self._check)

    def end(self) -> None:
        self._began = None

    def cancel(self) -> None:
        """Stop the timer; nothing is called any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        now = self._loop.time()
        over_at = (now if self._began is None else self._began) + self.seconds
        if over_at > now:
            self._timer = self._loop.call_at(over_at, self._check)
        else:
            self.is_over = True
            self._on_silence()
