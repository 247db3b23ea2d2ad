"""What clients do while servers are replaced, and the verdict on it.

Four kinds of clients go on side by side: busy ones with quick calls and streams, those that connect
anew for each call, slow ones whose calls and streams last seconds, and clients that hold a
connection and are idle on it for longer than a server takes to leave. A rollout is right when each
call was answered: none refused, none broken off, none lost from the log.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import oracle
from calls import Caller, CallRecord

Pause = Callable[[], Awaitable[None]]

LOAD_SECONDS = 4 * 3600.0
STREAM_PIECES = 8


@dataclass(frozen=True, slots=True)
class Clients:
    """How many of each kind; how long a slow call lasts, and an idle client pauses (from, to)."""

    busy: int = 4
    fresh: int = 4
    slow: int = 4
    slow_seconds: float = 4.0
    idle: int = 6
    idle_seconds: tuple[float, float] = (0.5, 6.0)


@dataclass(slots=True)
class RolloutLoad:
    """Calls of all kinds to `urls`, each of which has clients of its own, until the block ends."""

    urls: Collection[str]
    key: str
    clients: Clients = field(default_factory=Clients)
    record: CallRecord = field(default_factory=CallRecord)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    kinds: dict[int, str] = field(default_factory=dict)  # whose each call is
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _sending: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        for url in self.urls:
            self._begin(url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if error is not None:
            for task in self._sending:
                task.cancel()
        results = await asyncio.gather(*self._sending, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and error is None:
                raise result

    async def answered_more(self, count: int, timeout_seconds: float = 60.0) -> None:
        """Return once `count` more calls than now are answered."""
        await self.record.answered_at_least(len(self.record.answered) + count, timeout_seconds)

    def trouble(self) -> list[str]:
        """A sentence for every call that was refused, broken off or answered wrongly."""
        record = self.record
        return [
            *(f"{self._name(n)} was refused with {s}" for n, s in sorted(record.refused.items())),
            *(f"{self._name(n)} was broken off: {e}" for n, e in sorted(record.failed.items())),
            *record.wrong.values(),
        ]

    def verdict(
        self, objects: Iterable[tuple[str, bytes]], seen: Collection[int], window_seconds: int
    ) -> oracle.Verdict:
        """What the oracle says of the drained store."""
        return oracle.judge(
            objects,
            answered=self.record.answered,
            seen=seen,
            sent=self.record.sent,
            window_seconds=window_seconds,
        )

    def _begin(self, url: str) -> None:
        clients = self.clients
        quick = Caller(url, self.key, options={"deltas": 5, "pace": 0.02, "delay": 0.1})
        seconds = clients.slow_seconds
        options = {"deltas": STREAM_PIECES, "pace": seconds / STREAM_PIECES, "delay": seconds}
        slow = Caller(url, self.key, options=options)
        self._send("busy", quick, clients.busy)
        self._send("fresh", quick, clients.fresh, keep_alive=False)
        self._send("slow", slow, clients.slow)
        # Each with a connection pool of its own: in a shared one the first that is free is used.
        for _ in range(clients.idle):
            self._send("idle", quick, 1, self._idle)

    async def _idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), random.uniform(*self.clients.idle_seconds))

    def _send(
        self,
        kind: str,
        caller: Caller,
        concurrency: int,
        pause: Pause | None = None,
        *,
        keep_alive: bool = True,
    ) -> None:
        sending = caller.send_all(
            self._numbers(kind),
            self.record,
            concurrency=concurrency,
            timeout_seconds=LOAD_SECONDS,
            pause=pause,
            keep_alive=keep_alive,
        )
        self._sending.append(asyncio.ensure_future(sending))

    def _numbers(self, kind: str) -> Iterator[int]:
        while not self._stopped.is_set():
            number = next(self.numbers)
            self.kinds[number] = kind
            yield number

    def _name(self, number: int) -> str:
        return f"call {number} of a client that is {self.kinds[number]}"
