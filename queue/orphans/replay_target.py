"""Where a replay takes a queue's rows: to sinks that confirm them, or to stdout, which cannot.

Unlike a server, a replay has an operator who waits for it: it tries a store that refuses a few
times and then leaves the rest, which stays in the queue as it is. It can be stopped at any
moment: objects in progress are finished, nothing new is begun.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import ClassVar, Protocol

from open_llm_proxy.queue.drain import Drain, read_object, seal_next
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.orphans.orphan import Orphan
from open_llm_proxy.queue.sinks import Sink
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.uploads import UploadCounts, Uploads

log = logging.getLogger(__name__)

# Passes in a row that confirm nothing, before the rest is left; the waits between them double.
TRIES = 5
RETRY_SECONDS = 1.0


class SinkUnavailable(Exception):
    """A sink that a queue names cannot be opened here; the message says why."""


class OutputClosed(Exception):
    """Nobody takes what is printed any more."""


class RawOutput(Protocol):
    """What `io.FileIO` has for the rows."""

    def write(self, data: memoryview, /) -> int:
        """Write a beginning of `data`; returns how much of it."""
        ...


class ReplayTarget(Protocol):
    """`counts` grow meanwhile; `confirms`: what is delivered may leave the queue.

    `is_discouraged`: the store has taken nothing for long, and a further queue is tried once.
    """

    @property
    def confirms(self) -> bool: ...

    @property
    def counts(self) -> UploadCounts: ...

    @property
    def is_discouraged(self) -> bool: ...

    async def deliver(self, orphan: Orphan) -> str | None:
        """Deliver all of the queue's rows; returns why some are left, None where none are."""
        ...

    def stop(self) -> None:
        """Begin nothing new; what is in progress is finished."""
        ...

    def close(self) -> None:
        """Nothing more will be delivered."""
        ...


class ToSinks:
    """To `sink`, but batches that were first tried on another sink to that one.

    `open_sink` opens the sink of an identity or raises `SinkUnavailable`. With `again` all
    batches go to `sink`, although their rows may then be in both.
    """

    confirms: ClassVar[bool] = True

    def __init__(
        self,
        sink: Sink,
        open_sink: Callable[[str], Sink],
        *,
        again: bool = False,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._uploads = Uploads()
        self.counts = self._uploads.counts
        self._sink = sink
        self._open_sink = open_sink
        self._again = again
        self._retry_seconds = retry_seconds
        self._others: dict[str, Sink | SinkUnavailable] = {}
        self._drains: dict[str, Drain] = {}  # of the queue that is delivered now
        self._failures = 0
        self._stopped = asyncio.Event()

    @property
    def is_discouraged(self) -> bool:
        return self._failures >= TRIES

    def stop(self) -> None:
        self._stopped.set()
        for drain in self._drains.values():
            drain.stopped = True

    def close(self) -> None:
        self._uploads.close()

    async def deliver(self, orphan: Orphan) -> str | None:
        self._drains = {}
        main = self._drain_to(orphan, self._sink, again=self._again)
        delay = self._retry_seconds
        while True:
            before = self.counts.batches_uploaded
            could_go_on = await self._pass(orphan, main)
            if await orphan.writer.run(Store.is_empty):
                return None
            if self._stopped.is_set():
                rows = counted(orphan.state.queued_rows, "row")
                return f"stopped with {rows} left; run it again to resume"
            if self.counts.batches_uploaded > before:
                self._failures, delay = 0, self._retry_seconds
            elif could_go_on:
                self._failures += 1
            if not could_go_on or self.is_discouraged:
                return self._reason(orphan, main)
            await self._wait(delay)
            delay *= 2

    async def _pass(self, orphan: Orphan, main: Drain) -> bool:
        """Try everything once; returns whether what is left could be tried again."""
        for drain in self._drains.values():
            drain.backoff.try_now()
        could_go_on = not await orphan.advance(main, _ignored)
        for identity in sorted({batch.sink for batch in main.foreign if batch.sink}):
            if (sink := await self._other(identity)) is None:
                continue
            drain = self._drains.get(identity) or self._drain_to(orphan, sink, only_bound=True)
            try:
                await drain.upload()
            except QueueFull:
                orphan.waits_for_room = True
            could_go_on = True
        await orphan.refresh()
        return could_go_on

    def _drain_to(
        self, orphan: Orphan, sink: Sink, *, again: bool = False, only_bound: bool = False
    ) -> Drain:
        drain = orphan.drain_to(sink, self._uploads, again=again, only_bound=only_bound)
        drain.stopped = self._stopped.is_set()
        self._drains[sink.identity] = drain
        return drain

    async def _other(self, identity: str) -> Sink | None:
        if identity not in self._others:
            try:
                self._others[identity] = await asyncio.to_thread(self._open_sink, identity)
            except SinkUnavailable as error:
                self._others[identity] = error
            else:
                log.warning("Batches that may already be on %s are uploaded there", identity)
        found = self._others[identity]
        return None if isinstance(found, SinkUnavailable) else found

    def _reason(self, orphan: Orphan, main: Drain) -> str:
        count = orphan.state.queued_rows
        rows = f"{counted(count, 'row')} {'is' if count == 1 else 'are'} left"
        if orphan.waits_for_room:
            return f"{rows}: the disk is full, free some room beside {orphan.owned.path}"
        if self.counts.last_error is not None:
            return f"{rows}: {self.counts.last_error}"
        unavailable = [
            f"{identity} ({found})"
            for identity, found in sorted(self._others.items())
            if isinstance(found, SinkUnavailable) and any(b.sink == identity for b in main.foreign)
        ]
        return (
            f"{rows} that may already be on {', '.join(unavailable)}; --again uploads what is left "
            f"to {self._sink.identity}, and it may then be in both"
        )

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


class ToStdout:
    """To `out`, object by object in the order of the rows. The queue keeps its rows.

    They are sealed for no sink, so that the objects they go into later are these. `out` must not
    buffer: what could not be written would be tried again at the end of the process.
    """

    confirms: ClassVar[bool] = False
    is_discouraged: ClassVar[bool] = False

    def __init__(self, out: RawOutput) -> None:
        self.counts = UploadCounts()
        self._out = out
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        return

    async def deliver(self, orphan: Orphan) -> str | None:
        """Raises `OutputClosed`."""
        await orphan.close_calls()
        # Damage is found by reading, and after a repair all begins anew: so everything is read
        # before anything is printed.
        for batch in await orphan.writer.run(Store.sealed):
            await read_object(orphan.writer, batch)
        while not self._stopped and await seal_next(orphan.writer, everything=True, sink=None):
            pass
        for batch in await orphan.writer.run(Store.sealed):
            if self._stopped:
                return "stopped before all rows were printed"
            body, _ = await read_object(orphan.writer, batch)
            await asyncio.to_thread(self._print, body)
            self.counts.batches_uploaded += 1
            self.counts.uploaded_rows += batch.rows
            self.counts.uploaded_bytes += len(body)
        return None

    def _print(self, body: bytes) -> None:
        try:
            rest = memoryview(body)
            while rest:
                rest = rest[self._out.write(rest) :]
        except OSError as error:
            raise OutputClosed(f"stdout: {error.strerror or error}") from error


def _ignored(lines: list[bytes]) -> None:
    """The lines that close open calls go to the store only."""
