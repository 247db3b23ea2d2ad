"""Faults at random, one after another and several at once, as long as a soak goes on.

Some happen in a moment: a kill, a power cut, a jump of the clock. Others last for some steps, so
that kills fall into outages of the store and onto full disks. Every end of the server that was
not asked for here is a finding, and so is every exit code that the fault does not explain.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import open_llm_proxy.queue.fault_points as fault_points
from false_clock import FalseClock
from loop_disk import LoopDisk
from proxy_process import ProxyProcess, ServerEnded
from store_faults import Corrupt, Cut, FaultyProxy, StubStore, SwallowAnswer
from trial import Trial

MINUTE, DAY = 60, 86_400
JUMPS = (0, 1, -1, 20 * MINUTE, -20 * MINUTE, 2 * DAY, -2 * DAY, 400 * DAY)
REFUSALS = (
    (503, "SlowDown"), (500, "InternalError"), (403, "ExpiredToken"), (404, "NoSuchBucket"),
    (400, "InvalidRequest"), (301, "PermanentRedirect"),
)  # fmt: skip
BROKEN_PUTS = (
    Cut(0), Cut(0.5), Cut(-1), Corrupt(0), Corrupt(0.5), Corrupt(-1), SwallowAnswer(),
)  # fmt: skip
# Reached again and again while a server serves, leaves, or adopts what others left.
STEPS = (
    "commit-written", "committed", "seal-written", "sealed", "before-put", "put",
    "ack-rows-deleted", "ack-written", "acked", "adopted", "open-calls-written",
    "open-calls-closed", "renamed-done", "removed", "closed-cleanly",
)  # fmt: skip
KILLED = -9
QUEUE_BROKEN = 70
ENVIRONMENT_UNUSABLE = 3
LEAVING_SECONDS = 60.0

Heal = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Condition:
    """A fault that lasts: for how many more steps, and what ends it."""

    steps_left: int
    heal: Heal


class FaultMix:
    """Breaks one server and all that it stands on; without `disk` or `clock` it leaves them out.

    `only` names the faults to choose from, all by default.
    `made` counts the faults by name, `starts` the servers, `peak_memory_bytes` is the largest
    size that any of them was seen with.
    """

    def __init__(
        self,
        seed: int,
        store: StubStore,
        wire: FaultyProxy,
        disk: LoopDisk | None,
        clock: FalseClock | None,
        only: Collection[str] = (),
    ) -> None:
        self.made: Counter[str] = Counter()
        self.starts = 0
        self.peak_memory_bytes = 0
        self._chance = random.Random(seed)
        self._store = store
        self._wire = wire
        self._disk = disk
        self._clock = clock
        self._conditions: dict[str, Condition] = {}
        self._is_armed = False
        self._faults: dict[str, Callable[[Trial], Awaitable[None]]] = {
            "SIGKILL": self._kill,
            "SIGKILL during a start": self._kill_at_start,
            "SIGKILL at a named step": self._kill_at_step,
            "SIGTERM": self._terminate,
            "SIGTERM twice": self._terminate_twice,
            "store refuses connections": self._refuse_connections,
            "store answers errors": self._answer_errors,
            "store frozen": self._freeze,
            "PUTs cut, changed, unanswered": self._break_puts,
            "clients leave": self._clients_leave,
        }
        if disk is not None:
            self._faults |= {"disk full": self._fill_disk, "power cut": self._cut_power}
        if clock is not None:
            self._faults["clock jump"] = self._jump
        if only:
            self._faults = {name: self._faults[name] for name in only}

    async def start(self, trial: Trial) -> None:
        """A server that runs, although the first one may end at a step that was named for it."""
        while not trial.proxy.running:
            if self._clock is not None:
                self._clock.clear()
            self.starts += 1
            try:
                await trial.proxy.start(until="/health", timeout_seconds=60)
            except ServerEnded:
                self._explain_end(trial.proxy)
                self._disarm(trial.proxy)

    async def step(self, trial: Trial) -> None:
        """Let some seconds of traffic pass, and make the next fault."""
        await asyncio.sleep(self._chance.uniform(0.5, 5.0))
        await self._pass_time()
        try:
            size = trial.proxy.peak_memory_bytes()
            self.peak_memory_bytes = max(self.peak_memory_bytes, size)
            name = self._chance.choice(
                [name for name in self._faults if name not in self._conditions]
            )
            await self._faults[name](trial)
            self.made[name] += 1
        except (ServerEnded, ProcessLookupError):
            await trial.proxy.wait()
            self._explain_end(trial.proxy)
            self._disarm(trial.proxy)
        await self.start(trial)

    async def heal(self, trial: Trial) -> None:
        """End what lasts, but not the clock; a server that is to die at a step is replaced."""
        for condition in self._conditions.values():
            await condition.heal()
        self._conditions.clear()
        self._wire.faults.clear()
        if self._is_armed:
            await self._kill(trial)
            self._disarm(trial.proxy)
        await self.start(trial)

    async def _pass_time(self) -> None:
        for name, condition in list(self._conditions.items()):
            condition.steps_left -= 1
            if condition.steps_left <= 0:
                del self._conditions[name]
                await condition.heal()

    def _last(self, name: str, heal: Heal) -> None:
        self._conditions[name] = Condition(self._chance.randint(1, 5), heal)

    def _explain_end(self, proxy: ProxyProcess) -> None:
        """Raise for an end that nothing here explains."""
        code = proxy.process.returncode
        if code == KILLED and self._is_armed:
            return
        if code == ENVIRONMENT_UNUSABLE and "disk full" in self._conditions:
            # A disk that is full to the last byte has no room for another queue.
            assert self._disk is not None
            self._disk.give_back()
            del self._conditions["disk full"]
            return
        raise AssertionError(f"exit code {code}: {proxy.stderr_text()[-3000:]}")

    def _disarm(self, proxy: ProxyProcess) -> None:
        self._is_armed = False
        proxy.settings.pop(fault_points.VARIABLE, None)

    # The process.

    async def _kill(self, trial: Trial) -> None:
        await trial.killed()

    async def _kill_at_start(self, trial: Trial) -> None:
        await trial.killed()
        self.starts += 1
        await trial.proxy.start(until=None)
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        await trial.killed()

    async def _kill_at_step(self, trial: Trial) -> None:
        await trial.killed()
        step = f"{self._chance.choice(STEPS)}:{self._chance.randint(1, 20)}"
        trial.proxy.settings[fault_points.VARIABLE] = step
        self._is_armed = True

    async def _terminate(self, trial: Trial) -> None:
        trial.proxy.terminate()
        await self._left(trial)

    async def _terminate_twice(self, trial: Trial) -> None:
        trial.proxy.terminate()
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        with contextlib.suppress(ServerEnded, ProcessLookupError):
            trial.proxy.terminate()
        await self._left(trial)

    async def _left(self, trial: Trial) -> None:
        code = await trial.proxy.wait(LEAVING_SECONDS)
        if code != 0:
            self._explain_end(trial.proxy)
        self._disarm(trial.proxy)

    async def _clients_leave(self, trial: Trial) -> None:
        async with trial.load(concurrency=8, pace=20, delay=160) as load:
            await asyncio.sleep(0.5)
            await load.ended(timeout_seconds=0.1)

    # The store.

    async def _refuse_connections(self, trial: Trial) -> None:
        await self._wire.refuse()
        self._last("store refuses connections", self._wire.accept)

    async def _answer_errors(self, trial: Trial) -> None:
        self._store.answer_always(*self._chance.choice(REFUSALS))

        async def heal() -> None:
            self._store.answer_always(200)

        self._last("store answers errors", heal)

    async def _freeze(self, trial: Trial) -> None:
        self._wire.freeze()

        async def heal() -> None:
            self._wire.thaw()

        self._last("store frozen", heal)

    async def _break_puts(self, trial: Trial) -> None:
        for _ in range(self._chance.randint(1, 4)):
            self._wire.break_next(self._chance.choice(BROKEN_PUTS))

    # The machine.

    async def _jump(self, trial: Trial) -> None:
        assert self._clock is not None
        self._clock.jump(self._chance.choice(JUMPS))

    async def _fill_disk(self, trial: Trial) -> None:
        assert self._disk is not None
        disk = self._disk
        await asyncio.to_thread(disk.fill)

        async def heal() -> None:
            disk.give_back()

        self._last("disk full", heal)

    async def _cut_power(self, trial: Trial) -> None:
        """Take the power from server and disk; the store is elsewhere and has power."""
        assert self._disk is not None
        if "disk full" in self._conditions:
            await self._conditions.pop("disk full").heal()
        # Nothing may leave the machine after the cut, which the server outlives for a moment.
        await self._wire.refuse()
        before = trial.outside()
        self._disk.power_cut()
        await trial.killed()
        trial.forget_since(before)
        self._disk.remount()
        if "store refuses connections" not in self._conditions:
            await self._wire.accept()
