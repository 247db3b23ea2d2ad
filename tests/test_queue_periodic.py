"""Periodic work: again and again, one at a time, whatever it raises and whatever the clock says."""

import asyncio
import logging
import time

import pytest

from open_llm_proxy.queue.periodic import Periodic
from waiting import Changes

SECONDS = 0.001


class Work:
    """Counts how often it was begun, and how many are under way at once."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_once = 0
        self.most_at_once = 0
        self.error: Exception | None = None
        self._changes = Changes()

    async def __call__(self) -> None:
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self._changes.notify()
        await asyncio.sleep(2 * SECONDS)
        self.at_once -= 1
        if self.error is not None:
            raise self.error

    async def begun_more(self, count: int) -> None:
        target = self.begun + count
        await self._changes.until(lambda: self.begun >= target, f"begun {count} times more", 10)


async def test_it_is_done_again_and_again_one_at_a_time_until_it_is_stopped() -> None:
    work = Work()
    periodic = Periodic(work, SECONDS)
    periodic.start()
    await work.begun_more(5)
    periodic.stop()
    begun = work.begun
    await asyncio.sleep(20 * SECONDS)
    assert work.begun == begun
    assert (work.at_once, work.most_at_once) == (0, 1)


async def test_an_error_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    work.error = ValueError("once more")
    periodic = Periodic(work, SECONDS)
    with caplog.at_level(logging.ERROR):
        periodic.start()
        await work.begun_more(3)
    periodic.stop()
    assert "once more" in caplog.text


async def test_a_wall_clock_that_is_set_back_delays_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Work()
    periodic = Periodic(work, SECONDS)
    periodic.start()
    await work.begun_more(2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 2 * 86_400)
    await work.begun_more(3)
    periodic.stop()
