"""One proxy, one provider and one store, calls under known numbers, and the verdict at the end.

A test of a fault makes a trial, loads it, breaks something, and lets it settle: the server runs
undisturbed until its queue is empty, leaves in order, and the oracle compares what clients and
the provider saw with what is in the store.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

import oracle
from calls import Caller, CallRecord
from fault_record import FaultRecord
from proxy_process import PROXY_KEY, ProxyProcess
from scripted_provider import ProviderProcess
from stores import Store
from waiting import DeadlinePassed, wait_until

LOAD_TIMEOUT_SECONDS = 3600.0


class Load:
    """Calls in the background, one after another on each of some connections."""

    def __init__(self, trial: "Trial", caller: Caller, concurrency: int) -> None:
        self._trial = trial
        self._is_stopped = False
        sending = caller.send_all(
            self._numbers(),
            trial.record,
            concurrency=concurrency,
            timeout_seconds=LOAD_TIMEOUT_SECONDS,
        )
        self._sending = asyncio.ensure_future(sending)

    def stop(self) -> None:
        """Begin no further call; those under way go on."""
        self._is_stopped = True

    async def ended(self, timeout_seconds: float = 30.0) -> None:
        """Stop, and return once the calls under way are over, however they end."""
        self.stop()
        await asyncio.wait([self._sending], timeout=timeout_seconds)
        if not self._sending.done():  # what still waits for an answer counts as failed
            self._sending.cancel()
            await asyncio.wait([self._sending])
        elif not self._sending.cancelled() and (error := self._sending.exception()):
            raise error

    def _numbers(self) -> Iterator[int]:
        # Without the server every call would fail at once, and be followed by the next.
        while not self._is_stopped and self._trial.proxy.running:
            yield next(self._trial.numbers)


class Trial:
    """What a test of a fault works with; `proxy` is not started yet.

    `repetitions` is how often the fault was made, for the table in docs/durability.md;
    `variant` names what is broken on purpose in this server, empty for the real one.
    """

    def __init__(
        self,
        proxy: ProxyProcess,
        provider: ProviderProcess,
        store: Store,
        *,
        window_seconds: int = 1,
        first_number: int = 1,
        variant: str = "",
        records: FaultRecord | None = None,
    ) -> None:
        self.proxy = proxy
        self.provider = provider
        self.store = store
        self.window_seconds = window_seconds
        self.record = CallRecord()
        self.numbers = itertools.count(first_number)
        self.repetitions = 0
        self.variant = variant
        self._unseen: set[int] = set()
        self._records = records or FaultRecord(None)

    def following(self, first_number: int) -> "Trial":
        """A trial of its own with the same server; what was seen so far does not count in it."""
        trial = Trial(
            self.proxy,
            self.provider,
            self.store,
            window_seconds=self.window_seconds,
            first_number=first_number,
            variant=self.variant,
            records=self._records,
        )
        trial._unseen = self.provider.seen()
        return trial

    def caller(self, behaviour: str = "ok", **options: object) -> Caller:
        return Caller(self.proxy.url, PROXY_KEY, behaviour=behaviour, options=options)

    async def calls(self, count: int, *, concurrency: int = 16, **options: object) -> None:
        """Send `count` more calls and return when they are over."""
        numbers = itertools.islice(self.numbers, count)
        await self.caller(**options).send_all(numbers, self.record, concurrency=concurrency)  # type: ignore[arg-type]

    async def big_calls(self, count: int, megabytes: int = 1) -> list[int]:
        """Make rows of `megabytes` each, one call after another; returns the statuses."""
        caller = self.caller("big", megabytes=megabytes)
        numbers = itertools.islice(self.numbers, count)
        return [await self._posted(n, caller.body(n, stream=True)) for n in numbers]

    async def big_question(self, megabytes: int) -> int:
        """Make a call with so long a tool result; returns the status."""
        number = next(self.numbers)
        body = self.caller().body(number, stream=False)
        result = {"role": "tool", "tool_call_id": "call_1", "content": "x" * megabytes * 1_000_000}
        return await self._posted(number, {**body, "messages": [*body["messages"], result]})

    async def _posted(self, number: int, body: dict[str, Any]) -> int:
        self.record.sent.add(number)
        # Plain http: verify=False only saves loading the authorities.
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60.0) as http:
            answer = await http.post(
                f"{self.proxy.url}/v1/chat/completions",
                headers={"Authorization": f"Bearer {PROXY_KEY}"},
                json=body,
            )
        return answer.status_code

    @asynccontextmanager
    async def load(
        self, *, concurrency: int = 16, behaviour: str = "ok", **options: object
    ) -> AsyncIterator[Load]:
        """Calls in the background until the block ends, or the server does."""
        load = Load(self, self.caller(behaviour, **options), concurrency)
        try:
            yield load
        finally:
            await load.ended()

    async def answered_more(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Return once `count` more calls than now are fully answered."""
        target = len(self.record.answered) + count
        await self.record.answered_at_least(target, timeout_seconds)

    async def seen_more(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Return once the provider has got `count` more calls than now."""
        target = len(self.provider.seen()) + count
        await wait_until(
            lambda: len(self.provider.seen()) >= target,
            f"{count} more calls reach the provider",
            timeout_seconds,
        )

    async def uploaded_more(self, rows: int, timeout_seconds: float = 30.0) -> None:
        """Return once this server has uploaded `rows` more rows than now."""
        target = (await self.log())["uploaded_rows"] + rows

        async def uploaded() -> bool:
            return bool((await self.log())["uploaded_rows"] >= target)

        await wait_until(uploaded, f"{rows} more rows are uploaded", timeout_seconds)

    async def log(self) -> dict[str, Any]:
        """The log's part of /health."""
        state: dict[str, Any] = (await self.proxy.health())["log"]
        return state

    def outside(self) -> tuple[set[int], set[int]]:
        """What the world outside the server knows now: the calls answered and those seen."""
        return set(self.record.answered), self.provider.seen() - self._unseen

    def forget_since(self, before: tuple[set[int], set[int]]) -> None:
        """What came out of the server after `before` was taken does not count."""
        answered, seen = before
        for number in self.record.answered.keys() - answered:
            del self.record.answered[number]
            self.record.failed[number] = "answered after the power was gone"
        self._unseen |= self.provider.seen() - seen

    async def serving_or_dead(self, timeout_seconds: float = 20.0) -> None:
        """Return once the server takes calls or has ended."""

        async def is_decided() -> bool:
            return not self.proxy.running or await self.proxy.status("/ready") == 200

        await wait_until(is_decided, "the server serves or ends", timeout_seconds)

    async def dead_within(self, seconds: float) -> bool:
        """Wait for the server's end, but no longer than `seconds`; returns whether it came."""
        try:
            await self.proxy.wait(seconds)
        except DeadlinePassed:
            return False
        return True

    async def killed(self) -> None:
        """SIGKILL, and the server's end."""
        self.proxy.kill()
        await self.proxy.wait()
        self.repetitions += 1

    async def finish(self, timeout_seconds: float = 60.0) -> None:
        """Let the queue run empty, with a new server if none runs, and end in order."""
        if not self.proxy.running:
            await self.proxy.start()
        if self.window_seconds > 1:
            await self.flushed(timeout_seconds)
        await self.proxy.drained(timeout_seconds)
        code = await self.proxy.stop()
        assert code == 0, f"exit code {code}; stderr: {self.proxy.stderr_text()[-2000:]}"

    async def flushed(self, timeout_seconds: float = 30.0) -> None:
        """Have the server seal and upload at once, until it says that nothing is left."""

        async def is_empty() -> bool:
            self.proxy.usr1()
            log = await self.log()
            return bool(log["queued_rows"] == 0 and log["open_calls"] == 0)

        await wait_until(is_empty, "the queue is empty", timeout_seconds, poll_seconds=0.3)

    def verdict(self, *, damaged_allowed: bool = False, is_counted: bool = True) -> oracle.Verdict:
        """What the oracle says of the store as it is; counted for the table or not."""
        verdict = oracle.judge(
            self.store.objects(),
            answered=self.record.answered,
            seen=self.provider.seen() - self._unseen,
            sent=self.record.sent,
            window_seconds=self.window_seconds,
            damaged_allowed=damaged_allowed,
        )
        if is_counted:
            self._records.add(verdict, max(1, self.repetitions), self.variant)
        return verdict

    async def settle(self, timeout_seconds: float = 60.0) -> oracle.Verdict:
        """`finish`, and fail with everything that the oracle finds."""
        await self.finish(timeout_seconds)
        return self.assert_nothing_lost()

    def assert_nothing_lost(self, *, damaged_allowed: bool = False) -> oracle.Verdict:
        verdict = self.verdict(damaged_allowed=damaged_allowed)
        assert not self.record.wrong, f"wrong answers: {list(self.record.wrong.values())[:5]}"
        assert not verdict.violations, str(verdict)
        return verdict


def losses(verdict: oracle.Verdict) -> int:
    """How many rows the oracle misses: lost ones, gaps and calls without an end."""
    return sum(verdict.count(kind) for kind in ("lost", "gap", "unpaired"))
