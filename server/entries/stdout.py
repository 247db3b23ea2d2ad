"""The log's lines on stdout, as pure JSONL, without ever making a call wait.

A terminal that was stopped or a full pipe blocks whoever writes to it, so a thread of its own
does the writing. What it has not written yet is bounded; beyond that lines are dropped here and
counted, while the durable queue keeps them. The process's own messages go to stderr.

The thread is woken once per turn of the event loop and not once per line: each wake-up takes
the interpreter lock away from the loop.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Sequence

PENDING_MAX_BYTES = 8 * 1024 * 1024


class StdoutLines:
    """Writes lines to a file descriptor in order; made and used on one event loop."""

    def __init__(self, descriptor: int = 1, pending_max_bytes: int = PENDING_MAX_BYTES) -> None:
        self._refused_lines = 0  # by the loop: too much was waiting
        self._unread_lines = 0  # by the thread: stdout was closed
        self._descriptor = descriptor
        self._pending_max_bytes = pending_max_bytes
        self._handed_over = 0
        self._written = 0
        self._gathered: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that stdout did not get."""
        return self._refused_lines + self._unread_lines

    def write(self, lines: Sequence[bytes]) -> None:
        """Hand whole lines over; returns at once, and drops them if too much is waiting."""
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.extend(lines)

    def _hand_over(self) -> None:
        lines, self._gathered = self._gathered, []
        chunk = b"".join(lines)
        if self._handed_over - self._written + len(chunk) > self._pending_max_bytes:
            self._refused_lines += len(lines)
        else:
            self._handed_over += len(chunk)
            self._chunks.put(chunk)

    def close(self, timeout_seconds: float) -> None:
        """Write what is waiting, for at most `timeout_seconds`."""
        self._hand_over()
        self._chunks.put(None)
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        closed = False
        while (chunk := self._chunks.get()) is not None:
            rest = memoryview(chunk)
            while rest and not closed:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    closed = True  # nobody reads any more, and nobody will
            if closed:
                self._unread_lines += chunk.count(b"\n")
            self._written += len(chunk)
