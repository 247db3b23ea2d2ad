"""Fault 8: the store is away, hangs, or refuses, for whatever reason and however long.

Calls go on as if nothing were the matter, no answer of the store drops a row, and what has piled
up goes out once the store is back.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from store_faults import StubStore
from stores import Rgw, S3Store
from trial import Trial, losses
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=120)

REFUSALS = (
    (503, "SlowDown"),
    (500, "InternalError"),
    (403, "ExpiredToken"),
    (403, "RequestTimeTooSkewed"),
    (404, "NoSuchBucket"),
    (400, "InvalidRequest"),
    (301, "PermanentRedirect"),
)
MEMORY_MAX_BYTES = 400 * 1024 * 1024


async def called_without_a_store(trial: Trial) -> None:
    """Make calls, which must all be answered, until the store has failed once more."""
    before = (await trial.log())["upload_failures"]
    await trial.calls(10)

    async def has_failed() -> bool:
        trial.proxy.usr1()  # not to wait for the back-off
        return bool((await trial.log())["upload_failures"] > before)

    await wait_until(has_failed, "an upload fails", 30, poll_seconds=0.2)
    assert trial.record.answered.keys() == trial.record.sent
    trial.repetitions += 1


async def through_all_refusals(trial: Trial, store: StubStore) -> None:
    await trial.proxy.start()
    for status, code in REFUSALS:
        store.answer_always(status, code)
        await called_without_a_store(trial)
        assert code in (await trial.log())["last_error"]
    await store.refuse()
    await called_without_a_store(trial)
    await store.accept()
    store.answer_always(200)
    await trial.flushed()


async def test_no_refusal_costs_a_row_or_delays_a_call(new_trial: Callable[..., Trial]) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store)
        await through_all_refusals(trial, store)
        assert (await trial.log())["last_error"] is None
        assert trial.proxy.peak_memory_bytes() < MEMORY_MAX_BYTES
        await trial.settle()


async def test_the_same_test_notices_rows_that_are_dropped_on_a_refusal(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store, variant="dropped_on_refusal")
        await trial.proxy.start()
        store.answer_always(403, "AccessDenied")
        await trial.calls(10)
        await trial.flushed()
        assert losses(trial.verdict()) > 0


async def test_a_store_whose_name_is_unknown_costs_nothing(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store)
        trial.proxy.settings["AWS_ENDPOINT_URL_S3"] = "http://store.invalid:7480"
        await trial.proxy.start()
        await called_without_a_store(trial)
        assert await trial.proxy.stop() == 0
        trial.proxy.settings["AWS_ENDPOINT_URL_S3"] = store.endpoint
        await trial.settle()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process takes connections and does nothing with them."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.rgw
async def test_a_frozen_store_delays_no_call(
    new_trial: Callable[..., Trial], rgw: Rgw, rgw_store: S3Store
) -> None:
    if rgw.process_id is None:
        pytest.skip("the RGW that RGW_ENDPOINT names cannot be frozen from here")
    trial = new_trial(store=rgw_store)
    await trial.proxy.start()
    await trial.calls(10)
    with frozen(rgw.process_id):
        for _ in range(3):
            await trial.calls(10)
            assert trial.record.answered.keys() == trial.record.sent
    await trial.settle()
