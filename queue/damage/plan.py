"""What a replay of a queue would do, without doing it."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import Run
from open_llm_proxy.queue.damage import inspection, ledger
from open_llm_proxy.queue.damage.ledger import Ledger
from open_llm_proxy.queue.damage.ranges import Range, clipped
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.entry import finished_line
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.meta import Meta

Row = tuple[int, int, int]  # seq, time in ms, size of the line


@dataclass(slots=True)
class Plan:
    """What a replay of the queue in `path` would do as the file is now.

    `objects` holds how many it would put to each sink, None for the one that the replay goes
    to; `bytes` are those of all objects. `refusal` says why nothing would be done, `faults` what
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
        with inspection.at_rest(path):
            plan.faults = inspection.wal_faults(path)
            with inspection.opened(path) as database:
                plan.doubts = inspection.wal_doubts(path, database)
                meta = Meta.read(database)
                plan.queue_id = meta.queue_id
                account = ledger.outline(database, meta)
                plan.faults += inspection.record_faults(account) + inspection.text_faults(meta)
                _count_objects(plan, account, meta, _rows(plan, database, meta, account))
    except (QueueError, sqlite3.Error, OSError) as error:
        plan.refusal = inspection.explained(path, error)
    return plan


def _count_objects(plan: Plan, account: Ledger, meta: Meta, rows: Iterator[Row]) -> None:
    sealed: list[Range] = []
    for batch in account.batches:
        if not batch.is_uploaded:
            sealed.append((batch.first, batch.last))
            plan.objects[batch.sink] = plan.objects.get(batch.sink, 0) + 1
    run: Run | None = None
    for seq, timestamp_ms, size_bytes in rows:
        plan.rows += 1
        plan.bytes += size_bytes
        if clipped(sealed, (seq, seq)):
            run = None
        elif run is None or not run.add(timestamp_ms, size_bytes):
            run = meta.run()
            run.add(timestamp_ms, size_bytes)
            plan.objects[None] = plan.objects.get(None, 0) + 1
    plan.bytes += sum(plan.objects.values()) * len(meta.object_head(0))


def _rows(plan: Plan, database: Database, meta: Meta, account: Ledger) -> Iterator[Row]:
    """The rows in the file, then those that closing the open calls would add."""
    # Damaged columns may hold anything; a plan takes them for what they should be.
    columns = "ifnull(CAST(timestamp_ms AS INTEGER), 0), ifnull(length({}), 0)"
    key = schema.ROW_KEY
    yield from database.iterate(f"SELECT {key}, {columns.format('line')} FROM rows ORDER BY seq")
    query = f"SELECT {columns.format('head')} FROM open_calls ORDER BY seq"
    for seq, (timestamp_ms, size_bytes) in enumerate(database.iterate(query), account.last + 1):
        plan.closed_calls += 1
        added_bytes = len(finished_line(meta.queue_id, seq, meta.interrupted_body(b"")))
        yield seq, timestamp_ms, added_bytes + size_bytes
