"""What all drains of a process share: upload threads, room for objects in memory, and counts."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from open_llm_proxy.queue.messages import counted

AT_ONCE = 4
# How often an outage of the store is told again, and how many of its reasons are told at once.
REMINDER_SECONDS = 300.0
REASONS_AT_ONCE = 8

T = TypeVar("T")


log = logging.getLogger(__name__)


@dataclass(slots=True)
class UploadCounts:
    """What a process's drains have done so far; shown in /health.

    An outage is one line for each of its reasons at once, and then a line every few minutes: a
    failure is not an event but a state, and its log must not bury what else happens.
    """

    batches_sealed: int = 0
    batches_uploaded: int = 0
    uploaded_rows: int = 0
    uploaded_bytes: int = 0
    upload_failures: int = 0
    last_upload_at: float | None = None
    last_error: str | None = None
    _failing_since: float | None = None
    _failures: int = 0
    _told: set[str] = field(default_factory=set)
    _told_at: float = 0.0

    def failed(self, why: str, now: float) -> None:
        """An upload failed at `now` (monotonic seconds); `why` says what to do."""
        self.upload_failures += 1
        self.last_error = why
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        is_new = why not in self._told and len(self._told) < REASONS_AT_ONCE
        if is_new:
            log.warning("Upload failed and will be tried again: %s", why)
        elif now - self._told_at >= REMINDER_SECONDS:
            minutes = (now - self._failing_since) / 60
            failures = counted(self._failures, "failure")
            log.warning("Uploads have failed for %.0f min (%s): %s", minutes, failures, why)
        else:
            return
        self._told.add(why)
        self._told_at = now

    def succeeded(self, sink: str, rows: int, size_bytes: int) -> None:
        """A batch is stored and acknowledged."""
        if self._failing_since is not None:
            failures = counted(self._failures, "failure")
            log.warning("Uploads to %s work again, after %s", sink, failures)
        self.batches_uploaded += 1
        self.uploaded_rows += rows
        self.uploaded_bytes += size_bytes
        self.last_upload_at = time.time()
        self.last_error = self._failing_since = None
        self._failures = 0
        self._told.clear()


class Uploads:
    """`at_once` objects are uploaded at a time, and so many are in memory.

    `slots`: one is taken before an object's first row is read and given back after its PUT.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self.counts = UploadCounts()
        self.slots = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="upload")

    def run(self, work: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        """`work`, which blocks, on an upload thread."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        """Begin nothing more; what a store has not answered is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
