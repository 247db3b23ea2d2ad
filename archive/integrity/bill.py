"""Our token sums beside a provider's bill, by day and model."""

from pathlib import Path
from typing import Any

from open_llm_proxy.archive.sources.source import LogSourceError
from open_llm_proxy.archive.tables.connection import Tables
from open_llm_proxy.archive.tables.filters import literal
from open_llm_proxy.archive.tables.loading import duckdb_module

COLUMNS = ("model", "prompt_tokens", "completion_tokens", "total_tokens", "cost_usd")
"""What has to be loaded of raw objects for it."""

_NAMES = {
    "day": ("day", "date", "usage_date", "timestamp", "start_time"),
    "model": ("model", "model_id", "model_name"),
    "prompt_tokens": ("prompt_tokens", "input_tokens", "n_context_tokens_total"),
    "completion_tokens": ("completion_tokens", "output_tokens", "n_generated_tokens_total"),
    "total_tokens": ("total_tokens", "tokens"),
    "cost_usd": ("cost_usd", "cost", "amount_usd", "amount", "usage"),
}


def against_bill(tables: Tables, bill: Path) -> list[dict[str, Any]]:
    """A row for each day and model: tokens and cost of the log, of the bill, and the difference.

    `bill` is a CSV file with a day, a model and some of tokens in, out, both, and cost. Raises
    `LogSourceError`.
    """
    duckdb = duckdb_module()
    source = f"read_csv({literal(bill)}, header = true)"
    try:
        described = tables.rows(f"DESCRIBE SELECT * FROM {source}")
        given = {row["column_name"].strip().lower(): row["column_name"] for row in described}
        columns = {
            name: next((given[known] for known in names if known in given), None)
            for name, names in _NAMES.items()
        }
        return tables.rows(_statement(source, columns, bill))
    except duckdb.Error as error:
        raise LogSourceError(
            f"{bill} cannot be read as CSV: {str(error).splitlines()[0]}"
        ) from None


def _statement(source: str, columns: dict[str, str | None], bill: Path) -> str:
    quoted = {
        name: '"' + column.replace('"', '""') + '"'
        for name, column in columns.items()
        if column is not None
    }
    sums = [name for name in COLUMNS[1:] if name in quoted]
    if "day" not in quoted or "model" not in quoted or not sums:
        raise LogSourceError(
            f"{bill} needs a column day, a column model and one of {', '.join(COLUMNS[1:])}"
        )
    billed = ", ".join(f"sum({quoted[name]}) AS {name}" for name in sums)
    logged = ", ".join(f"sum({name}) AS {name}" for name in sums)
    compared = ", ".join(
        f"l.{name} AS logged_{name}, b.{name} AS billed_{name}, "
        f"coalesce(b.{name}, 0) - coalesce(l.{name}, 0) AS difference_{name}"
        for name in sums
    )
    return f"""
WITH billed AS (SELECT try_cast({quoted["day"]} AS DATE) AS day, {quoted["model"]} AS model,
                       {billed}
                FROM {source} GROUP BY ALL),
logged AS (SELECT day, model, {logged}, count(*) FILTER (total_tokens IS NULL AND outcome <> 'open')
               AS calls_without_tokens FROM turns GROUP BY ALL)
SELECT coalesce(l.day, b.day) AS day, coalesce(l.model, b.model) AS model, {compared},
       l.calls_without_tokens
FROM logged l FULL JOIN billed b ON l.day = b.day AND l.model = b.model
ORDER BY ALL"""
