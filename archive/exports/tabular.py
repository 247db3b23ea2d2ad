"""The view `turns` as one file, Parquet or CSV."""

import json
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from open_llm_proxy.archive.sources.source import LogSourceError
from open_llm_proxy.archive.tables.connection import Tables
from open_llm_proxy.archive.tables.filters import literal
from open_llm_proxy.archive.tables.loading import duckdb_module, path_list

ROWS_AT_ONCE = 1000
OPTIONS = {
    "parquet": "FORMAT PARQUET, COMPRESSION ZSTD",
    "csv": "FORMAT CSV, HEADER true",
}


def write_table(
    tables: Tables,
    format_name: str,
    path: Path,
    redact: Callable[[object], object] | None,
    limit: int | None,
) -> int:
    """Write the calls that `tables` shows to a file; returns how many.

    Lists are JSON in CSV. Raises `LogSourceError`.
    """
    duckdb = duckdb_module()
    most = "" if limit is None else f" LIMIT {limit}"
    chosen = f"SELECT * FROM turns ORDER BY started, request_id{most}"
    with tempfile.TemporaryDirectory(prefix="open-llm-proxy-") as folder:
        if redact is not None:
            chosen = _redacted(tables, chosen, Path(folder, "redacted.jsonl"), redact)
        if format_name == "csv":
            chosen = (
                "SELECT * REPLACE (to_json(tool_calls)::VARCHAR AS tool_calls, "
                "to_json(tool_results_this_turn)::VARCHAR AS tool_results_this_turn) "
                f"FROM ({chosen})"
            )
        try:
            tables.connection.execute(
                f"COPY ({chosen}) TO {literal(path)} ({OPTIONS[format_name]})"
            )
        except duckdb.IOException as error:
            raise LogSourceError(f"{path} cannot be written: {error}") from None
    counted = f"SELECT count(*) AS calls FROM (SELECT 1 FROM turns{most})"
    written: int = tables.rows(counted)[0]["calls"]
    return written


def _redacted(tables: Tables, chosen: str, path: Path, redact: Callable[[object], object]) -> str:
    """Write the redacted rows to a file; returns the statement that reads them, typed alike."""
    described = tables.rows(f"DESCRIBE {chosen}")
    columns = ", ".join(f"{row['column_name']}: '{row['column_type']}'" for row in described)
    result = tables.connection.execute(chosen)
    names = [row["column_name"] for row in described]
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        while rows := result.fetchmany(ROWS_AT_ONCE):
            for row in rows:
                values = (str(cell) if isinstance(cell, date) else cell for cell in row)
                fields = redact(dict(zip(names, values, strict=True)))
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    return f"SELECT * FROM read_ndjson({path_list([path])}, columns = {{{columns}}})"
