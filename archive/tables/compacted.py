"""What a compacted day is, so that its writer and its readers agree.

``<root>/entries/day=2026-04-07/*.parquet`` and the same for `turns`, `sessions` and
`session_rollup`: plain Hive-partitioned Parquet without a column `day`, which the folder's name
gives. The names of the objects that a file was made of stand in the file itself, under the key
`inputs` of its metadata. So one rename or one PUT publishes both, readers see the old or the new
file and what it holds, and an object that arrives later is one that no file names.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from open_llm_proxy.archive.sources.source import LogObject

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TABLES = ("entries", "turns", "sessions", "session_rollup")
INPUTS = "inputs"


def input_name(item: LogObject) -> str:
    """How an object is named in `inputs`: its day and its name, wherever the root lies."""
    return f"{item.day}/{item.name}"


def inputs_text(items: Iterable[LogObject]) -> str:
    """The value of `inputs` for a file that is made of these objects."""
    return "\n".join(sorted(map(input_name, items)))


def recorded_inputs(connection: "DuckDBPyConnection", paths: Sequence[Path]) -> frozenset[str]:
    """The objects that all of these files were made of; nothing for files of another writer."""
    found: list[frozenset[str]] = []
    for path in paths:
        rows = connection.execute(
            "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = ?",
            [str(path), INPUTS],
        ).fetchall()
        found.append(frozenset(name for (text,) in rows for name in text.split("\n") if name))
    return frozenset.intersection(*found) if found else frozenset()
