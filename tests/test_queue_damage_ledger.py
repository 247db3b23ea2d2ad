"""The ledger: what it calls certain is certain, and it leaves no row out.

The account is held against the truth: a queue whose history is known loses records and rows, and
the ledger, which sees only what is left, must not be wrong about one of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.damage.ledger import Ledger, State
from open_llm_proxy.queue.damage.ranges import Range, clipped, count, gaps, joined, runs, spelled
from open_llm_proxy.queue.damage.repair import decided

LETTERS = {
    State.UPLOADED: "u",
    State.PRESENT: "p",
    State.BAD: "b",
    State.MISSING: "m",
    State.UNDECIDED: "?",
}


def batch(first: int, last: int, *, uploaded: bool = False) -> Batch:
    return Batch(first, last, "name", b"md5", 0, None, is_uploaded=uploaded)


def told(account: Ledger) -> str:
    """A letter per row."""
    spans = account.spans
    assert [span.first for span in spans] == [1, *(span.last + 1 for span in spans)][: len(spans)]
    return "".join(LETTERS[span.state] * (span.last - span.first + 1) for span in spans)


UP, WAITING, LAST = batch(1, 3, uploaded=True), batch(4, 6), batch(7, 9, uploaded=True)
TABLE: tuple[tuple[str, Ledger], ...] = (
    # Nothing, and what an intact queue looks like.
    ("", Ledger([], [])),
    ("ppp", Ledger([], [(1, 3)])),
    ("uuupppuuupp", Ledger([LAST, WAITING, UP], [(10, 11), (4, 6)])),
    # Rows that are not there are missing, where no record can be.
    ("uuupmpuuupmp", Ledger([UP, WAITING, LAST], [(4, 4), (6, 6), (10, 10), (12, 12)])),
    ("mmm", Ledger([batch(1, 3)], [])),
    ("mp", Ledger([], [(2, 2)])),
    # An open call shows that there was a row.
    ("uuum", Ledger([UP], [], newest_open_call=4)),
    # Rows without a record before a batch were in one.
    ("???pppuuu", Ledger([WAITING, LAST], [(4, 6)])),
    ("uuup??uuu", Ledger([UP, LAST], [(4, 4)])),
    # Behind the last batch only if records are known to be lost.
    ("uuummp", Ledger([UP], [(6, 6)])),
    ("uuu??p", Ledger([UP], [(6, 6)], bad_records=[4])),
    ("uuu??p", Ledger([UP], [(6, 6)], any_record_may_be_lost=True)),
    # A bad row is there; what is behind the end counts only where it follows.
    ("ppbp", Ledger([], [(1, 2), (4, 4)], [(3, 3)])),
    ("ppbb", Ledger([], [(1, 2)], [(3, 4), (900, 900)])),
    ("bp", Ledger([], [(2, 2)], [(-7, 1)])),
    # A row that is intact counts, whatever lies under its key.
    ("ppp", Ledger([], [(1, 3)], [(2, 2)])),
    # What was uploaded and is there all the same is uploaded.
    ("uuu", Ledger([UP], [(1, 2)], [(3, 3)])),
    # Records that overlap.
    ("uuumm", Ledger([UP, batch(3, 5), batch(2, 2)], [])),
)


@pytest.mark.parametrize(("letters", "account"), TABLE)
def test_each_row_has_the_state_that_the_file_shows(letters: str, account: Ledger) -> None:
    assert told(account) == letters
    assert account.last == len(letters)
    assert account.queued_rows == len(letters) - letters.count("u")


def test_what_is_in_the_file_although_uploaded_is_named() -> None:
    assert Ledger([UP], [(2, 2), (4, 4)], [(3, 3)]).leftover == [(2, 3)]


def test_ranges_without_a_record_end_before_the_last_batch() -> None:
    account = Ledger([batch(3, 4), batch(7, 8)], [(1, 9)])
    assert account.ranges_without_record == [(1, 2), (5, 6)]


def test_a_record_is_read_only_if_it_matches_its_checksum() -> None:
    fields = (1, 3, "name", b"md5", 7, "s3://logs/", 1)
    intact = (*fields, checksum(b"", *fields))
    assert Batch.of(intact) == Batch(1, 3, "name", b"md5", 7, "s3://logs/", is_uploaded=True)
    assert Batch.of((1, 4, *intact[2:])) is None


@dataclass(frozen=True, slots=True)
class History:
    """A queue as it was, and what damage has left of it."""

    rows: int
    batches: list[Batch]
    bad_records: list[Batch]
    lost_records: list[Batch]  # without a trace
    lost_rows: set[int]
    bad_rows: set[int]

    @property
    def uploaded(self) -> set[int]:
        done = [batch for batch in self.batches if batch.is_uploaded]
        return {seq for batch in done for seq in range(batch.first, batch.last + 1)}

    @property
    def ledger(self) -> Ledger:
        gone = self.uploaded | self.lost_rows | self.bad_rows
        present = [seq for seq in range(1, self.rows + 1) if seq not in gone]
        return Ledger(
            [b for b in self.batches if b not in self.bad_records + self.lost_records],
            runs(present),
            runs(sorted(self.bad_rows)),
            bad_records=[batch.first for batch in self.bad_records],
            any_record_may_be_lost=bool(self.lost_records),
        )


@st.composite
def histories(draw: st.DrawFn, faults: int | None = None) -> History:
    """Batches as a drain seals them, and rows behind them; then at most `faults` faults."""
    sizes = draw(st.lists(st.integers(1, 4), max_size=6))
    starts = list(itertools.accumulate(sizes, initial=1))
    batches = [
        batch(first, following - 1, uploaded=draw(st.booleans()))
        for first, following in itertools.pairwise(starts)
    ]
    rows = starts[-1] - 1 + draw(st.integers(0, 5))
    uploaded = [b for b in batches if b.is_uploaded]
    waiting = [
        seq
        for seq in range(1, rows + 1)
        if not any(batch.first <= seq <= batch.last for batch in uploaded)
    ]
    kinds: list[Callable[[], tuple[str, object]]] = []
    if batches:
        kinds.append(lambda: ("bad record", draw(st.sampled_from(batches))))
    if len(batches) > (faults == 1):  # the last one's loss is not seen, see the ledger
        end = -1 if faults == 1 else None
        kinds.append(lambda: ("lost record", draw(st.sampled_from(batches[:end]))))
    if waiting:
        kinds.append(lambda: ("lost row", draw(st.sampled_from(waiting))))
        kinds.append(lambda: ("bad row", draw(st.sampled_from(waiting))))
    number = draw(st.integers(0, 8 if faults is None else faults)) if kinds else 0
    found = [draw(st.sampled_from(kinds))() for _ in range(number)]

    def of(kind: str) -> list:  # type: ignore[type-arg]
        return [what for name, what in found if name == kind]

    lost, bad = set(of("lost row")), set(of("bad row"))
    return History(rows, batches, of("bad record"), of("lost record"), lost, bad - lost)


@given(histories())
def test_what_is_called_certain_is_true(history: History) -> None:
    letters = told(history.ledger)
    lost_records = [*history.bad_records, *history.lost_records]
    assert len(letters) <= history.rows
    for seq in range(1, history.rows + 1):
        state = letters[seq - 1] if seq <= len(letters) else " "
        record = next((b for b in history.batches if b.first <= seq <= b.last), None)
        if seq in history.uploaded:
            assert state in "u? ", f"row {seq} was uploaded"
            assert state == "u" or record in lost_records
        elif seq in history.lost_rows:
            assert state in "m? "
            assert state != "m" or record not in lost_records
        elif seq in history.bad_rows:
            assert state in "b "
        else:
            assert state == "p", f"row {seq} is in the file"


@given(histories(faults=0))
def test_an_intact_queue_is_uploaded_or_present(history: History) -> None:
    account = history.ledger
    assert set(told(account)) <= set("up")
    assert account.last == history.rows
    assert not account.ranges_without_record


@given(histories(faults=1))
def test_of_a_single_fault_repair_decides_right(history: History) -> None:
    acknowledged, lost = decided(history.ledger)
    confirmed = {seq for first, last in acknowledged for seq in range(first, last + 1)}
    given_up = {seq for span in lost for seq in range(span.first, span.last + 1)}
    assert confirmed <= history.uploaded
    assert given_up <= history.lost_rows | history.bad_rows
    end = history.ledger.last
    assert {seq for seq in history.lost_rows if seq <= end} <= given_up


# What repair makes of what is undecided: a for acknowledged, l for lost.
DECISIONS: tuple[tuple[str, Ledger], ...] = (
    # All of a range is gone, as after an upload, or its front where records are damaged.
    ("aaapppuuu", Ledger([WAITING, LAST], [(4, 6)])),
    ("uuuaappuuu", Ledger([UP, batch(8, 10, uploaded=True)], [(6, 7)], bad_records=[4])),
    ("uuuaaapp", Ledger([UP], [(7, 8)], bad_records=[4])),
    # Where no damaged record shows that there was another batch, a part of a range is lost.
    ("lppuuu", Ledger([batch(4, 6, uploaded=True)], [(2, 3)])),
    # Behind a row that is there nothing counts as uploaded, and neither does a bad row.
    ("uuuplpuuu", Ledger([UP, LAST], [(4, 4), (6, 6)])),
    ("uuuplluuu", Ledger([UP, LAST], [(4, 4)], bad_records=[4])),
    ("uuullluuu", Ledger([UP, LAST], [], [(4, 4)], bad_records=[4])),
)


@pytest.mark.parametrize(("letters", "account"), DECISIONS)
def test_repair_takes_for_uploaded_what_is_gone_as_uploads_are(
    letters: str, account: Ledger
) -> None:
    found = list(told(account))
    acknowledged, lost = decided(account)
    for letter, ranges in (("a", acknowledged), ("l", [(s.first, s.last) for s in lost])):
        for first, last in ranges:
            found[first - 1 : last] = letter * (last - first + 1)
    assert "".join(found) == letters


numbers = st.sets(st.integers(1, 30))


@given(numbers, numbers, st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_ranges_are_sets_of_numbers(one: set[int], two: set[int], within: Range) -> None:
    def as_set(ranges: list[Range]) -> set[int]:
        assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(ranges))
        assert count(ranges) == sum(last - first + 1 for first, last in ranges)
        return {seq for first, last in ranges for seq in range(first, last + 1)}

    ones, twos = list(runs(sorted(one))), list(runs(sorted(two)))
    window = set(range(within[0], within[1] + 1))
    assert as_set(ones) == one
    assert as_set(joined([*twos, *ones])) == one | two
    assert as_set(clipped(ones, within)) == one & window
    assert as_set(list(gaps(clipped(ones, within), within))) == window - one


def test_ranges_are_spelled_as_a_sentence_has_them() -> None:
    assert spelled([(7, 7)]) == "row 7"
    assert spelled([(4, 5), (8, 8)]) == "rows 4 to 5, 8"
    assert spelled([(n, n) for n in range(1, 9, 2)], limit=2) == "rows 1, 3 and 2 more ranges"
