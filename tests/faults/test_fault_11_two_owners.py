"""Fault 11: several processes work on one folder: a rollout's overlap, adopters that race.

Each serves from a queue of its own, and what dead ones left is taken by exactly one. A living
owner's queue is left alone.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest

import replay_process
from trial import Trial
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=180)

DAY = 86_400


def side_by_side(
    new_trial: Callable[..., Trial], count: int, variant: str = "", window_seconds: int = 1
) -> list[Trial]:
    """Trials whose servers share one LOG_QUEUE_DIR, one store and one record of calls."""
    first = new_trial(variant=variant, window_seconds=window_seconds)
    folder, trials = first.proxy.queue_folder, [first]
    for _ in range(count - 1):
        trials.append(
            new_trial(variant=variant, window_seconds=window_seconds, queue_folder=folder)
        )
        trials[-1].record = first.record
    return trials


async def leave_dead_queues(trials: list[Trial]) -> None:
    """Kill all servers at once with calls under way, each of which leaves a queue."""
    await asyncio.gather(*(trial.proxy.start() for trial in trials))
    async with contextlib.AsyncExitStack() as loads:
        running = [
            await loads.enter_async_context(trial.load(concurrency=4, pace=0.02))
            for trial in trials
        ]
        for trial in trials:
            await trial.answered_more(8)
        for load in running:
            load.stop()
        # Together: one that lives a second longer would take over what the others leave.
        await asyncio.gather(*(trial.killed() for trial in trials))


async def stopped_and_finished(trials: list[Trial]) -> None:
    """End all servers in order, and let one more finish what they did not get to."""
    for trial in trials:
        if trial.proxy.running:
            assert await trial.proxy.stop() == 0
    await trials[0].finish()


async def test_adopters_that_race_take_each_queue_once(new_trial: Callable[..., Trial]) -> None:
    trials = side_by_side(new_trial, 3, window_seconds=DAY)
    await leave_dead_queues(trials)
    await asyncio.gather(*(trial.proxy.start() for trial in trials))

    async def adopted_files() -> int:
        return sum([(await trial.log())["adopted_files"] for trial in trials])

    async def are_finished() -> bool:
        return await adopted_files() == 3 == len(trials[0].proxy.queues())

    await wait_until(are_finished, "all dead queues are finished", 30)
    await stopped_and_finished(trials)
    trials[0].assert_nothing_lost()


async def taken_turns(trials: list[Trial], turns: int, seed: int) -> None:
    """Start and kill servers at random moments while the others serve and adopt."""
    chance = random.Random(seed)
    await trials[0].proxy.start()
    for _ in range(turns):
        trial = chance.choice(trials)
        if trial.proxy.running:
            others = [other for other in trials if other is not trial]
            async with trial.load(concurrency=4) as load:
                await trial.answered_more(chance.randint(1, 20))
                load.stop()
                trial.proxy.kill()
                another = chance.choice(others)
                if not another.proxy.running:
                    await another.proxy.start()
                await trial.killed()
                trials[0].repetitions += 1
        else:
            await trial.proxy.start()
    await stopped_and_finished(trials)


async def test_servers_that_come_and_go_beside_each_other_lose_nothing(
    new_trial: Callable[..., Trial],
) -> None:
    trials = side_by_side(new_trial, 2)
    await taken_turns(trials, turns=4, seed=3)
    trials[0].assert_nothing_lost()


@pytest.mark.long
@pytest.mark.timeout(seconds=1800)
@pytest.mark.parametrize("seed", range(4))
async def test_many_servers_that_come_and_go_lose_nothing(
    new_trial: Callable[..., Trial], seed: int
) -> None:
    trials = side_by_side(new_trial, 3)
    await taken_turns(trials, turns=60, seed=seed)
    trials[0].assert_nothing_lost()


async def second_started_beside(trials: list[Trial]) -> None:
    """Start a second server while calls are under way on the first, end both, and judge."""
    first, second = trials
    await first.proxy.start()
    await first.calls(10)
    async with first.load(concurrency=4, pace=0.2, delay=1.5) as load:
        await first.seen_more(4)
        load.stop()
        await second.proxy.start()
        await second.calls(10)
    assert await first.proxy.stop() == await second.proxy.stop() == 0
    first.assert_nothing_lost()
    assert not first.record.failed | first.record.refused


async def test_a_second_server_leaves_the_first_ones_queue_alone(
    new_trial: Callable[..., Trial],
) -> None:
    trials = side_by_side(new_trial, 2, window_seconds=DAY)
    await second_started_beside(trials)
    assert "Recovered" not in trials[1].proxy.stderr_text()
    assert trials[1].proxy.queues() == set()


async def test_the_same_test_notices_adoption_without_a_lock(
    new_trial: Callable[..., Trial],
) -> None:
    trials = side_by_side(new_trial, 2, "adoption_without_lock", window_seconds=DAY)
    with pytest.raises(AssertionError):
        await second_started_beside(trials)
    assert "Recovered" in trials[1].proxy.stderr_text()


async def test_a_replay_leaves_a_living_owner_alone_and_finishes_a_dead_ones_queue(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(window_seconds=DAY)
    await trial.proxy.start()
    (queue_id,) = trial.proxy.queues()
    replay = ("replay", trial.proxy.queue_folder / queue_id)
    async with trial.load(concurrency=4) as load:
        await trial.answered_more(8)
        refused = await replay_process.run(*replay, env=trial.store.env())
        assert refused.code == 1 and queue_id in refused.stderr + refused.text
        await trial.answered_more(8)
        load.stop()
        await trial.killed()
    finished = await replay_process.run(*replay, env=trial.store.env())
    assert finished.code == 0, finished.stderr
    assert not trial.proxy.queues()
    trial.assert_nothing_lost()
