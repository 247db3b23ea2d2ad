"""The log's lines on stdout, as pure JSONL, without ever making a call wait.

A terminal that was stopped or a full pipe blocks whoever writes to it, so a thread of its own
does the writing. What it has not written yet is bounded; beyond that lines are dropped here and
counted, while the durable queue keeps them. The process's own messages go to stderr.

Lines are gathered for a few milliseconds: each time that the thread is woken it takes the processor
and the interpreter lock away from the event loop, which has calls to answer.
"""

import asyncio
import os
import threading
from collections.abc import Sequence

from open_llm_proxy.queue.channel import Channel

PENDING_MAX_BYTES = 8 * 1024 * 1024
GATHER_SECONDS = 0.005


class StdoutLines:
    """Writes lines to a file descriptor in order; made and used on one event loop."""

    def __init__(self, descriptor: int = 1, pending_max_bytes: int = PENDING_MAX_BYTES) -> None:
        self._refused_lines = 0  # by the loop: too much was waiting
        self._unread_lines = 0  # by the thread: stdout was closed
        self._descriptor = descriptor
        self._pending_max_bytes = pending_max_bytes
        self._taken_bytes = 0
        self._written_bytes = 0
        self._gathered: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._chunks: Channel[list[bytes] | None] = Channel()
        self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that stdout did not get."""
        return self._refused_lines + self._unread_lines

    def write(self, lines: Sequence[bytes]) -> None:
        """Hand whole lines over; returns at once, and drops them if too much is waiting."""
        size_bytes = sum(map(len, lines))
        if self._taken_bytes - self._written_bytes + size_bytes > self._pending_max_bytes:
            self._refused_lines += len(lines)
            return
        self._taken_bytes += size_bytes
        self._gathered += lines
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        self._chunks.put(self._gathered)
        self._gathered = []

    def close(self, timeout_seconds: float) -> None:
        """Write what is waiting, for at most `timeout_seconds`."""
        if self._timer is not None:
            self._timer.cancel()
            self._hand_over()
        self._chunks.put(None)
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        closed = False
        while (lines := self._next()) is not None:
            chunk = b"".join(lines)
            rest = memoryview(chunk)
            while rest and not closed:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    closed = True  # nobody reads any more, and nobody will
            if closed:
                self._unread_lines += len(lines)
            self._written_bytes += len(chunk)

    def _next(self) -> list[bytes] | None:
        self._chunks.wait()
        return self._chunks.items.popleft()
