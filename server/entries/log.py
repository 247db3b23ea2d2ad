"""Where entries go: the durable queue and stdout, or stdout alone where no sink is configured.

The relay opens a call here and closes it, and need not know which of the two it has. An opened
call hands over the beginning of the row that will say `interrupted` if the process dies; its end
is `INTERRUPTED_TAIL`, the same for all calls.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.log_queue import LogQueue
from open_llm_proxy.server.entries.stdout import StdoutLines


class OpenedCall(Protocol):
    """A call whose request entry was handed over; see `LoggedCall` in queue/log_queue.py."""

    stored: "asyncio.Future[tuple[bytes, ...]]"

    def close(self, entry: Entry) -> "asyncio.Future[tuple[bytes, ...]]": ...


class EntryLog(Protocol):
    """`refusal` says why no call can be opened now; `status` is the log's part of /health."""

    @property
    def refusal(self) -> QueueError | None: ...

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> OpenedCall: ...

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]": ...

    async def status(self) -> dict[str, Any]: ...

    def flush(self) -> None: ...

    async def close(self, upload_seconds: float) -> bool: ...


class QueuedLog:
    """The durable queue; its lines go to stdout as soon as they are committed."""

    def __init__(self, queue: LogQueue, stdout: StdoutLines) -> None:
        self._queue = queue
        self._stdout = stdout

    @property
    def refusal(self) -> QueueError | None:
        return self._queue.refusal

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> OpenedCall:
        return self._queue.open(entries, interrupted_head)

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]":
        return self._queue.append(entries)

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = msgspec.to_builtins(await self._queue.status())
        return status | {"stdout_lines_dropped": self._stdout.dropped}

    def flush(self) -> None:
        self._queue.flush()

    async def close(self, upload_seconds: float) -> bool:
        return await self._queue.close(upload_seconds)


class StdoutLog:
    """No queue: lines are printed at once, without queue_id and seq, and kept nowhere.

    `reason` says why, for /health and for the start's message.
    """

    refusal = None

    def __init__(self, stdout: StdoutLines, reason: str) -> None:
        self.reason = reason
        self._stdout = stdout

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> OpenedCall:
        return _PrintedCall(self, self.append(entries))

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]":
        lines = tuple(entry.body + b"\n" for entry in entries)
        self._stdout.write(list(lines))
        printed = asyncio.get_running_loop().create_future()
        printed.set_result(lines)
        return printed

    async def status(self) -> dict[str, Any]:
        return {
            "sink": None,
            "reason": self.reason,
            "queue_id": None,
            "stdout_lines_dropped": self._stdout.dropped,
        }

    def flush(self) -> None:
        """Nothing waits to be uploaded."""

    async def close(self, upload_seconds: float) -> bool:
        return True


class _PrintedCall:
    def __init__(self, log: StdoutLog, stored: "asyncio.Future[tuple[bytes, ...]]") -> None:
        self.stored = stored
        self._log = log

    def close(self, entry: Entry) -> "asyncio.Future[tuple[bytes, ...]]":
        return self._log.append([entry])
