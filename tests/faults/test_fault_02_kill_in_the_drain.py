"""Fault 2: the process is killed at every step of a queue's life, and again while that is repaired.

The steps are the named fault points of `queue/fault_points.py`. At each, a server is killed under
calls; and so on through all of them on the same folder, so that each server begins by adopting
what those before it have left, and is killed in the middle of that. The store speaks S3.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import open_llm_proxy.queue.fault_points as fault_points
from stores import S3Store
from trial import Trial, losses

pytestmark = pytest.mark.timeout(seconds=600)

# Reached in every life of a queue, the order of its steps. A queue is born at every start.
BIRTH = ("folder-made", "schema-created", "renamed-born", "born")
SERVING = ("commit-written", "committed", "seal-written", "sealed", "before-put", "put",
           "ack-rows-deleted", "ack-written", "acked")  # fmt: skip
ADOPTION = ("adopted", "open-calls-written", "open-calls-closed", "renamed-done", "removed")
LEAVING = ("closed-cleanly",)
# Reached only with a full backlog behind, in damaged files, or by the other sink.
ELSEWHERE = {
    "vacuumed", "shrunk",
    "repair-written", "repaired", "resealed", "quarantined", "copied",
    "wal-written", "wal-repaired",
    "object-written", "object-renamed",
}  # fmt: skip


# Adoption happens once only, and what is reached on leaving needs no waiting.
SECONDS_TO_REACH = dict.fromkeys(ADOPTION, 5) | dict.fromkeys(LEAVING, 1)


def test_every_fault_point_is_known_here() -> None:
    folder = Path(fault_points.__file__).parent
    found = {
        name
        for path in folder.rglob("*.py")
        if path.name != "fault_points.py"
        for name in re.findall(r'\breach\("([^"]+)"\)', path.read_text())
    }
    assert found == {*BIRTH, *SERVING, *ADOPTION, *LEAVING, *ELSEWHERE}


async def killed_at(trial: Trial, point: str) -> bool:
    """Run a server under calls until it dies at the point; returns whether it did."""
    trial.proxy.settings[fault_points.VARIABLE] = point
    await trial.proxy.start(until=None)
    await trial.serving_or_dead()
    async with trial.load(concurrency=4, pace=0.002):
        died = await trial.dead_within(SECONDS_TO_REACH.get(point, 10))
    if not died:
        trial.proxy.terminate()
        died = await trial.proxy.wait() < 0
    await trial.killed()
    return died


async def left_behind(trial: Trial) -> None:
    """Leave a queue whose owner was killed with calls under way."""
    trial.proxy.settings.pop(fault_points.VARIABLE, None)
    await trial.proxy.start()
    async with trial.load(concurrency=4, delay=30, pace=5) as load:
        await trial.seen_more(4)
        load.stop()
        await trial.killed()


async def settled_after_kills(trial: Trial, points: Iterable[str], times: int) -> None:
    """Kill `times` servers in a row at each point, and let one more settle."""
    for point in points:
        if point in ADOPTION:
            await left_behind(trial)
        for repetition in range(times):
            # What is adopted can be removed once only.
            died = await killed_at(trial, point)
            assert died or repetition, f"{point} was not reached"
    trial.proxy.settings.pop(fault_points.VARIABLE, None)
    await trial.finish()


STAGES = [
    pytest.param(BIRTH, 1, id="birth"),
    pytest.param(SERVING, 1, id="serving"),
    pytest.param(ADOPTION + LEAVING, 1, id="adoption"),
    *(
        pytest.param(stage, 5, id=f"{name}-again-and-again", marks=pytest.mark.long)
        for name, stage in (("birth", BIRTH), ("serving", SERVING), ("adoption", ADOPTION))
    ),
]


@pytest.mark.parametrize("points, times", STAGES)
async def test_a_kill_at_every_step_loses_and_doubles_nothing(
    new_trial: Callable[..., Trial], moto_store: S3Store, points: tuple[str, ...], times: int
) -> None:
    moto_store.keep_versions()
    trial = new_trial(store=moto_store)
    await settled_after_kills(trial, points, times)
    trial.assert_nothing_lost()


async def killed_after_an_upload(trial: Trial) -> None:
    """Kill the server as soon as it says that a row was uploaded."""
    await trial.proxy.start()
    async with trial.load(concurrency=4) as load:
        await trial.uploaded_more(1)
        load.stop()
        await trial.killed()
    await trial.finish()


async def test_what_counts_as_uploaded_is_in_the_store(
    new_trial: Callable[..., Trial], moto_store: S3Store
) -> None:
    trial = new_trial(store=moto_store)
    await killed_after_an_upload(trial)
    trial.assert_nothing_lost()


async def test_the_same_test_notices_rows_deleted_before_the_put(
    new_trial: Callable[..., Trial], moto_store: S3Store
) -> None:
    trial = new_trial(store=moto_store, variant="delete_before_put")
    await killed_after_an_upload(trial)
    assert losses(trial.verdict()) > 0
