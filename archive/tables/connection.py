"""A source as DuckDB views: `with open_tables(source, filters) as tables: tables.rows("SELECT …")`.

Raw objects are loaded once into a temporary database, so that questions are quick, memory is
bounded, and what cannot be read is known and counted before the first answer. Compacted days are
read where they are; objects that they were not made of are added to them. So a source may be raw,
compacted or anything between, day by day.

Calls may end on the day after the last one that is asked for: of that day the responses in the
first hours are read too, and nothing else of it is shown.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_llm_proxy.archive.sources.source import (
    LogObject,
    LogSource,
    Progress,
)
from open_llm_proxy.archive.tables.filters import Filters
from open_llm_proxy.archive.tables.loading import Loader, duckdb_module, path_list
from open_llm_proxy.archive.tables.plan import Plan, planned
from open_llm_proxy.archive.tables.views import COLUMNS, ROLLUP, SESSIONS, turns_sql

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "2GB"


@dataclass(frozen=True, slots=True)
class Tables:
    """The views `entries`, `turns`, `session_rollup` and `sessions`, filtered.

    `all_entries` and `all_turns` are the same of all calls of these days; `all_rows` are all rows
    that were read, some of the following day among them.
    `connection` may be used from one thread; further threads take `connection.cursor()` each. What
    `loader` adds later is in the views at once. `listed` are the objects that they show.
    """

    connection: "DuckDBPyConnection"
    loader: Loader
    days: list[str]
    listed: set[LogObject]

    def rows(self, statement: str, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """What a statement finds, as rows with names."""
        result = self.connection.execute(statement, values or {})
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@contextmanager
def open_tables(
    source: LogSource,
    filters: Filters | None = None,
    *,
    tables: LogSource | None = None,
    columns: Sequence[str] | None = None,
    only: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Tables]:
    """Views over a source's days, as far as the filters need them.

    `tables` is where compacted days lie, if not in the source itself. Of raw objects only `columns`
    are loaded, the others are null; what the filters need is always loaded. `only` is a condition
    on the rows that are needed at all, such as ``session_id = 'a'``.

    Raises `LogSourceError`, also where there is no DuckDB.
    """
    filters = filters or Filters()
    duckdb = duckdb_module()
    with tempfile.TemporaryDirectory(prefix="open-llm-proxy-") as folder:
        connection = duckdb.connect()
        try:
            connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            connection.execute(f"SET temp_directory = '{folder}'")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute("SET autoinstall_known_extensions = false")
            plan = planned(connection, source, tables or source, filters, progress)
            wanted = _needed(columns, filters)
            loader = Loader(connection, source, wanted, only)
            loader.load_objects(plan.objects, progress)
            _make_views(connection, plan, filters, only)
            yield Tables(connection, loader, plan.days, plan.listed)
        finally:
            connection.close()


def _needed(columns: Sequence[str] | None, filters: Filters) -> list[str]:
    """The columns to load, in order."""
    if columns is None or filters.needs_texts:
        return list(COLUMNS)
    always = {"queue_id", "seq", "timestamp", "type", "request_id", "session_id", "origin"}
    always |= {"client", "key_name", "model", "outcome", "latency_ms"}
    return [name for name in COLUMNS if name in always or name in columns]


def _make_views(
    connection: "DuckDBPyConnection", plan: Plan, filters: Filters, only: str | None
) -> None:
    everything = [path for paths in plan.entries.values() for path in paths]
    names = ", ".join(COLUMNS)
    connection.execute(
        f"CREATE VIEW all_rows AS SELECT {names}, file AS object, timestamp::DATE AS day "
        f"FROM ({_rows_sql(everything, only)})"
    )
    connection.execute(f"CREATE VIEW joined_rows AS {_rows_sql(plan.joined_entries, only)}")
    shown_days = plan.shown_days("day")
    connection.execute(f"CREATE VIEW all_entries AS SELECT * FROM all_rows WHERE {shown_days}")
    days = ", ".join(f"DATE '{day}'" for day in plan.turns)
    is_joined = f"day NOT IN ({days})" if days else "true"
    turns = turns_sql("joined_rows", f"{is_joined} AND {shown_days}")
    if plan.turns:
        files = path_list([path for paths in plan.turns.values() for path in paths])
        turns += (
            f"\nUNION ALL BY NAME SELECT * FROM read_parquet({files}, union_by_name = true, "
            "hive_partitioning = true, hive_types = {'day': DATE}) "
            f"WHERE {only or 'true'}"
        )
    connection.execute(f"CREATE VIEW all_turns AS {turns}")
    _make_filtered_views(connection, filters)


def _rows_sql(parquet: Sequence[Path], only: str | None) -> str:
    """Every row of the loaded objects and of these files."""
    names = ", ".join(COLUMNS)
    loaded = f"SELECT {names}, file FROM loaded WHERE type IS NOT NULL"
    if not parquet:
        return loaded
    return (
        f"{loaded} UNION ALL SELECT {names}, object AS file FROM "
        f"read_parquet({path_list(parquet)}, union_by_name = true) WHERE {only or 'true'}"
    )


def _make_filtered_views(connection: "DuckDBPyConnection", filters: Filters) -> None:
    chosen = filters.literal_where()
    connection.execute(f"CREATE VIEW turns AS SELECT * FROM all_turns WHERE {chosen}")
    rows = filters.only_time.literal_where("timestamp")
    sessions = "all_turns"
    if filters.chooses_calls:
        rows += " AND request_id IN (SELECT request_id FROM turns)"
    if chosen != "true":
        # A session is shown whole where one of its turns is chosen.
        sessions = "(SELECT * FROM all_turns WHERE session_key IN (SELECT session_key FROM turns))"
    connection.execute(f"CREATE VIEW entries AS SELECT * FROM all_entries WHERE {rows}")
    connection.execute(f"CREATE VIEW session_rollup AS {ROLLUP.format(turns=sessions)}")
    connection.execute(f"CREATE VIEW sessions AS {SESSIONS.format(turns=sessions)}")
