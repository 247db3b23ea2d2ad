"""Everything that can be read from a queue's file, however damaged, and what cannot.

Rows come from the raw pages (pages.py), each believed by its own line and CRC-32 alone. What the
intact records of batches say was uploaded is left out. What is missing is named by seq and by
the times of its neighbours; what the file does not tell is called undecided and never guessed.
The same file gives the same bytes.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import utc
from open_llm_proxy.queue.damage import inspection, pages, ranges
from open_llm_proxy.queue.damage.ledger import Ledger, Span, State
from open_llm_proxy.queue.damage.recovered_rows import OpenCall, RecoveredRows
from open_llm_proxy.queue.damage.salvage_files import write_once
from open_llm_proxy.queue.durable_files import make_folders
from open_llm_proxy.queue.errors import NotAQueue

NOT_CONFIRMED = "their batch was sealed, and no record of its upload was found"
NO_RECORD = "no record of their batch was found: they may have been uploaded"
LOSSES = {State.MISSING: NOT_CONFIRMED, State.UNDECIDED: NO_RECORD}


@dataclass(frozen=True, slots=True)
class Rows:
    """A range of rows with the times of what was found before and behind it (UTC, ISO 8601)."""

    first: int
    last: int
    after: str | None
    before: str | None
    why: str


@dataclass(slots=True)
class Salvage:
    """What was salvaged from one queue; `file` and the others are names in the given folder.

    `uploaded_rows` were left out. `missing` are neither there nor recorded as uploaded,
    `undecided` were salvaged although the store may have them too. `open_calls` have no row that
    closes them; of `undecided_calls` the file does not tell, because that row may be in a missing
    or uploaded range. `outdated_calls` are like them, but were found on pages that are free or
    used otherwise by now: they were closed, unless just that page is damaged.
    """

    queue_id: str
    file: str = ""
    rows: int = 0
    bytes: int = 0
    oldest: str | None = None
    newest: str | None = None
    uploaded_rows: int = 0
    missing: list[Rows] = field(default_factory=list)
    undecided: list[Rows] = field(default_factory=list)
    open_calls: int = 0
    open_calls_file: str | None = None
    undecided_calls: int = 0
    undecided_calls_file: str | None = None
    outdated_calls: int = 0
    outdated_calls_file: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and nothing is left to decide."""
        return not (self.missing or self.undecided or self.undecided_calls)


def salvage(path: Path, target: Path, call_field: str) -> list[Salvage]:
    """Read what can be read of the queue in `path`, folder or file, and write it below `target`.

    `call_field` is the field of a row that names its call: by it open calls are matched with the
    rows that close them. Returns one `Salvage` per queue of which something was found, and that
    is one but for very strange damage. Raises `OwnerAlive`, `NotAQueue` where nothing of a queue
    was found, and `FileInTheWay`.
    """
    database = path if path.is_file() else path / schema.DATABASE_NAME
    with inspection.at_rest(database.parent), contextlib.ExitStack() as stack:
        make_folders(target)
        scratch = target / ".salvage.part"
        scratch.unlink(missing_ok=True)
        stack.callback(scratch.unlink, missing_ok=True)
        found = stack.enter_context(contextlib.closing(RecoveredRows(scratch, call_field)))
        for record in pages.records(database, Path(f"{database}-wal")):
            found.add(record)
        found.finish()
        if not found.queue_ids:
            raise NotAQueue(f"{path} contains no readable data of a queue")
        return [_salvaged(found, queue_id, target) for queue_id in found.queue_ids]


def _salvaged(found: RecoveredRows, queue_id: str, target: Path) -> Salvage:
    """Write one queue's files and its report."""
    calls = found.unclosed_calls(queue_id)
    account = Ledger(
        found.batches(queue_id),
        found.present(queue_id),
        newest_open_call=max((call.seq for call in calls), default=0),
        any_record_may_be_lost=True,
    )
    result = Salvage(queue_id, file=f"{queue_id}-salvaged.jsonl")
    for span in account.spans:
        why = _doubt(span, account) if span.state is State.PRESENT else LOSSES.get(span.state)
        if why is not None:
            before, behind = found.times_around(queue_id, (span.first, span.last))
            told = result.undecided if span.state is State.PRESENT else result.missing
            told.append(Rows(span.first, span.last, _time(before), _time(behind), why))
    result.uploaded_rows = account.count(State.UPLOADED)
    found.drop(queue_id, account.ranges(State.UPLOADED))
    write_once(target / result.file, found.lines(queue_id))
    result.rows, result.bytes, oldest, newest = found.totals(queue_id)
    result.oldest, result.newest = _time(oldest), _time(newest)
    _write_calls(result, calls, found.interrupted_tail, account, target)
    report = json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n"
    write_once(target / f"{queue_id}-report.json", [report.encode()])
    return result


def _write_calls(
    result: Salvage, calls: list[OpenCall], tail: bytes, account: Ledger, target: Path
) -> None:
    """What would close the calls that nothing closes, apart where a closing row may be hidden."""
    elsewhere = account.ranges(State.UPLOADED, State.MISSING, State.UNDECIDED)
    hidden = elsewhere[-1][1] if elsewhere else 0
    # They were never numbered, so their seq is null; all other fields are as kept.
    front = b'{"queue_id":"%b","seq":null,' % result.queue_id.encode()

    def write(name: str, chosen: list[OpenCall]) -> tuple[int, str | None]:
        file = f"{result.queue_id}-{name}.jsonl"
        if chosen:
            write_once(target / file, (front + call.head[1:] + tail + b"\n" for call in chosen))
        return len(chosen), file if chosen else None

    sure = [call for call in calls if call.seq > hidden]
    current = [call for call in calls if call.seq <= hidden and call.is_current]
    outdated = [call for call in calls if call.seq <= hidden and not call.is_current]
    result.open_calls, result.open_calls_file = write("open-calls", sure)
    result.undecided_calls, result.undecided_calls_file = write("undecided-calls", current)
    result.outdated_calls, result.outdated_calls_file = write("outdated-calls", outdated)


def _doubt(span: Span, account: Ledger) -> str | None:
    """Why the store may have rows that were found; None where it cannot.

    Rows that no record covers were not sealed, unless records are seen to be lost.
    """
    batch = span.stretch.batch
    if batch is not None:
        tried = f"an upload to {batch.sink} was tried, and its outcome is not recorded"
        return tried if batch.sink is not None else None
    is_tail = span.stretch.last > account.sealed_to
    is_known = bool(account.batches) or account.spans[0].state is State.PRESENT
    return None if is_tail and is_known else NO_RECORD


def _time(timestamp_ms: int | None) -> str | None:
    return utc(timestamp_ms) if timestamp_ms is not None else None


def spelled(rows: Rows) -> str:
    """As a line of a report has it."""
    after, before = rows.after and f"after {rows.after}", rows.before and f"before {rows.before}"
    times = ", ".join(filter(None, (after, before))) or "time unknown"
    return f"{ranges.spelled([(rows.first, rows.last)])} ({times}): {rows.why}"
