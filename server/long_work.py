"""Work that takes as long as somebody's text is long, beside the event loop instead of in it.

A body is decoded and read, texts are searched for credentials, rows are put together: that is
Python, for a second and more where a text was made for it. In a thread it gives way to the loop
every half millisecond (`SWITCH_INTERVAL_SECONDS` in serve.py), but for single calls into C, which
are short at the sizes that are accepted. There is one thread, so that such calls wait for each
other and for nobody else. What is short stays in the loop: handing it over would cost more.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LONG_BYTES = 32_768

T = TypeVar("T")


class LongWork:
    """Runs what works on so many bytes, or characters, where it holds up nobody."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-work")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """The result of `work`, or what it raises."""
        if size < LONG_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
