"""The soak: faults of all kinds at random moments, under mixed traffic, for an hour or a day.

    make soak SOAK_SECONDS=86400 SOAK_SEED=2

Every few minutes everything is healed, the queue runs empty, and the oracle judges all that was
logged since the last time; the figures are added to the record. The first finding ends the soak,
and the objects and the server's folder are left as they are for a look.
"""

import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import oracle
from false_clock import ClockUnavailable, FalseClock
from fault_mix import FaultMix
from loop_disk import DiskUnavailable, LoopDisk
from soak_record import SoakRecord
from store_faults import FaultyProxy, StubStore
from traffic import TRIAL_NUMBERS, Traffic
from trial import Trial, losses

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
RECORD = os.environ.get("SOAK_RECORD")
ROUND_SECONDS = 240.0
SETTLE_SECONDS = 240.0
CONTROL_SECONDS = 40.0
DISK_MEGABYTES = 768
MIB = 1024 * 1024

pytestmark = [pytest.mark.long, pytest.mark.root]


class Soak:
    """One server, its store and all that breaks them, and the record of what came of it."""

    def __init__(self, trial: Trial, store: StubStore, mix: FaultMix, record: SoakRecord) -> None:
        self._trial = trial
        self._store = store
        self._mix = mix
        self._record = record

    async def run(self, seconds: float) -> oracle.Verdict:
        """Rounds until `seconds` have passed or one of them finds something; the last verdict."""
        end = time.monotonic() + seconds
        number = 0
        while True:
            number += 1
            begun = time.monotonic()
            verdict = await self._round(min(end, begun + ROUND_SECONDS))
            self._record.add(self._trial, verdict, self._mix, time.monotonic() - begun)
            done = time.monotonic() >= end
            if done or verdict.violations or self._trial.record.wrong or self._store.overwritten:
                return verdict
            self._store.forget()
            self._trial = self._trial.following(1 + number * TRIAL_NUMBERS)

    @property
    def trial(self) -> Trial:
        return self._trial

    async def _round(self, until: float) -> oracle.Verdict:
        await self._mix.start(self._trial)
        traffic = Traffic(self._trial)
        try:
            while time.monotonic() < until:
                await self._mix.step(self._trial)
            await self._mix.heal(self._trial)
            await traffic.stop()
        except BaseException:
            await traffic.cancel()
            raise
        # By itself, without a SIGUSR1 that hurries it.
        await self._trial.proxy.drained(SETTLE_SECONDS)
        await self._trial.finish(SETTLE_SECONDS)
        return self._trial.verdict(is_counted=False)


async def soaked(
    new_trial: Callable[..., Trial],
    disks: list[LoopDisk],
    folder: Path,
    record: SoakRecord,
    *,
    seconds: float,
    variant: str = "",
    only: Collection[str] = (),
) -> tuple[oracle.Verdict, Trial]:
    """Soak the server, or a broken `variant`; whatever this machine cannot break is left out."""
    disk, clock = _disk(disks, folder), _clock(folder)
    if disk is None and "power cut" in only:
        raise DiskUnavailable("a power cut takes a loop disk")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(StubStore())
        wire = await stack.enter_async_context(FaultyProxy(("127.0.0.1", store.port)))
        trial = new_trial(
            variant=variant,
            store=store,
            settings={
                "AWS_ENDPOINT_URL_S3": wire.endpoint,
                "LOG_QUEUE_MAX_BYTES": str(12 * MIB),
                "SHUTDOWN_GRACE_SECONDS": "3",
                **(clock.settings if clock is not None else {}),
            },
            queue_folder=disk.root / "queue" if disk is not None else None,
            window_seconds=2,
        )
        soak = Soak(trial, store, FaultMix(SEED, store, wire, disk, clock, only), record)
        try:
            verdict = await soak.run(seconds)
        finally:
            _keep_evidence(folder, store)
        assert variant or not store.overwritten, f"overwritten: {sorted(store.overwritten)[:5]}"
        return verdict, soak.trial


@pytest.mark.timeout(seconds=2 * SECONDS + 900)
async def test_faults_at_random_lose_and_double_nothing(
    new_trial: Callable[..., Trial], disks: list[LoopDisk], tmp_path: Path
) -> None:
    record = SoakRecord(Path(RECORD) if RECORD else None, SEED)
    verdict, trial = await soaked(new_trial, disks, tmp_path, record, seconds=SECONDS)
    assert not verdict.violations, str(verdict)
    assert not trial.record.wrong, f"wrong answers: {list(trial.record.wrong.values())[:5]}"


@pytest.mark.timeout(seconds=600)
@pytest.mark.parametrize(
    "variant, fault", [("delete_before_put", "SIGKILL"), ("synchronous_normal", "power cut")]
)
async def test_the_same_test_notices_a_broken_promise(
    new_trial: Callable[..., Trial],
    disks: list[LoopDisk],
    tmp_path: Path,
    variant: str,
    fault: str,
) -> None:
    verdict, _ = await soaked(
        new_trial,
        disks,
        tmp_path,
        SoakRecord(None, SEED),
        seconds=CONTROL_SECONDS,
        variant=variant,
        only=[fault],
    )
    assert losses(verdict) > 0


def _disk(disks: list[LoopDisk], folder: Path) -> LoopDisk | None:
    try:
        disks.append(LoopDisk(folder, DISK_MEGABYTES))
    except DiskUnavailable:
        return None
    return disks[-1]


def _clock(folder: Path) -> FalseClock | None:
    try:
        return FalseClock(folder)
    except ClockUnavailable:
        return None


def _keep_evidence(folder: Path, store: StubStore) -> None:
    """Write what the store holds beside the server's folder, in place of an earlier round's."""
    evidence = folder / "objects"
    shutil.rmtree(evidence, ignore_errors=True)
    for key, body in store.objects():
        (evidence / key).parent.mkdir(parents=True, exist_ok=True)
        (evidence / key).write_bytes(body)
