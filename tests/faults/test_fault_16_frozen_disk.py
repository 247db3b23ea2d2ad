"""Fault 16: the disk takes no write for longer than a caller wants to wait (fsfreeze, under load).

New calls are refused at once, and /ready says so; what was handed over and has waited too long is
answered 503 and never forwarded. Calls under way wait. After the thaw everything is there.
"""

from collections.abc import Callable

import pytest

from loop_disk import LoopDisk
from open_llm_proxy.queue import folder
from queue_fixtures import birth
from test_fault_14_slow_disk import unchanging
from trial import Trial
from waiting import DeadlinePassed, wait_until

pytestmark = [pytest.mark.timeout(seconds=150), pytest.mark.root]

REFUSED_CALLS = 40


async def refusing(trial: Trial) -> None:
    """Return once /ready says that no calls are taken."""

    async def is_refusing() -> bool:
        return await trial.proxy.status("/ready") == 503

    await wait_until(is_refusing, "/ready answers 503", 20)


async def called_with_a_frozen_disk(trial: Trial, disk: LoopDisk) -> None:
    """Freeze the disk among calls, be refused, thaw it and go on; judged but for the store."""
    await trial.proxy.start()
    await trial.calls(10)
    async with trial.load(concurrency=16) as load:
        await trial.answered_more(10)
        async with trial.load(concurrency=4, behaviour="ok", pace=0.5, delay=3) as slow:
            await trial.answered_more(10)
            with disk.frozen():
                seen = await unchanging(trial)
                await refusing(trial)
                load.stop()
                slow.stop()
                refused = len(trial.record.refused)
                # None of them takes the time of a caller's patience, so all are over soon.
                await trial.calls(REFUSED_CALLS, concurrency=4)
                assert len(trial.record.refused) >= refused + REFUSED_CALLS
                health = await trial.proxy.health()
                assert health["status"] == "degraded"
                assert "does not answer" in health["log"]["refusing"]
                assert health["log"]["oldest_uncommitted_seconds"] >= 5
                assert trial.provider.seen() == seen, "a call went on without its entry"
                await told(trial, "New calls are refused: the disk of the log queue does not")
    forwarded = trial.record.refused.keys() & trial.provider.seen()
    assert not forwarded, "calls that were refused reached the provider"
    assert set(trial.record.refused.values()) == {503}
    assert trial.record.answered.keys() | trial.record.refused == trial.record.sent
    await trial.calls(10)
    await told(trial, "New calls are taken again, after")


async def told(trial: Trial, text: str) -> None:
    """Return once stderr has a text; the server looks every second."""
    await wait_until(lambda: text in trial.proxy.stderr_text(), f"stderr says {text!r}")


async def test_a_frozen_disk_refuses_calls_at_once_and_loses_nothing(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(queue_folder=loop_disk.root / "queue")
    await called_with_a_frozen_disk(trial, loop_disk)
    await trial.settle()


async def left_with_a_frozen_disk(trial: Trial, disk: LoopDisk, *, is_stalled: bool) -> None:
    """Ask the server to leave while its disk is frozen, with calls under way and a dead queue that
    it is about to take over; judged but for the store.

    Only the kernel ends a process that waits for a frozen disk, so its exit is seen by its first
    thread, and its exit code after the thaw. `is_stalled`: the server has noticed before.
    """
    trial.proxy.settings["SHUTDOWN_GRACE_SECONDS"] = "1"
    trial.proxy.queue_folder.mkdir()
    neighbour = folder.give_birth(trial.proxy.queue_folder, birth())
    await trial.proxy.start()
    await trial.calls(10)
    async with trial.load(concurrency=4, behaviour="ok", pace=0.2, delay=2) as load:
        await trial.answered_more(8)
        with disk.frozen():
            neighbour.release()
            if is_stalled:
                await refusing(trial)
            load.stop()
            trial.proxy.terminate()
            await wait_until(trial.proxy.has_asked_to_exit, "the server asks to exit", 60)
            last = trial.proxy.stderr_text().strip().splitlines()[-1]
    assert await trial.proxy.wait() == 70
    assert "does not answer" in last and "nothing is lost" in last, last
    trial.repetitions += 1


@pytest.mark.parametrize("is_stalled", [True, False], ids=["noticed", "not-noticed-yet"])
async def test_a_server_that_leaves_asks_to_exit_with_70_and_the_next_one_finds_everything(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk, is_stalled: bool
) -> None:
    trial = new_trial(queue_folder=loop_disk.root / "queue")
    await left_with_a_frozen_disk(trial, loop_disk, is_stalled=is_stalled)
    await trial.settle()


async def test_the_same_test_notices_calls_that_wait_for_the_disk(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(variant="stall_not_noticed", queue_folder=loop_disk.root / "queue")
    with pytest.raises(DeadlinePassed, match="/ready answers 503"):
        await called_with_a_frozen_disk(trial, loop_disk)
    await trial.killed()


async def test_the_same_test_notices_calls_that_go_on_without_their_entry(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(variant="stalled_openings_forwarded", queue_folder=loop_disk.root / "queue")
    with pytest.raises(AssertionError, match="went on without its entry"):
        await called_with_a_frozen_disk(trial, loop_disk)
    await trial.killed()
