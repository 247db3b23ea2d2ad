"""Waiting on conditions, so that no test sleeps and hopes.

`Changes` is for conditions within this process: whoever changes something says so. `wait_until`
polls and is for what another process does. Both give up at a deadline with a sentence that names
what did not happen.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


class DeadlinePassed(AssertionError):
    """Something that a test waits for did not happen in time."""


class Changes:
    """Wakes the tasks that wait for a condition whenever its owner reports a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Report that something changed; waiting tasks look at their conditions again."""
        self._event.set()

    async def until(
        self, condition: Callable[[], T | None], what: str, timeout_seconds: float = 30.0
    ) -> T:
        """Return the first true value of `condition`, or raise `DeadlinePassed`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not (value := condition()):
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            raise DeadlinePassed(f"{what}: not within {timeout_seconds:g} s") from None
        return value


@overload
async def wait_until(
    condition: Callable[[], Awaitable[T | None]],
    what: str,
    timeout_seconds: float = ...,
    poll_seconds: float = ...,
) -> T: ...


@overload
async def wait_until(
    condition: Callable[[], T | None],
    what: str,
    timeout_seconds: float = ...,
    poll_seconds: float = ...,
) -> T: ...


async def wait_until(
    condition: Callable[[], object],
    what: str,
    timeout_seconds: float = 30.0,
    poll_seconds: float = 0.02,
) -> Any:
    """Poll `condition`, a plain or a coroutine function, until it returns a true value.

    For what happens in another process. Raises `DeadlinePassed`, which shows the last value.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() >= deadline:
            raise DeadlinePassed(
                f"{what}: not within {timeout_seconds:g} s; the condition last gave {value!r}"
            )
        await asyncio.sleep(poll_seconds)
