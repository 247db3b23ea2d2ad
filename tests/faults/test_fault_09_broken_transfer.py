"""Fault 9: the way to the store breaks a PUT: cut short, changed, or its answer lost.

Against a real RGW, which checks what it gets. No part of an object is ever visible, a changed
body is refused, and a PUT whose answer was lost is repeated with the same bytes.
"""

import hashlib
from collections.abc import Callable

import pytest

from store_faults import Corrupt, Cut, Fault, FaultyProxy, SwallowAnswer
from stores import S3Store
from trial import Trial

pytestmark = [pytest.mark.rgw, pytest.mark.timeout(seconds=120)]

FAULTS: tuple[Fault, ...] = (
    Cut(0), Cut(1), Cut(0.5), Cut(-1), Corrupt(0), Corrupt(0.5), Corrupt(-1), SwallowAnswer(),
)  # fmt: skip


async def through(trial: Trial, wire: FaultyProxy, faults: tuple[Fault, ...]) -> None:
    """Log calls while the next PUTs meet the faults, one each."""
    await trial.proxy.start()
    for fault in faults:
        wire.break_next(fault)
        await trial.calls(4)
        await trial.flushed()
        trial.repetitions += 1
    await wire.hit(len(faults))
    await trial.finish()


@pytest.mark.parametrize("keeps_versions", [False, True], ids=["plain", "versioned"])
async def test_a_broken_put_leaves_nothing_but_whole_objects(
    new_trial: Callable[..., Trial], rgw_store: S3Store, keeps_versions: bool
) -> None:
    if keeps_versions:
        rgw_store.keep_versions()
    async with FaultyProxy(rgw_store.server.address) as wire:
        trial = new_trial(store=rgw_store, settings=rgw_store.env(wire.endpoint))
        await through(trial, wire, FAULTS)
    trial.assert_nothing_lost()
    if keeps_versions:
        assert_versions_are_equal(rgw_store)


def assert_versions_are_equal(store: S3Store) -> None:
    """All versions of a key hold the same bytes; the one whose answer was lost has two."""
    etags: dict[str, set[str]] = {}
    for version in store.client.list_object_versions(Bucket=store.bucket)["Versions"]:
        etags.setdefault(version["Key"], set()).add(version["ETag"].strip('"'))
    for key, body in store.objects():
        assert etags[key] == {hashlib.md5(body).hexdigest()}
    assert max(store.versions().values()) == 2


async def test_the_same_test_notices_bodies_that_nobody_checks(
    new_trial: Callable[..., Trial], rgw_store: S3Store
) -> None:
    async with FaultyProxy(rgw_store.server.address) as wire:
        trial = new_trial(
            variant="bodies_not_checked", store=rgw_store, settings=rgw_store.env(wire.endpoint)
        )
        await through(trial, wire, (Corrupt(0.5),))
    assert trial.verdict().violations
