"""Names of objects, windows of time, and when the newest run of rows is finished."""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_llm_proxy.queue.batches import (
    Batch,
    Run,
    Tail,
    check_window,
    object_name,
    renamed,
    utc_moment,
    window_start,
)

HEAD_BYTES = 3
QUEUE_ID = "0123456789abcdef"
MD5 = hashlib.md5(b"body").digest()
DIVISORS = [n for n in range(1, 86_401) if 86_400 % n == 0]
NAME = re.compile(
    r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-0123456789abcdef-\d{10}-\d{10}-[0-9a-f]{12}\.jsonl"
)


def test_a_name_holds_window_queue_range_and_digest() -> None:
    start = int(datetime(2026, 3, 1, 23, 55, tzinfo=UTC).timestamp())
    assert object_name(start, QUEUE_ID, 7, 12, MD5) == (
        "2026-03-01/23-55-00-0123456789abcdef-0000000007-0000000012-841a2d689ad8.jsonl"
    )


def test_other_bytes_get_another_name_in_the_same_window() -> None:
    name = object_name(0, QUEUE_ID, 1, 2, MD5)
    assert renamed(name, MD5) == name
    assert renamed(name, bytes(16)) == name.replace("841a2d689ad8", "000000000000")


@pytest.mark.parametrize(
    ("moment", "window_seconds", "expected"),
    [
        ("2025-12-31T23:59:59.999+00:00", 300, "2025-12-31/23-55-00"),
        ("2026-01-01T00:00:00.000+00:00", 300, "2026-01-01/00-00-00"),
        ("2024-02-29T12:04:59.999+00:00", 300, "2024-02-29/12-00-00"),
        ("1970-01-01T00:00:00.000+00:00", 300, "1970-01-01/00-00-00"),
        ("1969-12-31T23:59:59.999+00:00", 300, "1969-12-31/23-55-00"),
        ("0001-01-01T00:00:00.000+00:00", 300, "0001-01-01/00-00-00"),
        ("9999-12-31T23:59:59.000+00:00", 300, "9999-12-31/23-55-00"),
        ("2026-07-01T12:34:56.789+00:00", 86_400, "2026-07-01/00-00-00"),
        ("2026-07-01T12:34:56.789+00:00", 1, "2026-07-01/12-34-56"),
    ],
)
def test_an_entry_belongs_to_the_window_of_its_own_time(
    moment: str, window_seconds: int, expected: str
) -> None:
    timestamp_ms = int(datetime.fromisoformat(moment).timestamp() * 1000)
    start = window_start(timestamp_ms, window_seconds)
    assert object_name(start, QUEUE_ID, 1, 1, MD5).startswith(f"{expected}-")


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(DIVISORS))
def test_any_time_has_a_window_and_a_name(timestamp_ms: int, window_seconds: int) -> None:
    start = window_start(timestamp_ms, window_seconds)
    assert start % window_seconds == 0
    assert NAME.fullmatch(object_name(start, QUEUE_ID, 1, 1, MD5))
    seconds = utc_moment(timestamp_ms).timestamp()
    assert start <= seconds < start + window_seconds


@pytest.mark.parametrize("window_seconds", [0, -300, 7, 86_399, 172_800])
def test_a_window_that_would_straddle_midnight_is_refused(window_seconds: int) -> None:
    with pytest.raises(ValueError, match="divisor of 86400"):
        check_window(window_seconds)


def test_the_content_md5_is_the_headers_form() -> None:
    assert Batch(1, 1, "", MD5, 4, None).content_md5 == "hBotaJrYa9FhFEdFPCLG/A=="


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=40),
    st.integers(1, 20),
    st.lists(st.integers(0, 6), max_size=6),
)
def test_a_living_owner_seals_what_is_cut_from_the_whole_file(
    rows: list[tuple[int, int]], max_bytes: int, steps: list[int]
) -> None:
    """Rows arrive one by one, and at some moments whatever is finished by then is sealed."""
    tail, sealed_to, found = Tail(lambda: Run(300, max_bytes, HEAD_BYTES)), 0, []

    def seal(limit: int) -> None:
        nonlocal sealed_to
        for first, last in cuts(rows[sealed_to:limit], max_bytes, sealed_to + 1):
            size = HEAD_BYTES + sum(size for _, size in rows[first - 1 : last])
            tail.sealed(Batch(first, last, "", MD5, size, None), seq)
            found.append((first, last))
            sealed_to = last

    for seq, (window, size) in enumerate(rows, 1):
        tail.add(seq, window * 300_000, size, now=0.0)
        if seq in steps:
            seal((tail.first or seq + 1) - 1)
    seal(len(rows))
    assert found == list(cuts(rows, max_bytes, 1))


def cuts(rows: list[tuple[int, int]], max_bytes: int, first: int) -> Iterator[tuple[int, int]]:
    """The ranges into which `rows` of (window, size) are cut."""
    run = Run(300, max_bytes, HEAD_BYTES)
    for seq, (window, size) in enumerate(rows, first):
        if not run.add(window * 300_000, size):
            yield seq - run.rows, seq - 1
            run = Run(300, max_bytes, HEAD_BYTES)
            run.add(window * 300_000, size)
    if run.rows:
        yield first + len(rows) - run.rows, first + len(rows) - 1


def sealed(first: int, last: int, size_bytes: int) -> Batch:
    return Batch(first, last, "", MD5, size_bytes, None)


def test_a_run_is_finished_by_a_row_of_another_window_or_by_the_monotonic_clock() -> None:
    tail = Tail(lambda: Run(300, 1000, 0))
    assert not tail.is_aged(1e9)
    tail.add(1, 0, 10, now=100.0)
    tail.add(2, 299_999, 10, now=110.0)
    assert tail.first == 1
    assert not tail.is_aged(399.9)
    assert tail.is_aged(400.0)
    tail.add(3, 300_000, 5, now=120.0)
    assert tail.first == 3
    assert not tail.is_aged(400.0)


def test_a_clock_that_goes_back_begins_a_new_run() -> None:
    tail = Tail(lambda: Run(300, 1000, 0))
    for seq, timestamp_ms in enumerate((300_000, 0, 300_001), 1):
        tail.add(seq, timestamp_ms, 1, now=float(seq))
        assert tail.first == seq


def test_rows_that_came_while_a_run_was_sealed_are_a_run_of_its_age() -> None:
    tail = Tail(lambda: Run(300, 25, HEAD_BYTES))
    tail.add(1, 0, 10, now=0.0)
    tail.add(2, 0, 10, now=50.0)
    tail.sealed(sealed(1, 1, HEAD_BYTES + 10), newest=2)
    assert tail.first == 2
    assert tail.is_aged(300.0)
    tail.add(3, 0, 25 - HEAD_BYTES - 10, now=60.0)
    assert tail.first == 2
    tail.add(4, 0, 1, now=70.0)
    assert tail.first == 4
    tail.sealed(sealed(2, 3, 25), newest=4)
    assert tail.first == 4
    tail.sealed(sealed(4, 4, HEAD_BYTES + 1), newest=4)
    assert tail.first is None


def test_replaced_rows_of_another_size_do_not_confuse_the_run() -> None:
    tail = Tail(lambda: Run(300, 1000, 0))
    for seq in (1, 2, 3):
        tail.add(seq, 0, 10, now=0.0)
    tail.sealed(sealed(1, 2, 500), newest=3)
    assert tail.first == 3
    tail.add(4, 0, 1000, now=0.0)
    assert tail.first == 3
