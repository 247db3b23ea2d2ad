"""Deletes raw objects whose rows the published table gives back.

The table is read where it was published. An object is deleted if the table names it among its
inputs and has exactly its rows; rows are compared by count and by two sums of their hashes, so that
a day of any size takes little memory. What differs is left, and said.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from open_llm_proxy.archive.compaction.day import recorded_of
from open_llm_proxy.archive.compaction.destination import Destination
from open_llm_proxy.archive.sources.source import LogObject, LogSource
from open_llm_proxy.archive.tables.compacted import input_name
from open_llm_proxy.archive.tables.loading import Loader, duckdb_module, path_list
from open_llm_proxy.archive.tables.views import COLUMNS

OBJECTS_AT_ONCE = 200
_SUMS = (
    f"count(*), bit_xor(hash({', '.join(COLUMNS)})), sum(hash({', '.join(COLUMNS)}) % 1000000007)"
)


@dataclass(frozen=True, slots=True)
class RawResult:
    """How many objects of a day were deleted, and which were left as the table differs."""

    deleted: int
    differing: list[str]


def delete_raw(
    source: LogSource, originals: Destination, destination: Destination, day: str
) -> RawResult:
    """Delete a day's objects that its table holds. Raises `LogSourceError`.

    `originals` is the place of the objects, `source` reads it.
    """
    present = destination.source()
    held = recorded_of(present, "entries", day) or frozenset()
    items = [item for item in source.objects(day) if input_name(item) in held]
    deleted, differing = 0, []
    for start in range(0, len(items), OBJECTS_AT_ONCE):
        for item, is_equal in _compared(source, present, day, items[start:][:OBJECTS_AT_ONCE]):
            if is_equal:
                originals.delete(item)
                deleted += 1
            else:
                differing.append(item.key)
    return RawResult(deleted, differing)


def _compared(
    source: LogSource, present: LogSource, day: str, items: list[LogObject]
) -> Iterator[tuple[LogObject, bool]]:
    files = [path for _, path in present.local(present.parquet("entries", day))]
    with duckdb_module().connect() as connection:
        Loader(connection, source, list(COLUMNS), None).load_objects(items)
        raw = connection.execute(
            f"SELECT split_part(file, '/', -1), {_SUMS} FROM loaded GROUP BY 1"
        ).fetchall()
        names = [item.name for item in items]
        kept = connection.execute(
            f"SELECT split_part(object, '/', -1), {_SUMS} FROM read_parquet({path_list(files)}) "
            "WHERE list_contains(?, split_part(object, '/', -1)) GROUP BY 1",
            [names],
        ).fetchall()
    before, after = ({name: sums for name, *sums in rows} for rows in (raw, kept))
    for item in items:
        yield item, item.name in before and before[item.name] == after.get(item.name)
