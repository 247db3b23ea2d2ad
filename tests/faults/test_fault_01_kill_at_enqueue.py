"""Fault 1: the process is killed at any system call of its writing, or at any moment at all.

The servers of one test follow each other on the same folder, and each is killed: so every one
of them begins by adopting what the one before has left, and is killed during that, too.
"""

import random
from collections.abc import Callable, Iterable

import pytest

import syscall_faults
from trial import Trial, losses

pytestmark = [pytest.mark.root, pytest.mark.timeout(seconds=120)]

# Everything that a queue does to its files; calls that only one of birth, adoption and end makes
# are counted from the start of the process, the others from the first call on.
WRITING = ("pwrite64", "fdatasync")
NAMING = ("ftruncate", "unlink", "rename", "fsync", "mkdir", "rmdir")
WHILE_SERVING = [("pwrite64", 3), ("pwrite64", 150), ("fdatasync", 1), ("fdatasync", 40)]
FROM_THE_START = [("ftruncate", 2), ("unlink", 3), ("rename", 1), ("fsync", 2)]

Place = tuple[str, int]


async def killed_at(trial: Trial, place: Place, *, attached: bool) -> None:
    """Run the server under calls until it reaches the nth call of a kind, which kills it."""
    syscall, count = place
    injection = f"{syscall}:signal=KILL:when={count}"
    prefix = () if attached else syscall_faults.from_start(injection)
    trial.proxy.command_prefix = prefix
    await trial.proxy.start(until="/health" if attached else None)
    if attached:
        log = trial.proxy.folder / "strace.txt"
        async with syscall_faults.attached(trial.proxy.server_pid(), injection, log=log):
            async with trial.load():
                await trial.proxy.wait()
    else:
        await trial.serving_or_dead()
        async with trial.load():
            await trial.dead_within(seconds=4)
    await trial.killed()


async def settled_after(
    trial: Trial, serving: Iterable[Place], from_the_start: Iterable[Place]
) -> None:
    for place in serving:
        await killed_at(trial, place, attached=True)
    for place in from_the_start:
        await killed_at(trial, place, attached=False)
    trial.proxy.command_prefix = ()
    await trial.finish()


@pytest.mark.usefixtures("strace")
async def test_a_kill_at_any_write_loses_nothing(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    await settled_after(trial, WHILE_SERVING, FROM_THE_START)
    trial.assert_nothing_lost()
    assert trial.record.answered and trial.record.failed


@pytest.mark.usefixtures("strace")
async def test_the_same_test_notices_entries_that_come_after_the_call(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(variant="entry_after_call")
    await settled_after(trial, WHILE_SERVING[1:2], ())
    assert losses(trial.verdict()) > 0


async def killed_at_random(trial: Trial, kills: int, seed: int) -> None:
    """Kill the server `kills` times, each after a random number of answers."""
    chance = random.Random(seed)
    for _ in range(kills):
        await trial.proxy.start()
        async with trial.load(concurrency=chance.choice((1, 4, 16)), pace=0.002) as load:
            await trial.answered_more(chance.randint(1, 60))
            load.stop()
            await trial.killed()


async def test_kills_at_random_moments_lose_nothing(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    await killed_at_random(trial, kills=4, seed=1)
    await trial.settle()


@pytest.mark.long
@pytest.mark.timeout(seconds=3000)
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("syscall", WRITING)
async def test_a_kill_at_each_write_loses_nothing(
    new_trial: Callable[..., Trial], syscall: str
) -> None:
    trial = new_trial()
    await settled_after(
        trial,
        [(syscall, count) for count in range(1, 61)],
        [(syscall, count) for count in range(1, 61)],
    )
    trial.assert_nothing_lost()


@pytest.mark.long
@pytest.mark.timeout(seconds=3000)
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("syscall", NAMING)
async def test_a_kill_at_each_change_of_a_name_or_a_size_loses_nothing(
    new_trial: Callable[..., Trial], syscall: str
) -> None:
    trial = new_trial()
    await settled_after(trial, (), [(syscall, count) for count in range(1, 13)])
    trial.assert_nothing_lost()


@pytest.mark.long
@pytest.mark.timeout(seconds=3000)
@pytest.mark.parametrize("seed", range(4))
async def test_many_kills_at_random_moments_lose_nothing(
    new_trial: Callable[..., Trial], seed: int
) -> None:
    trial = new_trial()
    await killed_at_random(trial, kills=250, seed=seed)
    await trial.settle()
