"""Loads raw objects into the table `loaded`, and counts what in them is no entry."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_llm_proxy.archive.sources.capture import BROKEN_LINES
from open_llm_proxy.archive.sources.source import (
    LogObject,
    LogSource,
    LogSourceError,
    Progress,
)
from open_llm_proxy.archive.tables.views import COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FILES_AT_ONCE = 4_000
MAX_OBJECT_BYTES = 64 * 1024 * 1024
UNREADABLE_OBJECTS = "objects that cannot be read as lines of JSON"
INSTALL = "DuckDB is not installed: pip install 'open-llm-proxy[archive]'"

NO_SPACE = (
    f"the disk of {tempfile.gettempdir()} is full: set TMPDIR to a folder with more space, or "
    "choose fewer days with --since and --until"
)


def duckdb_module() -> Any:
    """DuckDB; raises `LogSourceError` with what to install."""
    try:
        import duckdb
    except ImportError:
        raise LogSourceError(INSTALL) from None
    return duckdb


class Loader:
    """Fills the table `loaded` with the rows of objects, their heads left out.

    A line that is no JSON object is a row without a type. An object that cannot be read costs its
    own rows only, and is counted.
    """

    def __init__(
        self,
        connection: "DuckDBPyConnection",
        source: LogSource,
        columns: Sequence[str],
        only: str | None,
    ) -> None:
        self._connection = connection
        self._source = source
        self._columns = ", ".join(f"{name}: '{COLUMNS[name]}'" for name in columns)
        selected = (name if name in columns else f"NULL::{COLUMNS[name]}" for name in COLUMNS)
        self._selected = ", ".join(selected)
        self._condition = "type IS DISTINCT FROM 'schema'"
        if only is not None:
            self._condition += f" AND (type IS NULL OR ({only}))"
        types = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
        connection.execute(f"CREATE TABLE loaded AS SELECT {types}, NULL::VARCHAR AS file LIMIT 0")

    def load_objects(self, objects: Sequence[LogObject], progress: Progress | None = None) -> None:
        """Add the rows of these objects."""
        for start in range(0, len(objects), FILES_AT_ONCE):
            files = self._source.local(objects[start : start + FILES_AT_ONCE], progress)
            self._load([path for _, path in files])
        self._take_out_broken_lines()

    def load_file(self, path: Path) -> None:
        """Add the rows of a file of lines."""
        self._load([path])
        self._take_out_broken_lines()

    def _load(self, paths: list[Path]) -> None:
        """Files that DuckDB refuses are found by halves."""
        if not paths:
            return
        duckdb = duckdb_module()
        try:
            self._connection.execute(
                f"INSERT INTO loaded SELECT {self._selected}, filename FROM "
                f"read_ndjson({path_list(paths)}, columns = {{{self._columns}}}, filename = true, "
                f"ignore_errors = true, maximum_object_size = {MAX_OBJECT_BYTES}) "
                f"WHERE {self._condition}"
            )
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            if "No space left" in str(error):
                raise LogSourceError(NO_SPACE) from None
            if len(paths) == 1:
                reason = str(error).splitlines()[0]
                self._source.problems.add(UNREADABLE_OBJECTS, f"{paths[0]}: {reason}")
                return
            middle = len(paths) // 2
            self._load(paths[:middle])
            self._load(paths[middle:])

    def _take_out_broken_lines(self) -> None:
        rows = self._connection.execute(
            "SELECT count(*), min(file) FROM loaded WHERE type IS NULL HAVING count(*) > 0"
        ).fetchall()
        for count, file in rows:
            self._source.problems.add(BROKEN_LINES, f"in {file}", count)
            self._connection.execute("DELETE FROM loaded WHERE type IS NULL")


def path_list(paths: Sequence[Path]) -> str:
    """Paths as a SQL list of literals, none of which is taken for a pattern."""
    return "[" + ", ".join(f"'{_escaped(path)}'" for path in paths) + "]"


def _escaped(path: Path) -> str:
    return re.sub(r"[][*?]", r"[\g<0>]", str(path)).replace("'", "''")
