"""The one account of a queue's rows: what became of each seq from 1 to the last.

Status, verify, dry run, repair and salvage know different amounts of a file, but they count in
the same way, from three facts about how the core writes it:

1. seq has no gaps: a number that was given was committed.
2. Batches are sealed in the order of seq and without gaps, and their records stay for good. So
   a range before a batch, or between two, that no record covers has lost its record.
3. Nothing deletes a row but the commit that records its batch as uploaded.

What follows from them is certain, and all else is called undecided. What to do about a row that
is undecided is each reader's own policy and not decided here: repair, which runs by itself, takes
what the rules of deletion suggest; salvage, which has a person, tells both possibilities.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.checksums import is_call_intact
from open_llm_proxy.queue.damage.ranges import Range, clipped, count, gaps, joined
from open_llm_proxy.queue.database import Database
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.schema import BATCH_COLUMNS


class State(Enum):
    """What became of a row."""

    UPLOADED = "uploaded"  # the record of its batch says so
    PRESENT = "present"  # it is in the file and matches its CRC-32
    BAD = "bad"  # a row is in the file under its seq, and does not match its CRC-32
    MISSING = "missing"  # it is not in the file and was not uploaded
    UNDECIDED = "undecided"  # it is not in the file: uploaded, if a lost record said so, or lost


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of which the records say one and the same: those of `batch`, or of no batch.

    `is_record_lost`: of no batch, and they may have been in one whose record is gone.
    """

    first: int
    last: int
    batch: Batch | None
    is_record_lost: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one stretch that are in one state."""

    first: int
    last: int
    state: State
    stretch: Stretch


class Ledger:
    """The account of 1 to `last`, in `spans` without gaps.

    `present` and `bad` are the seqs of rows that match their CRC-32 and the keys of rows that do
    not, as ranges in any order. `bad_records` are the keys of damaged batch records, and with
    `any_record_may_be_lost` others may have vanished without a trace. An intact open call proves
    that its request row was committed.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        present: Iterable[Range],
        bad: Iterable[Range] = (),
        *,
        bad_records: Sequence[int] = (),
        newest_open_call: int = 0,
        any_record_may_be_lost: bool = False,
    ) -> None:
        self.batches = sorted(batches, key=lambda batch: batch.first)
        self.bad_records = bad_records
        self._present, self._bad = joined(present), joined(bad)
        self._may_be_lost = any_record_may_be_lost or bool(bad_records)
        self.sealed_to = max((batch.last for batch in self.batches), default=0)
        self.last = max([self.sealed_to, newest_open_call, *(last for _, last in self._present)])
        # The key of a bad row may be what is damaged: it counts only where it follows.
        for first, last in self._bad:
            if first <= self.last + 1:
                self.last = max(self.last, last)
        self.stretches = list(self._stretches())
        self.spans = [span for stretch in self.stretches for span in self._spans(stretch)]

    def ranges(self, *states: State) -> list[Range]:
        """The rows in one of `states`."""
        return joined((span.first, span.last) for span in self.spans if span.state in states)

    def count(self, *states: State) -> int:
        return count(self.ranges(*states))

    @property
    def queued_rows(self) -> int:
        """Rows that no store has confirmed, as far as the records tell."""
        return self.last - self.count(State.UPLOADED)

    @property
    def ranges_without_record(self) -> list[Range]:
        """The ranges that must have been sealed, and whose record is gone or damaged."""
        return [
            (stretch.first, stretch.last)
            for stretch in self.stretches
            if stretch.batch is None and stretch.last < self.sealed_to
        ]

    @property
    def leftover(self) -> list[Range]:
        """Rows that are in the file although they were uploaded."""
        found = joined([*self._present, *self._bad])
        return [part for done in self.ranges(State.UPLOADED) for part in clipped(found, done)]

    def _stretches(self) -> Iterator[Stretch]:
        """Where two records overlap, which no single fault explains, the earlier one counts."""
        expected = 1
        for batch in self.batches:
            if batch.first > expected:
                yield Stretch(expected, batch.first - 1, None, is_record_lost=True)
            if batch.last >= (first := max(batch.first, expected)):
                yield Stretch(first, batch.last, batch, is_record_lost=False)
                expected = batch.last + 1
        if expected <= self.last:
            yield Stretch(expected, self.last, None, is_record_lost=self._may_be_lost)

    def _spans(self, stretch: Stretch) -> Iterator[Span]:
        whole = stretch.first, stretch.last
        if stretch.batch is not None and stretch.batch.is_uploaded:
            yield Span(*whole, State.UPLOADED, stretch)
            return
        absent = State.UNDECIDED if stretch.is_record_lost else State.MISSING
        present = clipped(self._present, whole)
        parts = [(part, State.PRESENT) for part in present]
        for gap in gaps(present, whole):
            bad = clipped(self._bad, gap)
            parts.extend((part, State.BAD) for part in bad)
            parts.extend((part, absent) for part in gaps(bad, gap))
        for part, state in sorted(parts, key=lambda found: found[0]):
            yield Span(*part, state, stretch)


def batch_records(
    database: Database, meta: Meta | None
) -> tuple[list[Batch], dict[int, list[Any]]]:
    """The intact records in the file, and the damaged ones by their keys.

    Names are not looked at without `meta`.
    """
    intact, damaged = [], {}
    query = f"SELECT rowid, {BATCH_COLUMNS} FROM batches ORDER BY first"
    for key, *columns in database.rows(query):
        record = meta.batch(columns) if meta is not None else Batch.of(columns)
        if record is not None:
            intact.append(record)
        else:
            damaged[key] = columns
    return intact, damaged


def newest_open_call(database: Database) -> int:
    """The highest seq of an intact open call; 0 where there is none."""
    calls = database.rows("SELECT seq, timestamp_ms, crc32, head FROM open_calls")
    return max((call[0] for call in calls if is_call_intact(*call)), default=0)


def outline(database: Database, meta: Meta | None = None) -> Ledger:
    """The account as the keys in the file tell it, without a look at the rows between them."""
    batches, damaged = batch_records(database, meta)
    # Two queries, as SQLite looks up one of the two at once and scans the table for both.
    numbers = "FROM rows WHERE typeof(seq) = 'integer'"
    present = [
        (first, database.number(f"SELECT max(seq) {numbers}"))
        for (first,) in database.rows(f"SELECT min(seq) {numbers}")
        if first is not None
    ]
    newest = newest_open_call(database)
    return Ledger(batches, present, bad_records=list(damaged), newest_open_call=newest)
