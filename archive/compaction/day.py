"""One day's objects become four Parquet files.

A day is built of what its tables hold already and of the objects that they do not name, so raw
objects that were deleted are not missed, and one that arrives late is added by the next run. Each
file names the objects that it was made of (see tables/compacted.py); a day whose files name all
that there are is left as it is, so a second run does nothing.

Nothing is published of a day in which something cannot be read, or an object is not what its name
says: the files would hide that it is missing.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from open_llm_proxy.archive.compaction.destination import (
    Destination,
    TableChangedError,
    published,
)
from open_llm_proxy.archive.integrity.report import changed_objects
from open_llm_proxy.archive.sources.source import (
    LogObject,
    LogSource,
    LogSourceError,
    Problems,
    Progress,
)
from open_llm_proxy.archive.tables.compacted import (
    INPUTS,
    TABLES,
    input_name,
    recorded_inputs,
)
from open_llm_proxy.archive.tables.connection import Tables, open_tables
from open_llm_proxy.archive.tables.filters import Filters, literal
from open_llm_proxy.archive.tables.loading import NO_SPACE, duckdb_module
from open_llm_proxy.archive.tables.plan import (
    day_after,
    following_objects,
    is_following,
)
from open_llm_proxy.archive.tables.views import ROLLUP, SESSIONS

Outcome = Literal["compacted", "unchanged", "left"]
OPTIONS = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20000"
ATTEMPTS = 5
DAY_TURNS = "day_turns"


@dataclass(frozen=True, slots=True)
class DayResult:
    """What became of a day; `reason` says why it was left as it is."""

    day: str
    outcome: Outcome
    objects: int = 0
    rows: int = 0
    calls: int = 0
    reason: str | None = None


class EntriesOnly:
    """Compacted tables without their joined ones, which are to be made anew."""

    def __init__(self, tables: LogSource) -> None:
        self._tables = tables
        self.follows = tables.follows

    @property
    def name(self) -> str:
        return self._tables.name

    @property
    def problems(self) -> Problems:
        return self._tables.problems

    def days(self) -> list[str]:
        return self._tables.days()

    def objects(self, day: str) -> list[LogObject]:
        return self._tables.objects(day)

    def parquet(self, table: str, day: str) -> list[LogObject]:
        return self._tables.parquet(table, day) if table == "entries" else []

    def local(
        self, items: Sequence[LogObject], progress: Progress | None = None
    ) -> list[tuple[LogObject, Path]]:
        return self._tables.local(items, progress)


def compact_day(
    source: LogSource, destination: Destination, day: str, progress: Progress | None = None
) -> DayResult:
    """Bring a day's tables up to date. Raises `LogSourceError` where a place cannot be used.

    `source` is opened for this day alone: whatever could not be read of it leaves the day as it is.
    """
    for _ in range(ATTEMPTS):
        try:
            with _explained(day):
                return _compact_once(source, destination, day, progress)
        except TableChangedError:
            continue  # what the other run has published is read now
    return DayResult(day, "left", reason="other runs publish it all the time: let one of them end")


def _compact_once(
    source: LogSource, destination: Destination, day: str, progress: Progress | None
) -> DayResult:
    present = destination.source()
    replaced = {table: published(present, table, day) for table in TABLES}
    objects = source.objects(day)
    own = {input_name(item) for item in objects}
    held = {table: recorded_of(present, table, day) for table in TABLES}
    entries_of = held["entries"] or frozenset()
    known = own | entries_of
    after = recorded_of(present, "entries", day_after(day)) or frozenset()
    following = {input_name(item) for item in following_objects(source, day)}
    following |= {name for name in after if is_following(name)}
    needed = {table: known if table == "entries" else known | following for table in TABLES}
    is_current = all((names := held[t]) is not None and names >= needed[t] for t in TABLES)
    if (is_current or not known) and not (source.problems.is_short or present.problems.is_short):
        return DayResult(day, "unchanged", len(entries_of))
    begin = datetime.fromisoformat(day)
    filters = Filters(since=begin, until=begin + timedelta(days=1))
    opened = open_tables(source, filters, tables=EntriesOnly(present), progress=progress)
    with opened as tables, tempfile.TemporaryDirectory(prefix="open-llm-proxy-") as work:
        reason = _doubt(source, present, objects)
        if reason is not None:
            return DayResult(day, "left", len(objects), reason=reason)
        tables.connection.execute(
            f"CREATE TABLE {DAY_TURNS} AS SELECT * FROM all_turns WHERE day = DATE '{day}'"
        )
        counts = {}
        for table in TABLES:
            counts[table] = _write(tables, table, needed[table], Path(work, table))
        for table in TABLES:
            destination.publish(table, day, Path(work, table), replaced[table])
    return DayResult(day, "compacted", len(known), counts["entries"], counts["turns"])


@contextmanager
def _explained(day: str) -> Iterator[None]:
    """Turns what DuckDB raises for want of room into a sentence."""
    duckdb = duckdb_module()
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise LogSourceError(f"{day} does not fit into DuckDB's memory") from None
    except duckdb.IOException as error:
        if "No space left" not in str(error):
            raise
        raise LogSourceError(NO_SPACE) from None


def recorded_of(source: LogSource, table: str, day: str) -> frozenset[str] | None:
    """The objects that a day's table was made of; None where there is no such table."""
    files = [path for _, path in source.local(source.parquet(table, day))]
    if not files:
        return None
    with duckdb_module().connect() as connection:
        return recorded_inputs(connection, files)


def _doubt(source: LogSource, present: LogSource, objects: Iterable[LogObject]) -> str | None:
    """Why a day's rows cannot be trusted to be all of them."""
    changed = changed_objects(source, objects)
    if changed:
        return f"{changed[0]} is not what its name says: its bytes have another MD5"
    for problems in (source.problems, present.problems):
        if problems.is_short:
            return "; ".join(problems.sentences())
    return None


def _write(tables: Tables, table: str, inputs: Iterable[str], path: Path) -> int:
    turns = DAY_TURNS
    selected = {
        "entries": "SELECT * FROM all_entries ORDER BY queue_id, seq",
        "turns": f"SELECT * FROM {turns} ORDER BY started, queue_id, request_seq",
        "sessions": f"SELECT * FROM ({SESSIONS.format(turns='day_turns')}) ORDER BY started",
        "session_rollup": f"SELECT * FROM ({ROLLUP.format(turns='day_turns')}) "
        "ORDER BY session_key, turn_idx",
    }[table]
    metadata = literal("\n".join(sorted(inputs)))
    result = tables.connection.execute(
        f"COPY (SELECT * EXCLUDE (day) FROM ({selected})) TO {literal(path)} "
        f"({OPTIONS}, KV_METADATA {{{INPUTS}: {metadata}}})"
    ).fetchall()
    rows: int = result[0][0]
    return rows
