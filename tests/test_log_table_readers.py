"""The tables of ``logs compact``, written by every DuckDB from 1.0 on, read by whatever reads
Hive-partitioned Parquet: equal totals over 30 days by DuckDB, Polars and Dask.

Part of `make test-duckdb`; only the installed DuckDB is asked in the everyday suite.
"""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from log_history import History, write_history
from test_log_versions import ROOT, VERSIONS, asked, python_with

DAYS = 30
TOTALS = """SELECT count(*) AS calls, count(DISTINCT day) AS days,
    sum(total_tokens)::BIGINT AS tokens, round(sum(cost_usd), 6) AS cost,
    count(*) FILTER (outcome <> 'ok' AND outcome <> 'open') AS failed,
    count(DISTINCT session_key) AS sessions FROM {}"""
POLARS = """
import polars as pl
turns = pl.scan_parquet("{0}/turns/*/*.parquet", hive_partitioning=True)
failed = ~pl.col("outcome").is_in(["ok", "open"])
found = turns.select(
    calls=pl.len(), days=pl.col("day").n_unique(), tokens=pl.col("total_tokens").sum(),
    cost=pl.col("cost_usd").sum().round(6), failed=failed.sum(),
    sessions=pl.col("session_key").n_unique(),
).collect().to_dicts()[0]
rollup = pl.scan_parquet("{0}/session_rollup/*/*.parquet", hive_partitioning=True)
found = [found, rollup.select(pl.col("tokens").sum()).collect().item()]
"""
DASK = """
import dask
import dask.dataframe as dd
dask.config.set(scheduler="synchronous")
turns = dd.read_parquet("{0}/turns")
failed = ~turns["outcome"].isin(["ok", "open"])
calls, days, tokens, cost, fails, sessions = dask.compute(
    turns["model"].size, turns["day"].nunique(), turns["total_tokens"].sum(),
    turns["cost_usd"].sum(), failed.sum(), turns["session_key"].nunique(),
)
found = dict(calls=int(calls), days=int(days), tokens=int(tokens), cost=round(float(cost), 6),
             failed=int(fails), sessions=int(sessions))
found = [found, int(dd.read_parquet("{0}/session_rollup")["tokens"].sum().compute())]
"""


def compacted(python: str, logs: Path, tables: Path) -> dict[str, Any]:
    """Let a Python compact all days; what it says that it found."""
    packages = sysconfig.get_paths()["purelib"]
    command = (python, str(ROOT / "tests" / "compact_days.py"), packages, str(logs), str(tables))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def hive(tables: Path, name: str) -> str:
    return f"read_parquet('{tables}/{name}/*/*.parquet', hive_partitioning = true)"


@pytest.mark.parametrize("packages", VERSIONS)
def test_every_version_compacts_and_reads_what_it_has_compacted(
    packages: str, tmp_path: Path
) -> None:
    python = python_with(packages)
    history = write_history(tmp_path / "logs", 80, days=2)
    found = compacted(python, tmp_path / "logs", tmp_path / "tables")
    assert packages == "installed" or found["version"] == packages.partition("==")[2]
    assert (found["calls"], found["tokens"]) == (history.calls, history.tokens)
    [[told]] = asked(python, statements=[TOTALS.format(hive(tmp_path / "tables", "turns"))])
    assert (told["calls"], told["tokens"], told["days"]) == (history.calls, history.tokens, 2)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Path]:
    """30 days of calls, compacted by the oldest DuckDB."""
    folder = tmp_path_factory.mktemp("month")
    history = write_history(folder / "logs", 40 * DAYS, days=DAYS)
    compacted(python_with("duckdb==1.0.0"), folder / "logs", folder / "tables")
    return history, folder / "tables"


@pytest.mark.long
def test_duckdb_polars_and_dask_say_the_same_of_30_days(month: tuple[History, Path]) -> None:
    history, tables = month
    sums = [TOTALS.format(hive(tables, "turns"))]
    sums.append(f"SELECT sum(tokens)::BIGINT AS tokens FROM {hive(tables, 'session_rollup')}")
    told = []
    for packages in ("duckdb==1.0.0", "duckdb==2.0.0"):
        [totals], [rollup] = asked(python_with(packages), statements=sums)
        told.append([totals, rollup["tokens"]])
    others = python_with("polars dask[dataframe] pyarrow")
    told += [asked(others, script=script.format(tables)) for script in (POLARS, DASK)]
    first, *rest = told
    assert rest == [first] * 3
    totals, rollup_tokens = first
    assert (totals["calls"], totals["days"]) == (history.calls, DAYS)
    assert (totals["tokens"], totals["failed"]) == (history.tokens, history.failed)
    assert rollup_tokens == history.tokens
    assert totals["sessions"] == len(history.sessions)
