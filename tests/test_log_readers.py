"""The parts that read the log: lines out of streams, rows out of lines, sums out of rows."""

import json
import random
import statistics
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from open_llm_proxy.archive.rows import LogRow, RowReader
from open_llm_proxy.archive.sources import CHUNK_BYTES, MAX_LINE_BYTES, split_lines
from open_llm_proxy.archive.usage_stats import MAX_GROUPS, Quantiles, UsageStats


def test_quantiles_are_right_to_two_percent() -> None:
    chance = random.Random(5)
    values = [chance.lognormvariate(7, 1.5) for _ in range(20_001)]
    quantiles = Quantiles()
    for value in values:
        quantiles.add(value)
    for share in (0.5, 0.95, 0.99):
        exact = statistics.quantiles(values, n=1000)[round(share * 1000) - 1]
        found = quantiles.quantile(share)
        assert found is not None and abs(found / exact - 1) < 0.03
    assert Quantiles().quantile(0.5) is None


def test_stats_need_no_more_memory_for_more_rows() -> None:
    def row(number: int) -> LogRow:
        return LogRow(
            timestamp="2024-05-01T10:00:00.000Z",
            type="response",
            outcome="ok",
            origin=f"https://app-{number}.example",
            latency_ms=number % 100_000,
            content="x" * 1000,
        )

    stats = UsageStats()
    for number in range(2 * MAX_GROUPS):
        stats.add(row(number))
    tracemalloc.start()
    for number in range(2 * MAX_GROUPS, 20 * MAX_GROUPS):
        stats.add(row(number))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 200_000
    groups = stats.groups()
    assert len(groups) == MAX_GROUPS + 1 and groups[0].origin == "(others)"
    assert sum(group.calls for group in groups) == 20 * MAX_GROUPS


def chunks_of(data: bytes, size: int) -> Callable[[int], bytes]:
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda _: next(pieces, b"")


@pytest.mark.parametrize("size", [1, 7, CHUNK_BYTES])
def test_lines_are_split_whatever_the_chunks(size: int) -> None:
    data = b"one\n\ntwo\r\nthree \xe2\x80\xa8 still three\nrest"
    assert list(split_lines(chunks_of(data, size))) == data.split(b"\n")
    assert list(split_lines(chunks_of(b"one\n", size))) == [b"one"]
    assert list(split_lines(chunks_of(b"", size))) == []


def test_a_line_beyond_any_entry_takes_no_memory_and_the_next_ones_are_read() -> None:
    def read() -> Iterator[bytes]:
        yield b"first\n"
        for _ in range(400):
            yield b"x" * CHUNK_BYTES
        yield b"\nlast\n"

    pieces = read()
    tracemalloc.start()
    found = list(split_lines(lambda _: next(pieces, b"")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [b"first", b"last"]
    assert peak < 4 * MAX_LINE_BYTES < 400 * CHUNK_BYTES


def test_rows_of_other_versions_are_read_as_far_as_they_are_known() -> None:
    reader = RowReader()
    newer: dict[str, Any] = {"timestamp": "t", "type": "note", "new": {"a": [1]}, "outcome": "odd"}
    row = reader.row(json.dumps(newer).encode())
    assert row is not None and (row.type, row.outcome) == ("note", "odd")
    assert reader.row(b'{"timestamp": "t"}') is None
    assert reader.skipped == 1
