"""Fault 13: the server is asked to leave, in a hurry, with streams under way, without a store.

After an exit code of 0 nothing is missing: no other server has to come and close a call. Only
a SIGKILL in the middle, or a store that is away, leaves something for the next start.
"""

import time
from collections.abc import Awaitable, Callable

import pytest

from store_faults import FaultyProxy, StubStore
from trial import Trial, losses
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=120)

STREAMS = 20
# Streams that end by themselves after 1.6 s, and those that do not end in time.
SOON = {"pace": 0.2, "delay": 1.6}
LATE = {"pace": 20, "delay": 160}
UPLOAD_SECONDS = 20  # how long a leaving server waits for the store
GENEROUS_SECONDS = 30


async def left_with_streams(
    trial: Trial, streams: dict[str, float], *signals: Callable[[Trial], Awaitable[None]]
) -> tuple[int, float]:
    """Send the signals while streams are under way; returns exit code and seconds to it."""
    if not trial.proxy.running:
        await trial.proxy.start()
    async with trial.load(concurrency=STREAMS, **streams) as load:  # type: ignore[arg-type]
        await trial.seen_more(STREAMS)
        load.stop()
        begun = time.monotonic()
        for send in signals:
            await send(trial)
        code = await trial.proxy.wait(UPLOAD_SECONDS + GENEROUS_SECONDS)
    trial.repetitions += 1
    return code, time.monotonic() - begun


async def term(trial: Trial) -> None:
    """SIGTERM, and return when it has arrived: of two that wait a process gets one."""
    trial.proxy.terminate()
    await wait_until(lambda: "Shutting down" in trial.proxy.stderr_text(), "the server leaves")


async def term_again(trial: Trial) -> None:
    trial.proxy.terminate()


async def kill(trial: Trial) -> None:
    trial.proxy.kill()


async def test_streams_end_and_everything_is_uploaded(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial(window_seconds=3600)
    code, _ = await left_with_streams(trial, SOON, term)
    assert code == 0
    assert trial.record.answered.keys() == trial.record.sent
    trial.assert_nothing_lost()
    assert not trial.proxy.queues()


async def test_streams_that_outlast_the_grace_are_ended_visibly_and_closed(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(settings={"SHUTDOWN_GRACE_SECONDS": "0.5"})
    code, seconds = await left_with_streams(trial, LATE, term)
    assert code == 0 and seconds < GENEROUS_SECONDS
    assert not trial.record.answered
    assert len(trial.record.failed | trial.record.refused) == STREAMS
    assert trial.assert_nothing_lost().calls == STREAMS
    assert not trial.proxy.queues()


async def test_a_kill_within_the_grace_leaves_the_calls_for_the_next_start(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial()
    code, _ = await left_with_streams(trial, LATE, term, kill)
    assert code < 0
    assert (await trial.settle()).calls == STREAMS


async def test_a_second_sigterm_skips_the_waiting_and_no_entry(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store, FaultyProxy(("127.0.0.1", store.port)) as wire:
        trial = new_trial(store=store)
        trial.proxy.settings["AWS_ENDPOINT_URL_S3"] = wire.endpoint
        wire.freeze()
        code, seconds = await left_with_streams(trial, LATE, term, term_again)
        assert code == 0 and seconds < GENEROUS_SECONDS
        wire.thaw()
        assert (await trial.settle()).calls == STREAMS
        assert "calls to close" not in trial.proxy.stderr_text() or (
            f"{2 * STREAMS} rows to upload, 0 calls to close" in trial.proxy.stderr_text()
        )


async def test_a_store_that_is_away_does_not_keep_the_server(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store:
        trial = new_trial(store=store)
        await trial.proxy.start()
        await store.refuse()
        code, seconds = await left_with_streams(trial, SOON, term)
        assert code == 0 and seconds < UPLOAD_SECONDS + GENEROUS_SECONDS
        await store.accept()
        await trial.settle()


@pytest.mark.long
async def test_a_store_that_hangs_keeps_the_server_for_a_limited_time(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store, FaultyProxy(("127.0.0.1", store.port)) as wire:
        trial = new_trial(store=store)
        trial.proxy.settings["AWS_ENDPOINT_URL_S3"] = wire.endpoint
        wire.freeze()
        code, seconds = await left_with_streams(trial, SOON, term)
        assert code == 0 and seconds < UPLOAD_SECONDS + GENEROUS_SECONDS
        wire.thaw()
        await trial.settle()


async def left_after_clients_left(trial: Trial) -> None:
    """Clients leave in the middle of their streams; then the server ends in order."""
    await trial.proxy.start()
    async with trial.load(concurrency=STREAMS, **LATE) as load:  # type: ignore[arg-type]
        await trial.seen_more(STREAMS)
        await load.ended(timeout_seconds=0.1)
    assert await trial.proxy.stop() == 0


async def test_clients_that_leave_leave_closed_calls(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    await left_after_clients_left(trial)
    assert trial.assert_nothing_lost().calls == STREAMS
    assert not trial.proxy.queues()


async def test_the_same_test_notices_calls_that_are_forgotten_on_cancel(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(variant="forgotten_on_cancel")
    await left_after_clients_left(trial)
    assert losses(trial.verdict()) > 0
