"""Fault 10: a queue and a copy of it are both uploaded, as after a restored snapshot.

The copy was taken while calls were under way. Its owner lived on and logged how they ended; in
the copy the same calls were interrupted. Both say so under the same numbers, and neither may
overwrite the other. That rows appear twice is the one exception that the promise names.
"""

import shutil
from collections.abc import Callable

import pytest

import log_contract
from stores import S3Store
from trial import Trial

pytestmark = [pytest.mark.rgw, pytest.mark.timeout(seconds=120)]

DAY = 86_400
CALLS = 4

Objects = dict[str, bytes]


async def uploaded_by_the_owner(trial: Trial, copies: list[Trial]) -> Objects:
    """Log calls, copy the queue while they are under way, and upload it in order."""
    await trial.proxy.start()
    async with trial.load(concurrency=CALLS, pace=0.4, delay=3) as load:
        await trial.seen_more(CALLS)
        load.stop()
        for copy in copies:
            shutil.copytree(
                trial.proxy.queue_folder,
                copy.proxy.queue_folder,
                ignore=shutil.ignore_patterns("reserve*"),
            )
    await trial.finish()
    return dict(trial.store.objects())


async def uploaded_from_a_copy(trial: Trial) -> Objects:
    await trial.finish()
    trial.repetitions += 1
    return dict(trial.store.objects())


def outcomes(objects: Objects) -> list[str]:
    rows = [row for body in objects.values() for row in log_contract.read_rows(body.splitlines())]
    return sorted(row["outcome"] for row in rows if row["type"] == "response")


@pytest.mark.parametrize("keeps_versions", [False, True], ids=["plain", "versioned"])
async def test_a_copy_of_a_queue_overwrites_nothing(
    new_trial: Callable[..., Trial], rgw_store: S3Store, keeps_versions: bool
) -> None:
    if keeps_versions:
        rgw_store.keep_versions()
    owner, copy, second_copy = (new_trial(store=rgw_store, window_seconds=DAY) for _ in range(3))
    first = await uploaded_by_the_owner(owner, [copy, second_copy])
    owner.assert_nothing_lost()
    assert outcomes(first) == ["ok"] * CALLS
    both = await uploaded_from_a_copy(copy)
    assert both.items() > first.items()
    assert outcomes(both) == ["interrupted"] * CALLS + ["ok"] * CALLS
    # Two copies of one state hold the same bytes, and say so by the same key.
    assert await uploaded_from_a_copy(second_copy) == both
    if keeps_versions:
        etags: dict[str, set[str]] = {}
        for version in rgw_store.client.list_object_versions(Bucket=rgw_store.bucket)["Versions"]:
            etags.setdefault(version["Key"], set()).add(version["ETag"])
        assert all(len(found) == 1 for found in etags.values())


async def test_the_same_test_notices_keys_without_the_md5(
    new_trial: Callable[..., Trial], rgw_store: S3Store
) -> None:
    owner, copy = (
        new_trial(store=rgw_store, window_seconds=DAY, variant="key_without_md5") for _ in range(2)
    )
    first = await uploaded_by_the_owner(owner, [copy])
    both = await uploaded_from_a_copy(copy)
    assert not both.items() >= first.items()
    assert "ok" not in outcomes(both)
