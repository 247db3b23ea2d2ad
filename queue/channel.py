"""What one thread hands to another, with as few switches between the two as can be.

`queue.SimpleQueue` and `call_soon_threadsafe` wake the other thread while this one holds the
interpreter lock, so that it goes back to sleep at once and both wait for each other. A write to a
pipe gives the lock up while the kernel wakes the reader. An event loop watches the descriptor as it
watches its sockets.
"""

import os
import select
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_PIPE_BYTES = 64 * 1024


class Channel(Generic[T]):
    """Items from any thread to one reader, who takes them from the left of `items`.

    A reader that is an event loop watches `descriptor`, and calls `clear` before it takes any.
    """

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.descriptor, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def __del__(self) -> None:
        os.close(self.descriptor)
        os.close(self._writing)

    def put(self, item: T) -> None:
        self.items.append(item)
        try:
            os.write(self._writing, b"1")
        except BlockingIOError:
            return  # a full pipe wakes the reader as well

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Return when there are items, or when none came for `timeout_seconds`."""
        while not self.items:
            if timeout_seconds is not None:
                waiting = select.poll()
                waiting.register(self.descriptor, select.POLLIN)
                if not waiting.poll(timeout_seconds * 1000):
                    return
            self.clear()

    def clear(self) -> None:
        """Make `descriptor` unreadable until the next item is put; waits for one at first."""
        os.read(self.descriptor, _PIPE_BYTES)
