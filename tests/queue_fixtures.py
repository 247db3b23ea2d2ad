"""What the tests of the queue share: entries, stores that fail on demand, files as a kill leaves
them, and a look at what has been stored."""

import asyncio
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.disk_space import RESERVE_NAME, DiskSpace
from open_llm_proxy.queue.drain import Drain
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.entry import Append, CallMark, Entry, LogFormat
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.sinks import SinkFailure, SinkRefused
from open_llm_proxy.queue.store import Store, StoreState
from open_llm_proxy.queue.uploads import Uploads
from open_llm_proxy.queue.writer import Writer

WINDOW_SECONDS = 300
NOON_MS = 1_700_049_600_000  # 2023-11-15 12:00:00 UTC, a window's start
LOG_FORMAT = LogFormat(
    head=b'{"type":"schema","number":null,"text":"-"}',
    interrupted_tail=b',"outcome":"interrupted"}',
    damaged_body=b'{"timestamp":null,"type":"damaged","number":null,"error":null}',
)


def birth(window_seconds: int = WINDOW_SECONDS, object_max_bytes: int = 1 << 20) -> Meta:
    return Meta(window_seconds, object_max_bytes, LOG_FORMAT)


def entry(
    number: int | str, at_ms: int = NOON_MS, kind: str = "request", size_bytes: int = 0
) -> Entry:
    """Numbered entry `number` of time `at_ms`, with a text of `size_bytes`."""
    fields = {
        "timestamp": at_ms,
        "type": kind,
        "number": number,
        "text": "x" * size_bytes,
    }
    return Entry(json.dumps(fields, separators=(",", ":")).encode(), at_ms)


def interrupted(number: int | str, at_ms: int = NOON_MS) -> bytes:
    """The head of the entry that closes call `number` after a death."""
    return entry(number, at_ms, "interrupted").body.removesuffix(b"}")


def opening(number: int, at_ms: int = NOON_MS, size_bytes: int = 0) -> tuple[Append, CallMark]:
    """An append that opens call `number`, and the call's record."""
    record = CallMark()
    request = entry(number, at_ms, "request", size_bytes)
    return Append((request,), opens=record, interrupted_head=interrupted(number, at_ms)), record


def closing(number: int, record: CallMark, at_ms: int = NOON_MS, size_bytes: int = 0) -> Append:
    return Append((entry(number, at_ms, "response", size_bytes),), closes=record)


def plain(*numbers: int, at_ms: int = NOON_MS, size_bytes: int = 0) -> Append:
    """Entries that open no call, in one append."""
    return Append(tuple(entry(number, at_ms, "plain", size_bytes) for number in numbers))


@contextmanager
def new_store(root: Path, made: Meta | None = None) -> Iterator[Store]:
    """The store of a new queue below `root`, closed and given back afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    owned = folder.give_birth(root, made or birth())
    store = Store.open(owned.path)
    try:
        yield store
    finally:
        store.close(cleanly=True)
        owned.release()


def as_killed(root: Path, target: Path) -> Path:
    """Copy the queues below `root` as SIGKILL would leave them now; returns `target`.

    What was written is in the page cache and survives the process, so a copy shows the same.
    """
    shutil.copytree(root, target, ignore=shutil.ignore_patterns(f"{RESERVE_NAME}*"))
    return target


def dead_queue(
    root: Path, fill: Callable[[Store], object], made: Meta | None = None, cleanly: bool = False
) -> Path:
    """The folder of a queue that `fill` has filled and whose owner was killed then.

    `cleanly`: the owner ended in order.
    """
    living = root.with_name(f"{root.name}-living")
    with new_store(living, made) as store:
        fill(store)
        if not cleanly:
            copied = as_killed(living, root.with_name(f"{root.name}-killed"))
    if cleanly:
        copied = as_killed(living, root.with_name(f"{root.name}-killed"))
    root.mkdir(parents=True, exist_ok=True)
    (queue,) = folder.queue_folders(copied)
    shutil.move(queue, root / queue.name)
    shutil.rmtree(living)
    shutil.rmtree(copied)
    return root / queue.name


def alter(path: Path, *statements: str) -> None:
    """Change a queue's file behind its back; the write-ahead log ends up in the file."""
    connection = sqlite3.connect(path / schema.DATABASE_NAME, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def flip_bit(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of the file at `path`, as a bad disk would."""
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes((byte ^ 1 << bit,)))


def names(folder_of: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder_of.iterdir())


def quarantined(root: Path) -> list[Path]:
    """What lies in the quarantine of `root`."""
    return sorted((root / QUARANTINE_NAME).glob("*"))


class MemorySink:
    """A store in memory; `answers` decides each PUT by returning an exception to raise, or None.

    With a `SinkFailure` that says `lost` the object is stored all the same.
    """

    def __init__(self, identity: str = "memory:") -> None:
        self.identity = identity
        self.objects: dict[str, bytes] = {}
        self.attempts: list[str] = []
        self.conflicts: list[str] = []
        self.answers: Callable[[Batch], SinkFailure | None] = lambda batch: None
        self._lock = threading.Lock()

    def put(self, batch: Batch, body: bytes) -> None:
        with self._lock:
            self.attempts.append(batch.name)
        failure = self.answers(batch)
        with self._lock:
            is_stored = failure is None or str(failure) == "lost"
            if is_stored and self.objects.setdefault(batch.name, body) != body:
                self.conflicts.append(batch.name)
            if failure is not None:
                raise failure

    def holds(self, batch: Batch) -> bool:
        return batch.name in self.objects

    def rows(self) -> list[dict[str, Any]]:
        assert self.conflicts == [], "one name was given to two contents"
        return rows_of(self.objects.values())


def lost() -> SinkFailure:
    """The answer that never arrived, although the object was stored."""
    return SinkFailure("lost")


def refuse(*firsts: int) -> "Refusal":
    return Refusal(set(firsts))


class Refusal:
    """Refuses the batches that begin at one of `firsts`."""

    def __init__(self, firsts: set[int]) -> None:
        self.firsts = firsts

    def __call__(self, batch: Batch) -> SinkFailure | None:
        return SinkRefused("answered 403") if batch.first in self.firsts else None


def away(batch: Batch) -> SinkFailure:
    """The answer of a store that is not there."""
    return SinkFailure("connection refused")


def row_lines(bodies: Iterable[bytes]) -> list[bytes]:
    """The lines of objects but their heads, which each has."""
    found = []
    for body in bodies:
        head, *lines = body.splitlines()
        row = json.loads(head)
        assert (row["type"], row["seq"]) == ("schema", None)
        assert lines, "an object holds a row at least"
        found.extend(lines)
    return found


def rows_of(bodies: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows of objects but their heads, by queue and seq; fails where one is there twice."""
    rows = [json.loads(line) for line in row_lines(bodies)]
    keys = [(row["queue_id"], row["seq"]) for row in rows]
    assert len(set(keys)) == len(keys), "a row was stored twice"
    return sorted(rows, key=lambda row: (row["queue_id"], row["seq"]))


def numbers(rows: Iterable[dict[str, Any]]) -> list[int | None]:
    return [row["number"] for row in rows]


def seqs(rows: Iterable[dict[str, Any]]) -> list[int]:
    return [row["seq"] for row in rows]


class OpenQueue:
    """A queue with its writer and its drain, as one process has them.

    `everything`: drain as in a dead owner's file, where the newest rows are finished too.
    """

    def __init__(
        self,
        owned: OwnedFolder,
        sink: MemorySink,
        *,
        everything: bool = True,
        again: bool = False,
        slots: int = 4,
    ) -> None:
        self.owned = owned
        self.store = Store.open(owned.path)
        self.space = DiskSpace(owned.path.parent, owned.path, 1 << 40)
        self.writer = Writer(self.store, self.space)
        self.uploads = Uploads(slots)
        self.counts = self.uploads.counts
        self.drain = Drain(self.writer, sink, self.uploads, everything=everything, again=again)

    async def advance(self) -> StoreState:
        """One pass of the drain, with nothing backed off from; returns what is left."""
        self.drain.backoff.try_now()
        await self.drain.advance()
        return await self.state()

    async def state(self) -> StoreState:
        return await self.writer.run(Store.state)

    async def close(self, remove: bool = False) -> None:
        await self.writer.close()
        self.uploads.close()
        if remove:
            self.owned.remove()
        else:
            self.owned.release()


def new_queue(root: Path, sink: MemorySink, size: int = 1 << 20, **options: bool) -> OpenQueue:
    root.mkdir(exist_ok=True)
    return OpenQueue(folder.give_birth(root, birth(object_max_bytes=size)), sink, **options)


class Adopter:
    """One look at the queues below `root` as a starting process has, to its end."""

    def __init__(self, root: Path, sink: MemorySink) -> None:
        self.lines: list[bytes] = []
        self.uploads = Uploads()
        self.adoption = Adoption(
            root, "0" * 16, sink, self.uploads, self.lines.extend, pass_seconds=0.02
        )

    @property
    def settled(self) -> StoreState:
        """Of the queues that are finished or left."""
        return self.adoption.states()[0]

    async def finish(self) -> None:
        """Look until nothing is left that this process would go on with."""
        await self.adoption.look()
        while tasks := list(self.adoption._tasks.values()):
            await asyncio.wait(tasks)
            await self.adoption.look()
        await self.stop()

    async def stop(self) -> None:
        await self.adoption.stop()
        self.uploads.close()


async def adopted(root: Path, sink: MemorySink) -> Adopter:
    """Finish what lies below `root`; returns the adopter, whose counters are then at rest."""
    adopter = Adopter(root, sink)
    await adopter.finish()
    return adopter
