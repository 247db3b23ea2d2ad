"""Everything that can be read from a queue's file, however damaged, and what cannot.

Rows come from the raw pages (pages.py), each believed by its own line and CRC-32 alone. What the
intact records of batches say was uploaded is left out. What is missing is named by seq and by
the times of its neighbours; what the file does not tell is called undecided and never guessed.
The same file gives the same bytes.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.batches import utc_moment
from open_llm_proxy.queue.damage import inspection, pages
from open_llm_proxy.queue.damage.ranges import gaps
from open_llm_proxy.queue.damage.recovered_rows import FoundBatch, FoundRecords, OpenCall
from open_llm_proxy.queue.damage.salvage_files import write_once
from open_llm_proxy.queue.durable_files import make_folders
from open_llm_proxy.queue.errors import NotAQueue

NOT_CONFIRMED = "their batch was sealed, and no record of its upload was found"
NO_RECORD = "no record of their batch was found: they may have been uploaded"


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
    or uploaded range. `outdated_calls` are like them, but stood on pages that are used otherwise
    by now: they were closed, unless just that page is what was damaged.
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


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Rows of which the records say one and the same."""

    first: int
    last: int
    is_uploaded: bool = False
    doubt: str | None = None  # why the store may have those that were found
    loss: str = NO_RECORD  # what is known of those that were not


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
        found = stack.enter_context(contextlib.closing(FoundRecords(scratch, call_field)))
        for record in pages.records(database, Path(f"{database}-wal")):
            found.add(record)
        found.finish()
        if not found.queue_ids():
            raise NotAQueue(f"{path} holds nothing of a queue that could be read")
        return [_Salvager(found, queue_id, target).result for queue_id in found.queue_ids()]


class _Salvager:
    """Writes one queue's files and its report."""

    def __init__(self, found: FoundRecords, queue_id: str, target: Path) -> None:
        self.result = Salvage(queue_id)
        self._found = found
        self._queue_id = queue_id
        self._target = target
        stretches = list(_stretches(found, queue_id))
        for stretch in stretches:
            self._account(stretch)
        self._write_rows([stretch for stretch in stretches if not stretch.is_uploaded])
        self._write_calls(stretches)
        report = json.dumps(asdict(self.result), indent=2, ensure_ascii=False) + "\n"
        write_once(target / f"{queue_id}-report.json", [report.encode()])

    def _account(self, stretch: _Stretch) -> None:
        if stretch.is_uploaded:
            self.result.uploaded_rows += stretch.last - stretch.first + 1
            return
        present = list(self._found.present(self._queue_id, (stretch.first, stretch.last)))
        if stretch.doubt is not None:
            self.result.undecided.extend(self._rows(*run, stretch.doubt) for run in present)
        self.result.missing.extend(
            self._rows(first, last, stretch.loss)
            for first, last in gaps([(1, stretch.first - 1), *present], stretch.last)
        )

    def _rows(self, first: int, last: int, why: str) -> Rows:
        before = self._found.time_before(self._queue_id, first)
        after = self._found.time_after(self._queue_id, last)
        return Rows(first, last, _time(before), _time(after), why)

    def _write_rows(self, stretches: list[_Stretch]) -> None:
        result = self.result
        oldest = newest = None

        def lines() -> Iterator[bytes]:
            nonlocal oldest, newest
            for stretch in stretches:
                within = stretch.first, stretch.last
                for timestamp_ms, line in self._found.rows(self._queue_id, within):
                    oldest = timestamp_ms if oldest is None else min(oldest, timestamp_ms)
                    newest = timestamp_ms if newest is None else max(newest, timestamp_ms)
                    result.rows += 1
                    result.bytes += len(line)
                    yield line

        result.file = f"{self._queue_id}-salvaged.jsonl"
        write_once(self._target / result.file, lines())
        result.oldest, result.newest = _time(oldest), _time(newest)

    def _write_calls(self, stretches: list[_Stretch]) -> None:
        """The kept ends of calls that nothing closes, apart where a closing row may be hidden."""
        hidden = max(
            [
                *(stretch.last for stretch in stretches if stretch.is_uploaded),
                *(rows.last for rows in self.result.missing),
            ],
            default=0,
        )
        calls = self._found.unclosed_calls(self._queue_id)
        sure = [call for call in calls if call.seq > hidden]
        unsure = [call for call in calls if call.seq <= hidden and call.is_current]
        outdated = [call for call in calls if call.seq <= hidden and not call.is_current]
        result = self.result
        result.open_calls, result.open_calls_file = self._write_ends("open-calls", sure)
        result.undecided_calls, result.undecided_calls_file = self._write_ends(
            "undecided-calls", unsure
        )
        result.outdated_calls, result.outdated_calls_file = self._write_ends(
            "outdated-calls", outdated
        )

    def _write_ends(self, name: str, calls: list[OpenCall]) -> tuple[int, str | None]:
        if not calls:
            return 0, None
        # They were never numbered, so their seq is null; all other fields are as kept.
        front = b'{"queue_id":"%b","seq":null,' % self._queue_id.encode()
        file = f"{self._queue_id}-{name}.jsonl"
        write_once(self._target / file, (front + call.body[1:] + b"\n" for call in calls))
        return len(calls), file


def _stretches(found: FoundRecords, queue_id: str) -> Iterator[_Stretch]:
    """The rows from 1 to the newest, cut where the records say something else of them."""
    batches = found.batches(queue_id)
    newest = found.newest_seq(queue_id)
    expected = 1
    for batch in batches:
        if batch.first > expected:
            yield _Stretch(expected, batch.first - 1, doubt=NO_RECORD)
        yield _of_batch(batch)
        expected = max(expected, batch.last + 1)
    if expected <= newest:
        first_is_there = any(True for _ in found.present(queue_id, (1, 1)))
        known = bool(batches) or first_is_there
        yield _Stretch(expected, newest, doubt=None if known else NO_RECORD)


def _of_batch(batch: FoundBatch) -> _Stretch:
    if batch.is_uploaded:
        return _Stretch(batch.first, batch.last, is_uploaded=True)
    doubt = None
    if batch.sink is not None:
        doubt = f"they were tried on {batch.sink}, and no record of the outcome was found"
    return _Stretch(batch.first, batch.last, doubt=doubt, loss=NOT_CONFIRMED)


def _time(timestamp_ms: int | None) -> str | None:
    if timestamp_ms is None:
        return None
    moment = utc_moment(timestamp_ms).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def spelled(rows: Rows) -> str:
    """As a line of a report has it."""
    name = f"row {rows.first}" if rows.first == rows.last else f"rows {rows.first} to {rows.last}"
    times = [
        text
        for text in (
            rows.after and f"after {rows.after}",
            rows.before and f"before {rows.before}",
        )
        if text
    ]
    return f"{name} ({', '.join(times) or 'time unknown'}): {rows.why}"
