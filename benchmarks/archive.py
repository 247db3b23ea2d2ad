"""Reading a big log: `logs stats`, `sessions`, `verify` and `compact` beside plain DuckDB SQL.

    python benchmarks/archive.py [--calls 500000] [--days 30] [--json FILE]

A log of so many calls, two rows each, is written below build/ once. Every figure is of a process of
its own: seconds and the most memory that it had. The plain statements read the same files and
answer the same question, without the views, the filters and the count of what cannot be read.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from log_history import write_history  # noqa: E402

LOGS = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs")
COLUMNS = (
    "{type: 'VARCHAR', request_id: 'VARCHAR', session_id: 'VARCHAR', timestamp: 'TIMESTAMP', "
    "origin: 'VARCHAR', model: 'VARCHAR', outcome: 'VARCHAR', latency_ms: 'BIGINT', "
    "total_tokens: 'BIGINT', cost_usd: 'DOUBLE', user_question: 'VARCHAR'}"
)
STATS = """
SELECT q.origin, q.model, count(*) AS calls, count(*) FILTER (r.outcome <> 'ok') AS errors,
       quantile_disc(r.latency_ms, [0.5, 0.95]) AS latency_ms, sum(r.total_tokens) AS tokens,
       sum(r.cost_usd) AS cost_usd
FROM (FROM log WHERE type = 'request') q
LEFT JOIN (FROM log WHERE type = 'response') r USING (request_id) GROUP BY ALL ORDER BY ALL"""
SESSIONS = """
SELECT coalesce(q.session_id, q.request_id) AS session, min(q.timestamp) AS started,
       count(*) AS turns, sum(r.total_tokens) AS tokens, arg_max(r.outcome, q.timestamp) AS outcome,
       arg_min(q.user_question, q.timestamp) AS question
FROM (FROM log WHERE type = 'request') q
LEFT JOIN (FROM log WHERE type = 'response') r USING (request_id)
GROUP BY ALL ORDER BY started DESC LIMIT 50"""


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command; its wall-clock and processor seconds, and its peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak_megabytes": round(usage.ru_maxrss / 1000),
        "exit_code": process.returncode,
        "output_bytes": len(output),
    }


def plain(source: str, statement: str) -> list[str]:
    """A command that asks DuckDB and nothing else."""
    program = (
        "import duckdb\n"
        f'duckdb.sql("CREATE VIEW log AS FROM {source}")\n'
        f'print(duckdb.execute("""{statement}""").fetchall())\n'
    )
    return [sys.executable, "-c", program]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    folder = ROOT / "build" / "archive-benchmark" / f"{chosen.calls}-{chosen.days}"
    tables = folder.with_name(f"{folder.name}-tables")
    if not folder.exists():
        write_history(folder.with_suffix(".new"), chosen.calls, days=chosen.days)
        folder.with_suffix(".new").rename(folder)
    shutil.rmtree(tables, ignore_errors=True)
    paths = list(folder.rglob("*.jsonl"))
    size = sum(path.stat().st_size for path in paths)
    print(f"{2 * chosen.calls:,} rows in {len(paths):,} objects, {size / 1e6:,.0f} MB")
    raw = f"read_ndjson('{folder}/*/*.jsonl', columns = {COLUMNS})"
    parquet = f"read_parquet('{tables}/entries/*/*.parquet')"
    runs = {
        "stats": [*LOGS, "stats", str(folder)],
        "stats, plain SQL": plain(raw, STATS),
        "sessions": [*LOGS, "sessions", str(folder)],
        "sessions, plain SQL": plain(raw, SESSIONS),
        "verify": [*LOGS, "verify", str(folder)],
        "compact": [*LOGS, "compact", str(folder), "--to", str(tables)],
        "stats of tables": [*LOGS, "stats", str(tables)],
        "stats of tables, plain SQL": plain(parquet, STATS),
        "sessions of tables": [*LOGS, "sessions", str(tables)],
        "sessions of tables, plain SQL": plain(parquet, SESSIONS),
    }
    figures: dict[str, Any] = {"rows": 2 * chosen.calls, "objects": len(paths), "bytes": size}
    for name, command in runs.items():
        figures[name] = found = measured(command)
        print(
            f"{name:<30} {found['seconds']:>6} s {found['processor_seconds']:>6} s of processor "
            f"{found['peak_megabytes']:>6,} MB",
            flush=True,
        )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
