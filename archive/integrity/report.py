"""Whether anything is missing, per queue and day: the queue numbers its rows, so it can be told.

In each queue `seq` counts from 1 without a gap, every row is there once, every call has its two
rows, and each row lies in an object whose name is true of it. What may still come is `open` and not
missing: rows and responses of queues that are still at work, and calls that are younger than the
longest call takes to be answered and uploaded.

A gap belongs to the day of the row before it. What a queue wrote before the first day that is read
cannot be seen, and is not counted as missing.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from open_llm_proxy.archive.sources.source import LogObject, LogSource, LogSourceError
from open_llm_proxy.archive.tables.connection import Tables

SETTLING = timedelta(minutes=30)
"""A call may take 20 minutes, and its rows a window and some retries until they are uploaded."""

COLUMNS = ("queue_id", "seq", "timestamp", "type", "request_id")
"""What has to be loaded of raw objects for it."""

_NAME = r"(?:(\d{4}-\d\d-\d\d)/)?(\d\d-\d\d-\d\d)-([0-9a-f]{16})-(\d+)-(\d+)-[0-9a-f]{12}\.jsonl$"

_PREPARE = f"""
CREATE OR REPLACE TEMP TABLE checked AS
SELECT queue_id, seq, timestamp, day, type, request_id, object,
       max(timestamp) OVER (PARTITION BY queue_id) >= $settled AS is_at_work
FROM all_rows;
CREATE OR REPLACE TEMP TABLE names AS
SELECT object, regexp_extract(object, '{_NAME}', 1) AS day, regexp_extract(object, '{_NAME}', 2)
           AS window_start, regexp_extract(object, '{_NAME}', 3) AS queue_id,
       try_cast(regexp_extract(object, '{_NAME}', 4) AS BIGINT) AS first,
       try_cast(regexp_extract(object, '{_NAME}', 5) AS BIGINT) AS last
FROM (SELECT DISTINCT object FROM checked)
"""

_GAPS = """
CREATE OR REPLACE TEMP TABLE gaps AS
WITH numbered AS (
    SELECT queue_id, seq, min(day) AS day, bool_or(is_at_work) AS is_at_work FROM checked
    WHERE seq IS NOT NULL AND day <= $last_day GROUP BY queue_id, seq
), neighbours AS (
    SELECT *, lead(seq) OVER (PARTITION BY queue_id ORDER BY seq) AS next_seq,
           row_number() OVER (PARTITION BY queue_id ORDER BY seq) AS place FROM numbered
)
SELECT queue_id, day, seq + 1 AS first, next_seq - 1 AS last, is_at_work AS is_open
FROM neighbours WHERE next_seq > seq + 1
UNION ALL
SELECT queue_id, day, 1, seq - 1, is_at_work
FROM neighbours WHERE place = 1 AND seq > 1 AND day > $first_day
"""

_UNPAIRED = """
CREATE OR REPLACE TEMP TABLE unpaired AS
SELECT request_id, arg_min(queue_id, timestamp) AS queue_id, min(day) AS day,
       bool_or(type = 'request') AS has_request,
       (bool_or(is_at_work) OR min(timestamp) >= $settled) AS is_open
FROM checked WHERE type IN ('request', 'response') AND request_id IS NOT NULL
GROUP BY request_id
HAVING count(DISTINCT type) = 1 AND min(day) <= $last_day
   AND (bool_or(type = 'request') OR min(day) > $first_day)
"""

_REPORT = """
WITH rows AS (
    SELECT queue_id, day, count(*) AS rows, count(*) FILTER (type = 'request') AS calls,
           count(*) FILTER (type = 'damaged') AS damaged
    FROM checked WHERE day <= $last_day GROUP BY queue_id, day
), doubles AS (
    SELECT queue_id, day, sum(n - 1)::BIGINT AS doubles FROM (
        SELECT queue_id, min(day) AS day, count(*) AS n FROM checked
        WHERE seq IS NOT NULL GROUP BY queue_id, seq HAVING count(*) > 1
        UNION ALL
        SELECT min(queue_id), min(day), count(*) FROM checked
        WHERE type IN ('request', 'response') AND request_id IS NOT NULL
        GROUP BY request_id, type HAVING count(*) > 1 AND count(DISTINCT (queue_id, seq)) > 1
    ) GROUP BY queue_id, day
), gaps_of_days AS (
    SELECT queue_id, day,
           coalesce(sum(last - first + 1) FILTER (NOT is_open), 0)::BIGINT AS missing,
           coalesce(sum(last - first + 1) FILTER (is_open), 0)::BIGINT AS open_rows
    FROM gaps GROUP BY queue_id, day
), pairs AS (
    SELECT queue_id, day, count(*) FILTER (NOT is_open) AS unpaired,
           count(*) FILTER (is_open) AS open_calls
    FROM unpaired GROUP BY queue_id, day
), placed AS (
    SELECT c.queue_id, c.day, count(*) AS misplaced
    FROM checked c JOIN names n USING (object)
    WHERE n.queue_id <> '' AND c.day <= $last_day AND (
        c.queue_id IS DISTINCT FROM n.queue_id
        OR NOT coalesce(c.seq BETWEEN n.first AND n.last, false)
        OR (n.day <> '' AND strftime(c.timestamp, '%Y-%m-%d') IS DISTINCT FROM n.day)
        OR strftime(c.timestamp, '%H-%M-%S') < n.window_start)
    GROUP BY c.queue_id, c.day
)
SELECT queue_id, day, rows, calls, coalesce(missing, 0) AS missing, coalesce(doubles, 0) AS doubles,
       coalesce(unpaired, 0) AS unpaired, damaged, coalesce(misplaced, 0) AS misplaced,
       coalesce(open_calls, 0) AS open_calls, coalesce(open_rows, 0) AS open_rows
FROM rows LEFT JOIN doubles USING (queue_id, day) LEFT JOIN gaps_of_days USING (queue_id, day)
LEFT JOIN pairs USING (queue_id, day) LEFT JOIN placed USING (queue_id, day)
ORDER BY day, queue_id
"""


@dataclass(frozen=True, slots=True)
class Report:
    """`days` has a row for each queue and day, `gaps` one for each range of rows that is not there.

    `changed` are objects whose bytes are not those that their names promise.
    """

    days: list[dict[str, Any]]
    gaps: list[dict[str, Any]]
    unpaired: list[dict[str, Any]]
    changed: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, double or damaged; what is open does not count."""
        counted = ("missing", "doubles", "unpaired", "damaged", "misplaced")
        return not self.changed and not any(day[name] for day in self.days for name in counted)

    def total(self, name: str) -> int:
        """The sum over all days."""
        return sum(day[name] for day in self.days)


def integrity(
    tables: Tables, *, first_day: str | None, now: datetime | None = None,
    settling: timedelta = SETTLING, changed: Iterable[str] = (),
) -> Report:  # fmt: skip
    """Check the rows that `tables` has read.

    `first_day` is the first day of the log that is read, before which nothing can be told; None
    where all days are. Raises `LogSourceError` where the rows are not those of a queue.
    """
    now = now or datetime.now(UTC).replace(tzinfo=None)
    bounds = tables.rows("SELECT min(day) AS first, max(day) AS last FROM all_entries")[0]
    if bounds["first"] is None:
        return Report([], [], [], list(changed))
    if not tables.rows("SELECT 1 FROM all_entries WHERE seq IS NOT NULL LIMIT 1"):
        raise LogSourceError(
            "the rows have no seq: a process without a queue wrote them, nothing can be verified"
        )
    values = {
        "settled": now - settling,
        "first_day": first_day or bounds["first"],
        "last_day": bounds["last"],
    }
    for statement in (*_PREPARE.split(";"), _GAPS, _UNPAIRED):
        named = {name: value for name, value in values.items() if f"${name}" in statement}
        tables.connection.execute(statement, named)
    return Report(
        tables.rows(_REPORT, {"last_day": values["last_day"]}),
        tables.rows("FROM gaps ORDER BY day, queue_id, first"),
        tables.rows("FROM unpaired ORDER BY day, queue_id, request_id"),
        sorted(changed),
    )


def findings(report: Report) -> list[str]:
    """What was found, in sentences; the first says how it stands."""
    queues = len({day["queue_id"] for day in report.days})
    read = f"{report.total('rows'):,} rows of {queues:,} queues, {report.total('calls'):,} calls"
    is_open = (
        f"; {report.total('open_calls'):,} calls are open" if report.total("open_calls") else ""
    )
    if report.is_complete:
        return [f"complete: {read}{is_open}"]
    found = [f"not complete: {read}{is_open}"]
    found += [
        f"missing from queue {gap['queue_id']} on {gap['day']}: seq {gap['first']} to {gap['last']}"
        for gap in report.gaps
        if not gap["is_open"]
    ][:20]
    found += [
        f"no {'response' if pair['has_request'] else 'request'} to {pair['request_id']} of "
        f"{pair['day']}"
        for pair in report.unpaired
        if not pair["is_open"]
    ][:20]
    return (
        found
        + [f"the bytes of {key} are not those that its name says" for key in report.changed][:20]
    )


def changed_objects(source: LogSource, items: Iterable[LogObject]) -> list[str]:
    """The objects whose bytes do not have the MD5 that is in their names."""
    named = [item for item in items if item.named is not None]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda pair: _is_changed(*pair), source.local(named))
        return [item.key for item in found if item is not None]


def _is_changed(item: LogObject, path: Path) -> LogObject | None:
    name = item.named
    assert name is not None
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except FileNotFoundError:
        return None  # counted where it is read
    return None if digest.startswith(name.md5) else item
