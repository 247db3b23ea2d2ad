"""Loads raw objects into the table `loaded`, and counts what in them is no entry."""

import errno
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from open_llm_proxy.archive.sources.capture import BROKEN_LINES
from open_llm_proxy.archive.sources.lines import CHUNK_BYTES, MAX_LINE_BYTES
from open_llm_proxy.archive.sources.source import (
    NO_DAY,
    LogObject,
    LogSource,
    LogSourceError,
    Progress,
)
from open_llm_proxy.archive.tables.views import COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FILES_AT_ONCE = 4_000
BYTES_AT_ONCE = 32 * 1024 * 1024
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

    DuckDB needs a millisecond for a file, whatever its size, so small objects are joined to one
    file first, with the object's name in each line. A line that is no entry costs nothing but
    itself, an object that cannot be read its own rows only, and both are counted.
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
            for batch in _batches(files):
                self._load(batch)

    def load_file(self, path: Path) -> None:
        """Add the rows of a file of lines."""
        self._load([(LogObject(NO_DAY, path.name, str(path)), path)])

    def _load(self, files: list[tuple[LogObject, Path]]) -> None:
        try:
            with tempfile.NamedTemporaryFile(prefix="open-llm-proxy-", suffix=".jsonl") as joined:
                for item, path in files:
                    self._join(item, path, joined)
                joined.flush()
                self._insert(Path(joined.name))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LogSourceError(NO_SPACE) from None
            raise
        broken = self._take_out_broken_lines()
        if broken:
            self._source.problems.add(BROKEN_LINES, _first_broken(files), broken)

    def _join(self, item: LogObject, path: Path, joined: "IO[bytes]") -> None:
        """Append an object's lines, each with the object's name as its first field."""
        name = json.dumps(f"{item.day}/{item.name}" if item.day else item.name)
        start = b'{"object":' + name.encode() + b","
        try:
            with open(path, "rb") as file:
                # By pieces that end with a line, as a captured stream may be of any size.
                most = min(BYTES_AT_ONCE, max(item.size_bytes + 1, CHUNK_BYTES))
                while piece := file.read(most):
                    piece += file.readline()
                    if piece.startswith(b"{"):
                        joined.write(start)
                        piece = piece[1:]
                    joined.write(piece.replace(b"\n{", b"\n" + start))
                    if not piece.endswith(b"\n"):
                        joined.write(b"\n")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._source.problems.add(UNREADABLE_OBJECTS, f"{path}: {error.strerror}")

    def _insert(self, path: Path) -> None:
        duckdb = duckdb_module()
        try:
            self._connection.execute(
                f"INSERT INTO loaded SELECT {self._selected}, object FROM "
                f"read_ndjson({path_list([path])}, columns = {{object: 'VARCHAR', "
                f"{self._columns}}}, ignore_errors = true, "
                f"maximum_object_size = {2 * MAX_LINE_BYTES}) WHERE {self._condition}"
            )
        except duckdb.IOException as error:
            if "No space left" in str(error):
                raise LogSourceError(NO_SPACE) from None
            raise
        except duckdb.OutOfMemoryException:
            raise LogSourceError(NO_SPACE) from None

    def _take_out_broken_lines(self) -> int:
        rows = self._connection.execute("SELECT count(*) FROM loaded WHERE type IS NULL").fetchall()
        broken: int = rows[0][0]
        if broken:
            self._connection.execute("DELETE FROM loaded WHERE type IS NULL")
        return broken


def _batches(files: Sequence[tuple[LogObject, Path]]) -> Iterator[list[tuple[LogObject, Path]]]:
    """Files of so many bytes together; a larger one is by itself."""
    batch: list[tuple[LogObject, Path]] = []
    size_bytes = 0
    for item, path in files:
        if batch and size_bytes + item.size_bytes > BYTES_AT_ONCE:
            yield batch
            batch, size_bytes = [], 0
        batch.append((item, path))
        size_bytes += item.size_bytes
    if batch:
        yield batch


def _first_broken(files: Sequence[tuple[LogObject, Path]]) -> str:
    """An object that has a line which is no entry."""
    for item, path in files:
        try:
            with open(path, "rb") as file:
                for line in file:
                    start = msgspec.json.decode(line, type=_Typed) if line.strip() else None
                    if start is not None and start.type is None:
                        return f"in {item.key}"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return f"in {item.key}"
        except OSError:
            continue
    return ""


class _Typed(msgspec.Struct):
    type: str | None = None


def path_list(paths: Sequence[Path]) -> str:
    """Paths as a SQL list of literals, none of which is taken for a pattern."""
    return "[" + ", ".join(f"'{_escaped(path)}'" for path in paths) + "]"


def _escaped(path: Path) -> str:
    return re.sub(r"[][*?]", r"[\g<0>]", str(path)).replace("'", "''")
