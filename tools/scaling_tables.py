"""The arithmetic of docs/scaling.md: what users need, from the costs that were measured.

Rendered by render_performance.py from the same record.
"""

import math
from typing import Any

Fields = dict[str, Any]

# What a user is taken to do. An agent's step is a call; benchmarks/line_bytes.py has its rows.
CALLS_A_DAY = 200
BUSY_HOUR = 0.2  # of a day's calls
STREAM_SECONDS = 15
TOKENS_A_SECOND = 20
ROW_BYTES = {"summary": 5_348, "full": 45_202}
USERS = (10, 100, 1_000, 10_000, 100_000)

CORE_SHARE = 0.6  # of one core, so that delays stay short
WINDOWS_A_DAY = 288
OBJECT_BYTES = 16 * 1024 * 1024
READ_BYTES_A_SECOND = 200_000_000  # DuckDB, JSON, one core
FILE_SECONDS = 0.0001  # DuckDB, beside the bytes
GET_SECONDS, GETS_AT_A_TIME = 0.02, 16  # assumed of an S3 store


def costs(record: Fields) -> tuple[float, float] | None:
    """Seconds of a core that a call and a streamed token cost."""
    if "throughput" not in record or "streams" not in record:
        return None
    call = record["throughput"]["connections"]["32"]["durable"]["cpu_ms"] / 1e3
    *_, most = record["streams"]["paced"].values()
    return call, most["durable"]["cpu_us_a_token"] / 1e6


def pod(record: Fields) -> str:
    """What one pod does."""
    found = costs(record)
    if found is None:
        return "Not measured yet."
    call, token = found
    streams = CORE_SHARE / (token * TOKENS_A_SECOND)
    rows = (
        ("CPU a call", f"{call * 1e3:.2f} ms", "throughput, 32 connections"),
        ("CPU a streamed token", f"{token * 1e6:.0f} µs", "streams, the largest number"),
        ("calls/s at 60 % of a core", f"{CORE_SHARE / call:,.0f}", f"0.6 / {call * 1e3:.2f} ms"),
        (
            "streams of 20 tokens/s at 60 % of a core",
            f"{streams:,.0f}",
            f"0.6 / (20/s x {token * 1e6:.0f} µs)",
        ),
    )
    return markdown_table(("", "", "from"), rows)


def users(record: Fields) -> str:
    """Pods, objects and bytes as users grow."""
    found = costs(record)
    if found is None:
        return "Not measured yet."
    call, token = found
    heads = ("users", "calls a day", "calls/s, busiest hour", "streams at once", "pods",
             "MB a day, `summary`", "MB a day, `full`", "objects a day, `full`")  # fmt: skip
    rows = []
    for count in USERS:
        calls = count * CALLS_A_DAY
        rate = calls * BUSY_HOUR / 3600
        streams = rate * STREAM_SECONDS
        pods = math.ceil((rate * call + streams * TOKENS_A_SECOND * token) / CORE_SHARE)
        size = {name: calls * each for name, each in ROW_BYTES.items()}
        objects = pods * WINDOWS_A_DAY + size["full"] // OBJECT_BYTES
        rows.append(
            (f"{count:,}", f"{calls:,}", f"{rate:,.1f}", f"{streams:,.0f}", f"{pods}",
             *(f"{each / 1e6:,.0f}" for each in size.values()), f"{objects:,}")
        )  # fmt: skip
    return markdown_table(heads, rows)


def reading() -> str:
    """How long a query over 30 days reads raw objects of `summary`, on one core."""
    heads = ("users", "GB in 30 days", "objects in 30 days", "read from disk", "from an S3 store")
    rows = []
    for count in USERS:
        size = 30 * count * CALLS_A_DAY * ROW_BYTES["summary"]
        objects = 30 * WINDOWS_A_DAY + size // OBJECT_BYTES
        disk = size / READ_BYTES_A_SECOND + objects * FILE_SECONDS
        store = disk + objects * GET_SECONDS / GETS_AT_A_TIME
        rows.append(
            (
                f"{count:,}",
                f"{size / 1e9:,.1f}",
                f"{objects:,}",
                f"{disk:,.0f} s",
                f"{store:,.0f} s",
            )
        )
    return markdown_table(heads, rows)


def markdown_table(heads: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
