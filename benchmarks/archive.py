"""`logs stats`, `sessions` and `compact` beside the SQL that one would write for DuckDB oneself.

    python benchmarks/archive.py [ROWS] [--days N] [--json FILE]

ROWS (1,000,000) rows, two a call, over N (10) days from two queues, are written by
tests/log_history.py; answers have 60 words. Then each command runs as a process of its own, and
beside it a process that asks DuckDB the same of the same files, first of the objects, then of the
compacted tables. Seconds include the start of Python; memory is the peak of the whole process.

The plain statements read nothing but the columns that they need, join nothing that they can do
without, and do not notice a line that cannot be read, a double or an answer of the next day.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs")

NUMBERS = """count(*) AS calls, count(*) FILTER (outcome <> 'ok') AS errors,
    quantile_cont(latency_ms, [0.5, 0.95]), quantile_cont(ttft_ms, 0.5), sum(prompt_tokens),
    sum(completion_tokens), sum(cost_usd)"""
ANSWERS = """read_ndjson('{logs}/*/*.jsonl', columns = {{type: 'VARCHAR', origin: 'VARCHAR',
    client: 'VARCHAR', model: 'VARCHAR', outcome: 'VARCHAR', latency_ms: 'BIGINT',
    ttft_ms: 'BIGINT', prompt_tokens: 'BIGINT', completion_tokens: 'BIGINT',
    cost_usd: 'DOUBLE'}})"""
STATS = f"""SELECT coalesce(origin, client) AS app, model, {NUMBERS} FROM {ANSWERS}
    WHERE type = 'response' GROUP BY ALL"""
SESSIONS = """SELECT coalesce(session_id, request_id) AS session, min(timestamp) AS started,
    any_value(origin), any_value(model), count(*) FILTER (type = 'response') AS turns,
    sum(total_tokens), sum(cost_usd), arg_min(user_question, timestamp)
    FROM read_ndjson('{logs}/*/*.jsonl', columns = {{type: 'VARCHAR', timestamp: 'TIMESTAMP',
    session_id: 'VARCHAR', request_id: 'VARCHAR', origin: 'VARCHAR', model: 'VARCHAR',
    total_tokens: 'BIGINT', cost_usd: 'DOUBLE', user_question: 'VARCHAR'}})
    WHERE type <> 'schema' GROUP BY session ORDER BY started DESC LIMIT 20"""
COPIED = """COPY (SELECT *, timestamp::DATE AS day FROM read_ndjson_auto('{logs}/*/*.jsonl')
    WHERE type <> 'schema')
    TO '{folder}/plain' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY day)"""
TABLES = "read_parquet('{tables}/{name}/*/*.parquet', hive_partitioning = true)"
STATS_OF_TABLES = f"SELECT app, model, {NUMBERS} FROM {TABLES} GROUP BY ALL".replace(
    "{name}", "turns"
)
SESSIONS_OF_TABLES = f"SELECT * FROM {TABLES} ORDER BY started DESC LIMIT 20".replace(
    "{name}", "sessions"
)
PLAIN = "import duckdb, sys; print(len(duckdb.connect().execute(sys.argv[1]).fetchall()))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-") as name:
        record = measured(Path(name), options.rows, options.days)
    if options.json:
        options.json.write_text(json.dumps(record))


def measured(folder: Path, rows: int, days: int) -> dict[str, object]:
    """Print a table of it, and return what it says."""
    logs, tables = folder / "logs", folder / "tables"
    made = (sys.executable, str(ROOT / "tests" / "log_history.py"), str(logs), str(rows // 2))
    seconds, _ = timed((*made, str(days)))
    size, count = size_of(logs, "*.jsonl")
    print(f"{rows:,} rows, {size / 1e6:,.0f} MB in {count:,} objects, written in {seconds:.0f} s")
    print(f"{'':22}{'seconds':>9}{'plain':>7}{'ratio':>7}{'MB':>7}{'plain':>7}")
    record: dict[str, object] = {"rows": rows, "days": days, "bytes": size, "objects": count}
    places = {"logs": logs, "tables": tables, "folder": folder}
    for what, command, statement in (
        ("stats", ("stats", str(logs)), STATS),
        ("sessions", ("sessions", str(logs), "-n", "20"), SESSIONS),
        ("compact", ("compact", str(logs), "--to", str(tables)), COPIED),
        ("stats of tables", ("stats", str(tables)), STATS_OF_TABLES),
        ("sessions of tables", ("sessions", str(tables), "-n", "20"), SESSIONS_OF_TABLES),
    ):
        ours = timed((*LOGS, *command))
        plain = timed((sys.executable, "-c", PLAIN, statement.format(**places)))
        record[what] = {"seconds": ours[0], "peak_mb": ours[1], "plain": plain}
        print(
            f"{what:22}{ours[0]:9.1f}{plain[0]:7.1f}{ours[0] / plain[0]:7.1f}"
            f"{ours[1]:7.0f}{plain[1]:7.0f}",
            flush=True,
        )
    record["table_bytes"], files = size_of(tables, "*.parquet")
    print(f"tables: {record['table_bytes'] / 1e6:,.0f} MB in {files} files")  # type: ignore[operator]
    return record


def timed(command: tuple[str, ...]) -> tuple[float, float]:
    """Seconds that a process takes, and its peak memory in MB."""
    environment = os.environ | {"PAGER": "cat"}
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ended with {process.returncode}")
    return round(time.perf_counter() - begun, 2), round(usage.ru_maxrss / 1024, 1)


def size_of(folder: Path, pattern: str) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob(pattern)]
    return sum(sizes), len(sizes)


if __name__ == "__main__":
    main()
