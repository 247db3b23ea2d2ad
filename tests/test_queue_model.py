"""A queue, its stores and its deaths in every order that Hypothesis can think of.

The machine below drives real queues on real SQLite files and keeps a model beside them: what was
promised of each call, and what a store was told. A crash is a copy of the files as they are at
that moment, which is what SIGKILL leaves; the process of the original is then forgotten. At the
end everything that was left is adopted, and the objects must hold exactly what was promised.
"""

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from open_llm_proxy.queue import disk_space, folder
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.entry import CallMark
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.queue.orphans.orphan import End, Orphan
from open_llm_proxy.queue.sinks import SinkFailure, SinkRefused
from queue_fixtures import (
    NOON_MS,
    WINDOW_SECONDS,
    MemorySink,
    OpenQueue,
    as_killed,
    birth,
    closing,
    lost,
    opening,
    plain,
    row_lines,
)

T = TypeVar("T")

ANSWERS = st.lists(st.sampled_from(["ok", "lost", "refused", "failed"]), max_size=4)
SIZES = st.sampled_from([0, 100, 900])
JUMPS_MS = st.sampled_from([1, 1000, 150_000, 300_000, -1, -300_000, -86_400_000, 31_536_000_000])
CAP_BYTES = 60_000


class QueueMachine(RuleBasedStateMachine):
    """One process at a time, on the files that its predecessors left."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        memory = Path("/dev/shm")
        place = memory if memory.is_dir() else None
        self.home = Path(tempfile.mkdtemp(dir=place, prefix="queue-model-"))
        self.small_reserves = mock.patch.multiple(disk_space, RESERVE_BYTES=1, LAST_RESERVE_BYTES=1)
        self.small_reserves.start()
        self.sink = MemorySink()
        self.root = self.home / "0"
        self.root.mkdir()
        self.life = 0
        self.now_ms = NOON_MS
        self.number = 0
        self.promised: Counter[tuple[int, str]] = Counter()  # (number, type): how many rows
        self.refused: set[int] = set()
        self.crashed_root: Path | None = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize()
    def begin(self) -> None:
        self.queue = self.wait(self.new_queue())

    async def new_queue(self) -> OpenQueue:
        owned = folder.give_birth(self.root, birth(object_max_bytes=3000))
        return OpenQueue(owned, self.sink, everything=False, slots=1)

    def next_number(self) -> int:
        self.number += 1
        return self.number

    # Calls.

    @rule(target=calls, sizes=st.lists(SIZES, min_size=1, max_size=4))
    def open_calls(self, sizes: list[int]) -> Any:
        """Open calls that share a commit, or come so close that they may."""
        opened = [(self.next_number(), size) for size in sizes]
        return multiple(*self.wait(self.open_all(opened)))

    async def open_all(self, opened: list[tuple[int, int]]) -> list[tuple[int, CallMark, int]]:
        stored = []
        for number, size in opened:
            append, record = opening(number, self.now_ms, size)
            stored.append((number, record, self.queue.writer.append(append)))
        calls = []
        for number, record, future in stored:
            try:
                await future
            except QueueFull:
                self.refused.add(number)
                continue
            self.promised[number, "request"] += 1
            calls.append((number, record, self.life))
        return calls

    @rule(target=calls)
    def open_and_cancel(self) -> tuple[int, CallMark, int]:
        """The handler goes away while its opening is on the way; nothing was promised to it."""
        number = self.next_number()
        append, record = opening(number, self.now_ms)

        async def cancelled() -> None:
            self.queue.writer.append(append).cancel()

        self.wait(cancelled())
        return number, record, self.life

    @rule(call=consumes(calls), size=SIZES, times=st.integers(1, 2))
    def close_call(self, call: tuple[int, CallMark, int], size: int, times: int) -> None:
        """Close a call; one of an earlier life is gone with its process."""
        number, record, life = call
        if life != self.life:
            return

        async def close() -> int:
            append = closing(number, record, self.now_ms, size)
            return sum([len(await self.queue.writer.append(append)) for _ in range(times)])

        lines = self.wait(close())
        assert lines == (1 if self.promised[number, "request"] else lines), "not closed once"
        self.promised[number, "response"] += lines

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=3))
    def store_rows(self, sizes: list[int]) -> None:
        for size in sizes:
            number = self.next_number()
            append = plain(number, at_ms=self.now_ms, size_bytes=size)
            try:
                self.wait(self.stored(append))
            except QueueFull:
                self.refused.add(number)
            else:
                self.promised[number, "plain"] += 1

    async def stored(self, append: Any) -> None:
        await self.queue.writer.append(append)

    # The world.

    @rule(jump_ms=JUMPS_MS)
    def move_clock(self, jump_ms: int) -> None:
        self.now_ms += jump_ms

    @rule()
    def fill_disk(self) -> None:
        self.wait(self.limit(CAP_BYTES))

    @rule()
    def make_room(self) -> None:
        self.wait(self.limit(1 << 40))

    async def limit(self, max_bytes: int) -> None:
        await self.queue.writer.run(lambda store: store.limit_pages(max_bytes))
        if max_bytes > CAP_BYTES:
            await self.queue.writer.run(lambda store: self.queue.space.measure(store.free_bytes))

    # The drain.

    def answer_with(self, answers: list[str]) -> None:
        """The next answers of the store; all later ones are `ok`.

        At a `crash` the process dies, and whatever it does afterwards has no effect.
        """
        left = list(answers)

        def answer(batch: Batch) -> SinkFailure | None:
            if self.crashed_root is not None:
                return SinkFailure("dead")
            kind = left.pop(0) if left else "ok"
            if kind.startswith("crash"):
                self.crash_files()
            if kind.endswith("lost"):
                return lost()
            return {"refused": SinkRefused("403"), "ok": None}.get(kind, SinkFailure("500"))

        self.sink.answers = answer

    @rule(answers=ANSWERS, everything=st.booleans())
    def drain(self, answers: list[str], everything: bool) -> None:
        """One pass over the own file."""
        self.answer_with(answers)
        self.queue.drain.everything = everything
        self.wait(self.queue.advance())

    @rule(answers=ANSWERS)
    def adopt(self, answers: list[str]) -> None:
        """One pass over each dead queue; finished ones are removed."""
        self.answer_with(answers)
        self.wait(self.adopt_all())

    async def adopt_all(self) -> int:
        left = 0
        for path in folder.queue_folders(self.root):
            if path == self.queue.owned.path:
                continue
            orphan = Orphan(folder.adopt(path))
            ending = await orphan.finish(self.one_pass)
            state = orphan.state
            assert state.accepted_rows == state.uploaded_rows + state.queued_rows
            left += ending.end is not End.FINISHED
        return left

    async def one_pass(self, orphan: Orphan) -> str | None:
        drain = orphan.drain_to(self.sink, self.queue.uploads)
        finished = await orphan.advance(drain, lambda lines: None)
        return None if finished else "the store did not take all of it"

    # Ends.

    @rule()
    def crash(self) -> None:
        self.crash_files()
        self.wait(self.go_on_after_crash())

    @rule(
        answers=st.lists(st.sampled_from(["ok", "lost", "failed"]), max_size=2),
        end=st.sampled_from(["crash, lost", "crash, failed"]),
    )
    def crash_during_a_put(self, answers: list[str], end: str) -> None:
        """The process dies when an object was stored, or just before."""
        self.answer_with([*answers, end])
        self.queue.drain.everything = True
        self.wait(self.queue.advance())
        if self.crashed_root is not None:
            self.wait(self.go_on_after_crash())

    def crash_files(self) -> None:
        """Copy the files as they are now: the rest of this life will be forgotten."""
        self.crashed_root = as_killed(self.root, self.home / str(self.life + 1))

    async def go_on_after_crash(self) -> None:
        assert self.crashed_root is not None
        await self.queue.close()
        shutil.rmtree(self.root)
        self.root, self.crashed_root = self.crashed_root, None
        self.life += 1
        self.queue = await self.new_queue()

    @rule()
    def restart(self) -> None:
        async def work() -> None:
            empty = await self.queue.writer.run(lambda store: store.is_empty())
            await self.queue.close(remove=empty)
            self.life += 1
            self.queue = await self.new_queue()

        self.wait(work())

    # What must hold.

    @invariant()
    def rows_balance(self) -> None:
        if hasattr(self, "queue"):
            state = self.wait(self.queue.state())
            assert state.accepted_rows == state.uploaded_rows + state.queued_rows

    @invariant()
    def nothing_is_stored_twice_or_made_up(self) -> None:
        for row in self.sink.rows():
            assert row["number"] not in self.refused
            assert row["type"] != "damaged"

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.finish()
        finally:
            self.small_reserves.stop()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.home)

    def finish(self) -> None:
        """End this life, adopt everything that is left, and look at the objects."""
        self.answer_with([])
        self.wait(self.queue.close())
        self.life += 1
        self.queue = self.wait(self.new_queue())
        self.wait(self.adopt_all())
        assert self.wait(self.adopt_all()) == 0, "something cannot be finished"
        self.wait(self.queue.close(remove=True))
        self.check_objects()

    def check_objects(self) -> None:
        rows = self.sink.rows()
        found = Counter((row["number"], row["type"]) for row in rows)
        assert set(found.values()) <= {1}
        for promise, count in self.promised.items():
            assert found[promise] == count, f"{promise} was promised {count} times"
        for number, kind in found:
            closings = found[number, "response"] + found[number, "interrupted"]
            assert closings == (1 if found[number, "request"] else 0), f"call {number}"
            assert kind in ("request", "response", "interrupted", "plain")
        queues: dict[str, list[int]] = {}
        for row in rows:
            queues.setdefault(row["queue_id"], []).append(row["seq"])
        for seqs in queues.values():
            assert seqs == list(range(1, len(seqs) + 1))
        for name, body in self.sink.objects.items():
            starts = {row // (WINDOW_SECONDS * 1000) for row in timestamps(body)}
            assert len(starts) == 1, f"{name} holds two windows"


def timestamps(body: bytes) -> list[int]:
    return [json.loads(line)["timestamp"] for line in row_lines([body])]


QUICK = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_happens_in_whatever_order_promises_are_kept() -> None:
    run_state_machine_as_test(QueueMachine, settings=QUICK)


@pytest.mark.long
def test_whatever_happens_in_many_more_orders_promises_are_kept() -> None:
    many = settings(QUICK, max_examples=150, stateful_step_count=60, derandomize=False)
    run_state_machine_as_test(QueueMachine, settings=many)
