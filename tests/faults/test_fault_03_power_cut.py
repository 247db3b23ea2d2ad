"""Fault 3: the power goes while calls are logged. Nothing that was acknowledged may be gone.

The queue and the objects lie on a disk of their own, which is shut down without flushing and
mounted again. A kill would not do: what a killed process has written stays in the page cache,
so that a queue without a single fsync passes every test with SIGKILL.

What clients and the provider got after the cut does not count: with the power the process would
have gone, too. It can be a call or two, for an fdatasync that is inside the kernel at the very
moment of the shutdown reports success although its journal commit is given up.
"""

from collections.abc import Callable

import pytest

import oracle
from loop_disk import LoopDisk
from stores import DirectoryStore
from trial import Trial, losses

pytestmark = [pytest.mark.root, pytest.mark.timeout(seconds=120)]

# Few calls: no checkpoint comes before the cut, so that everything is in the WAL alone.
LOW_RATE = {"concurrency": 4, "delay": 0.2, "pace": 0.02}
FULL_RATE = {"concurrency": 32}
# The rows stay in the queue, or go to the store all the time.
KEPT, DRAINED = 3600, 1
RATES = [
    pytest.param(LOW_RATE, KEPT, id="20-a-second-kept"),
    pytest.param(FULL_RATE, KEPT, id="full-rate-kept"),
    pytest.param(FULL_RATE, DRAINED, id="full-rate-drained"),
]


def trial_on(
    disk: LoopDisk, new_trial: Callable[..., Trial], window_seconds: int, variant: str = ""
) -> Trial:
    objects = disk.root / "objects"
    objects.mkdir()
    return new_trial(
        variant=variant,
        store=DirectoryStore(objects),
        queue_folder=disk.root / "queue",
        window_seconds=window_seconds,
    )


async def cut(trial: Trial, disk: LoopDisk, answers: int, rate: dict[str, float]) -> None:
    """Cut the power after `answers` more answers, with calls under way; power is back then."""
    await trial.proxy.start()
    async with trial.load(**rate) as load:  # type: ignore[arg-type]
        await trial.answered_more(answers, timeout_seconds=90)
        if trial.window_seconds == DRAINED:
            await trial.uploaded_more(1)
        before = trial.outside()
        disk.power_cut()
        load.stop()
    await trial.killed()
    trial.forget_since(before)
    disk.remount()


async def verdict_after_cuts(
    trial: Trial, disk: LoopDisk, rate: dict[str, float], cuts: int = 1
) -> oracle.Verdict:
    for number in range(cuts):
        await cut(trial, disk, 30 + 7 * number, rate)
    await trial.finish()
    return trial.verdict()


@pytest.mark.parametrize("rate, window_seconds", RATES)
async def test_a_power_cut_loses_nothing(
    new_trial: Callable[..., Trial],
    loop_disk: LoopDisk,
    rate: dict[str, float],
    window_seconds: int,
) -> None:
    trial = trial_on(loop_disk, new_trial, window_seconds)
    verdict = await verdict_after_cuts(trial, loop_disk, rate)
    assert not verdict.violations, str(verdict)
    assert not trial.record.wrong


@pytest.mark.parametrize("rate, window_seconds", RATES[:2])
async def test_the_same_test_notices_a_queue_that_is_not_synced(
    new_trial: Callable[..., Trial],
    loop_disk: LoopDisk,
    rate: dict[str, float],
    window_seconds: int,
) -> None:
    trial = trial_on(loop_disk, new_trial, window_seconds, "synchronous_normal")
    assert losses(await verdict_after_cuts(trial, loop_disk, rate)) > 0


async def test_the_same_test_notices_objects_that_are_not_synced(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = trial_on(loop_disk, new_trial, DRAINED, "files_not_synced")
    assert losses(await verdict_after_cuts(trial, loop_disk, FULL_RATE)) > 0


@pytest.mark.long
@pytest.mark.timeout(seconds=3000)
@pytest.mark.parametrize("rate, window_seconds", RATES)
async def test_many_power_cuts_lose_nothing(
    new_trial: Callable[..., Trial],
    loop_disk: LoopDisk,
    rate: dict[str, float],
    window_seconds: int,
) -> None:
    trial = trial_on(loop_disk, new_trial, window_seconds)
    verdict = await verdict_after_cuts(trial, loop_disk, rate, cuts=40)
    assert not verdict.violations, str(verdict)
