"""What all drains of a process share: upload threads, room for objects in memory, and counts."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

AT_ONCE = 4

T = TypeVar("T")


@dataclass(slots=True)
class UploadCounts:
    """What a process's drains have done so far; shown in /health."""

    batches_sealed: int = 0
    batches_uploaded: int = 0
    uploaded_rows: int = 0
    uploaded_bytes: int = 0
    upload_failures: int = 0
    last_upload_at: float | None = None
    last_error: str | None = None


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
