"""Fault 12: the clock jumps, forwards and backwards, by minutes, days and over a year's edge.

Rows are ordered by their number and never by a clock; an object is named by its rows' own time,
whatever the time is when it is made; and a window ends by the monotonic clock, so that rows whose
window lies in the future after a jump back do not wait for it. The oracle checks that every row
lies in the window that its object's key names.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest

from false_clock import FalseClock
from stores import S3Store
from trial import Trial
from waiting import DeadlinePassed, wait_until

pytestmark = pytest.mark.timeout(seconds=120)

LONG = [pytest.mark.long, pytest.mark.timeout(seconds=900)]
MINUTE, DAY = 60, 86_400
JUMPS = (20 * MINUTE, -2 * DAY, 0)
MANY_JUMPS = (20 * MINUTE, -20 * MINUTE, 2 * DAY, -2 * DAY, 0, 400 * DAY, -1, 1, 0) * 3


async def logged_over_jumps(
    trial: Trial, clock: FalseClock, jumps: Iterable[float], drain_seconds: float = 30
) -> None:
    """Log calls while the clock jumps under them, and let the queue run empty each time."""
    await trial.proxy.start()
    for offset_seconds in jumps:
        async with trial.load(concurrency=4, pace=0.05, delay=0.3):
            await trial.answered_more(8)
            clock.jump(offset_seconds)
            await trial.answered_more(8)
        await trial.proxy.drained(drain_seconds)
        trial.repetitions += 1


@pytest.mark.parametrize(
    "jumps", [JUMPS, pytest.param(MANY_JUMPS, marks=LONG)], ids=["a-few", "many"]
)
async def test_no_jump_holds_a_row_back_or_moves_it_elsewhere(
    new_trial: Callable[..., Trial], clock: FalseClock, jumps: Iterable[float]
) -> None:
    trial = new_trial(settings=clock.settings)
    await logged_over_jumps(trial, clock, jumps)
    await trial.settle()
    days = {key[:10] for key, _ in trial.store.objects()}
    assert len(days) >= 2, "the clock did not jump"


async def test_the_same_test_notices_keys_that_come_from_the_clock(
    new_trial: Callable[..., Trial], clock: FalseClock
) -> None:
    trial = new_trial(settings=clock.settings, variant="key_from_the_clock")
    await logged_over_jumps(trial, clock, JUMPS[:1])
    await trial.finish()
    assert trial.verdict().count("key") > 0


async def test_the_same_test_notices_a_drain_that_is_timed_by_the_clock(
    new_trial: Callable[..., Trial], clock: FalseClock
) -> None:
    trial = new_trial(settings=clock.settings, variant="timed_by_the_clock")
    with pytest.raises(DeadlinePassed, match="drained"):
        await logged_over_jumps(trial, clock, [-2 * DAY], drain_seconds=6)
    await trial.flushed()  # an operator could still have it uploaded


async def test_a_window_is_crossed_backwards_and_the_year_ends(
    new_trial: Callable[..., Trial], clock: FalseClock
) -> None:
    trial = new_trial(settings=clock.settings, window_seconds=2)
    year = datetime(2027, 1, 1, tzinfo=UTC)
    clock.jump_to(year - timedelta(seconds=1))
    await trial.proxy.start()
    async with trial.load(concurrency=4, pace=0.02):
        await trial.answered_more(12)
        clock.jump_to(year + timedelta(seconds=0.5))
        await trial.answered_more(8)
        clock.jump_to(year - timedelta(seconds=0.7))
        await trial.answered_more(12)
        clock.jump_to(year + timedelta(seconds=0.5))
        await trial.answered_more(8)
    await trial.killed()
    clock.jump_to(year - timedelta(hours=1))
    await trial.settle()
    assert {key[:4] for key, _ in trial.store.objects()} == {"2026", "2027"}


@pytest.mark.rgw
async def test_uploads_that_are_refused_for_a_wrong_clock_succeed_once_it_is_right(
    new_trial: Callable[..., Trial], rgw_store: S3Store, clock: FalseClock
) -> None:
    trial = new_trial(store=rgw_store, settings=clock.settings)
    await trial.proxy.start()
    clock.jump(30 * MINUTE)
    await trial.calls(10)

    async def is_refused() -> bool:
        return "RequestTimeTooSkewed" in ((await trial.log())["last_error"] or "")

    await wait_until(is_refused, "the store refuses the clock", 20)
    clock.jump(0)
    await trial.calls(10)
    await trial.flushed()
    await trial.settle()
