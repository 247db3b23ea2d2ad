"""What finishing a queue would do, without doing it."""

import sqlite3
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from open_llm_proxy.queue.batches import Run
from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.entry import finished_line
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.meta import Meta

SealedRow = tuple[int, int, int]  # seq, time in ms, size of the line


@dataclass(slots=True)
class Plan:
    """What a replay of the queue in `path` would do as the file stands now.

    `objects` holds how many it would put to each sink, None for the one that the replay goes
    to; `bytes` are those of all lines. `refusal` says why nothing would be done, `faults` what
    else is wrong, `doubts` what may be wrong.
    """

    path: Path
    queue_id: str
    rows: int = 0
    bytes: int = 0
    closed_calls: int = 0
    objects: dict[str | None, int] = field(default_factory=dict)
    refusal: str | None = None
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def planned(path: Path) -> Plan:
    """Look at the queue in the folder `path` and say what a replay would do; changes nothing."""
    plan = Plan(path, path.name)
    try:
        with inspection.at_rest(path), inspection.opened(path) as database:
            plan.faults = inspection.wal_faults(path)
            plan.doubts = inspection.wal_doubts(path, database)
            _fill(plan, database)
    except (QueueError, sqlite3.Error, OSError) as error:
        plan.refusal = inspection.explained(path, error)
    return plan


def _fill(plan: Plan, database: Database) -> None:
    meta = Meta.read(database)
    plan.queue_id = meta.queue_id
    records = list(inspection.stored_batches(database))
    plan.faults += inspection.batch_faults(records)
    sealed = deque(batch for batch in records if not batch.is_uploaded)
    for batch in sealed:
        plan.objects[batch.sink] = plan.objects.get(batch.sink, 0) + 1
    run: Run | None = None
    for seq, timestamp_ms, size_bytes in _rows(plan, database, meta.queue_id):
        plan.rows += 1
        plan.bytes += size_bytes
        while sealed and sealed[0].last < seq:
            sealed.popleft()
        if sealed and sealed[0].first <= seq:
            run = None
        elif run is None or not run.add(timestamp_ms, size_bytes):
            run = meta.run()
            run.add(timestamp_ms, size_bytes)
            plan.objects[None] = plan.objects.get(None, 0) + 1


def _rows(plan: Plan, database: Database, queue_id: str) -> Iterator[SealedRow]:
    """The rows, then those that closing the open calls would add."""
    last = database.number("SELECT max(last) FROM batches")
    # Damaged columns may hold anything; a plan takes them for what they should be.
    columns = "CAST(timestamp_ms AS INTEGER), ifnull(length({}), 0)"
    query = f"SELECT seq, {columns.format('line')} FROM rows ORDER BY seq"
    for seq, timestamp_ms, size_bytes in database.iterate(query):
        last = max(last, seq)
        yield seq, timestamp_ms, size_bytes
    query = f"SELECT {columns.format('body')} FROM open_calls ORDER BY seq"
    for timestamp_ms, size_bytes in database.iterate(query):
        last += 1
        plan.closed_calls += 1
        yield last, timestamp_ms, len(finished_line(queue_id, last, b"")) + size_bytes - 1
