"""Fault 5: the disk is full, by the queue itself or by somebody else's file.

New calls are refused with 503, calls under way get their closing entries, the drain goes on
although nothing is left to write with, and service resumes by itself.
"""

from collections.abc import Callable

import pytest

from loop_disk import LoopDisk
from store_faults import StubStore
from trial import Trial, losses
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=120)

MIB = 1024 * 1024
ENVIRONMENT_UNUSABLE = 3
ENOUGH = 400  # answers after which a disk would have had to be full


async def loaded_until_refused(trial: Trial, refusals: int = 8) -> None:
    """Send calls until some were refused, with some slow ones under way from before."""
    answered = len(trial.record.answered)
    async with trial.load(concurrency=8):
        await wait_until(
            lambda: (
                len(trial.record.refused) >= refusals
                or len(trial.record.answered) >= answered + ENOUGH
            ),
            "calls are refused",
            40,
        )


async def serving_again(trial: Trial) -> None:
    async def is_ready() -> bool:
        return await trial.proxy.status("/ready") == 200

    await wait_until(is_ready, "the server takes calls again", 30)
    refused = len(trial.record.refused)
    await trial.calls(20)
    assert len(trial.record.refused) == refused


async def filled(trial: Trial, disk: LoopDisk, store: StubStore) -> None:
    """Fill the disk under calls while the store is away; the store is back afterwards."""
    store.answer_always(503, "SlowDown")
    await trial.proxy.start()
    await trial.calls(20)
    async with trial.load(concurrency=8, pace=0.2, delay=1.5) as under_way:
        await trial.seen_more(8)
        under_way.stop()
        disk.fill()
        await loaded_until_refused(trial)
    store.answer_always(200)


@pytest.mark.root
async def test_a_full_disk_refuses_calls_and_lets_the_queue_drain(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store, queue_folder=loop_disk.root / "queue")
        await filled(trial, loop_disk, store)
        assert set(trial.record.refused.values()) == {503}
        assert not trial.record.failed, "a call under way did not end well"
        assert await trial.proxy.status("/ready") == 503
        await trial.flushed()
        assert loop_disk.free_bytes < 20 * MIB, "the disk was not full any more"
        loop_disk.give_back()
        await serving_again(trial)
        await trial.settle()


@pytest.mark.root
async def test_a_server_that_starts_on_a_full_disk_drains_what_fills_it(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store, queue_folder=loop_disk.root / "queue")
        await filled(trial, loop_disk, store)
        await trial.killed()
        loop_disk.fill()  # now the place of the reserve is gone, too
        await trial.proxy.start(until="/health")
        await trial.flushed()
        loop_disk.give_back()
        await serving_again(trial)
        await trial.settle()


@pytest.mark.root
async def test_a_disk_without_room_for_a_queue_is_refused_at_start(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(queue_folder=loop_disk.root / "queue")
    loop_disk.fill()
    await trial.proxy.start(until=None)
    assert await trial.proxy.wait() == ENVIRONMENT_UNUSABLE
    assert "LOG_QUEUE_DIR" in trial.proxy.stderr_text().splitlines()[-1]
    loop_disk.give_back()
    await trial.proxy.start()
    await trial.calls(10)
    await trial.settle()


@pytest.mark.root
async def test_the_same_test_notices_a_full_disk_that_is_ignored(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    async with StubStore() as store:
        trial = new_trial(
            variant="failed_commit_acknowledged",
            store=store,
            queue_folder=loop_disk.root / "queue",
            window_seconds=3600,  # else a seal meets the full disk first, and calls are refused
        )
        await filled(trial, loop_disk, store)
        await trial.killed()
        loop_disk.give_back()
        await trial.finish()
        assert losses(trial.verdict()) > 0


async def test_a_queue_at_its_own_limit_refuses_calls_until_the_store_is_back(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store:
        store.answer_always(503, "SlowDown")
        trial = new_trial(store=store, settings={"LOG_QUEUE_MAX_BYTES": str(12 * MIB)})
        await trial.proxy.start()
        async with trial.load(concurrency=4, pace=0.4, delay=3) as under_way:
            await trial.seen_more(4)
            under_way.stop()
            statuses = await trial.big_calls(20, megabytes=2)
        assert 503 in statuses and statuses[0] == 200
        assert not trial.record.failed, "a call under way did not end well"
        store.answer_always(200)
        await trial.flushed()
        await serving_again(trial)
        await trial.settle()
