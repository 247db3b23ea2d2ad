"""Moderate, mixed traffic for as long as a soak lasts, whatever happens to the server.

Several kinds of calls go on side by side: whole and streamed answers, tool calls, reasoning, and
streams so slow that some are under way at every moment. While the server is away or refuses
calls, the traffic waits a little instead of failing as fast as it can.
"""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from trial import Trial

BURST_CALLS = 300
BURST_REFUSALS = 4
PAUSE_SECONDS = 0.25
# Longer than any call of a lane takes on a busy machine, its waits at a full disk included.
CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of calls, `concurrency` at a time; `only_streams` by even numbers."""

    concurrency: int
    behaviour: str = "ok"
    options: dict[str, object] = field(default_factory=dict)
    only_streams: bool = False


LANES = (
    Lane(8, options={"pace": 0.03, "delay": 0.25}),
    Lane(1, "tool_call", {"pace": 0.05}, only_streams=True),
    Lane(1, "reasoning", {"pace": 0.03}, only_streams=True),
    Lane(6, options={"pace": 0.6, "delay": 5}),
)
# How many numbers each lane may use in one trial, after those of the trial itself.
LANE_NUMBERS = 100_000
TRIAL_NUMBERS = LANE_NUMBERS * (1 + len(LANES))


class Traffic:
    """Calls of all lanes for `trial` until `stop`."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._stopped = False
        first = next(trial.numbers) - 1
        self._tasks = [
            asyncio.create_task(self._drive(lane, first + LANE_NUMBERS * index))
            for index, lane in enumerate(LANES, 1)
        ]

    async def stop(self) -> None:
        """Begin no further call and wait for those under way."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        """Give up at once, as a test does that fails."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drive(self, lane: Lane, first_number: int) -> None:
        step = 2 if lane.only_streams else 1
        numbers = itertools.count(first_number, step)
        while not self._stopped:
            if await self._trial.proxy.status("/ready") != 200:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            await self._trial.caller(lane.behaviour, **lane.options).send_all(
                self._burst(numbers),
                self._trial.record,
                concurrency=lane.concurrency,
                timeout_seconds=BURST_CALLS * CALL_SECONDS,
            )

    def _burst(self, numbers: Iterator[int]) -> Iterator[int]:
        """Numbers until the server is away or refuses calls, at most `BURST_CALLS`."""
        record = self._trial.record
        refused = len(record.refused)
        for _ in range(BURST_CALLS):
            if self._stopped or not self._trial.proxy.running:
                return
            if len(record.refused) - refused >= BURST_REFUSALS:
                return
            yield next(numbers)
