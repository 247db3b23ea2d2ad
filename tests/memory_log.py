"""An entry log that a test can hold up and break at each of its three moments.

It keeps the contract of the queue: entries are handed over at once, futures resolve when they
are durable, a closing takes effect only where the opening did. On top of that it notices a call
that is closed twice.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import log_contract
from open_llm_proxy.archive.entry import INTERRUPTED_TAIL
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueError
from waiting import Changes

Row = dict[str, Any]
Lines = tuple[bytes, ...]


class Moment:
    """Openings, closings or rejected calls: `hold` lets them wait, the errors fail them."""

    def __init__(self) -> None:
        self.refusal: QueueError | None = None  # raised at once
        self.error: QueueError | None = None  # raised when it should become durable
        self.arrived = 0
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def passed(self) -> None:
        await self._free.wait()
        if self.error is not None:
            raise self.error


class MemoryCall:
    """An opened call."""

    def __init__(self, log: "MemoryLog", stored: "asyncio.Future[Lines]") -> None:
        self.stored = stored
        self._log = log
        self._is_closed = False

    def close(self, entry: Entry) -> "asyncio.Future[Lines]":
        if self._is_closed:
            self._log.closed_twice += 1
        self._is_closed = True
        self._log.changes.notify()
        return self._log.hand_over(self._log.closings, [entry], after=self.stored)


class MemoryLog:
    """`rows` holds what is durable, in order."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.openings = Moment()
        self.closings = Moment()
        self.rejections = Moment()
        self.closed_twice = 0
        self.changes = Changes()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def refusal(self) -> QueueError | None:
        return self.openings.refusal

    @property
    def requests(self) -> list[Row]:
        return [row for row in self.rows if row["type"] == "request"]

    @property
    def responses(self) -> list[Row]:
        return [row for row in self.rows if row["type"] == "response"]

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> MemoryCall:
        row = log_contract.read_row(interrupted_head + INTERRUPTED_TAIL)
        assert row["outcome"] == "interrupted"
        return MemoryCall(self, self.hand_over(self.openings, entries))

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[Lines]":
        return self.hand_over(self.rejections, entries)

    def hand_over(
        self,
        moment: Moment,
        entries: Sequence[Entry],
        after: "asyncio.Future[Lines] | None" = None,
    ) -> "asyncio.Future[Lines]":
        """Make `entries` durable once `moment` lets them pass, and once `after` was."""
        moment.arrived += 1
        self.changes.notify()
        if moment.refusal is not None:
            raise moment.refusal
        future: asyncio.Future[Lines] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        task = asyncio.ensure_future(self._store(future, moment, entries, after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _store(
        self,
        future: "asyncio.Future[Lines]",
        moment: Moment,
        entries: Sequence[Entry],
        after: "asyncio.Future[Lines] | None",
    ) -> None:
        if after is not None:
            await asyncio.wait({after})
            if after.exception() is not None:
                future.set_result(())
                return
        try:
            await moment.passed()
        except QueueError as error:
            if not future.done():
                future.set_exception(error)
            return
        lines = tuple(entry.body for entry in entries)
        self.rows += [log_contract.read_row(line) for line in lines]
        self.changes.notify()
        if not future.done():
            future.set_result(lines)

    async def status(self) -> dict[str, Any]:
        return {"queued_rows": len(self.rows)}

    def flush(self) -> None:
        """Nothing is uploaded."""

    async def close(self, upload_seconds: float) -> bool:
        return True

    async def closed(self, count: int = 1, timeout_seconds: float = 10.0) -> Row:
        """The last response row, once there are `count` of them."""
        await self.changes.until(
            lambda: len(self.responses) >= count, f"{count} response rows", timeout_seconds
        )
        return self.responses[-1]

    def the_call(self) -> tuple[Row, Row]:
        """The two rows of the only call; fails where there is anything else."""
        assert [row["type"] for row in self.rows] == ["request", "response"]
        assert self.closed_twice == 0
        request, response = self.rows
        assert request["request_id"] == response["request_id"]
        return request, response
