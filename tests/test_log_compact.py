"""``logs compact``: whole or not at all, again without harm, late objects, what may be deleted."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from log_history import FIRST_DAY, write_history
from logs_command import Logs
from open_llm_proxy.archive.compaction.day import compact_day
from open_llm_proxy.archive.compaction.destination import FolderDestination
from open_llm_proxy.archive.compaction.raw import delete_raw
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import LogSourceError
from open_llm_proxy.archive.tables.compacted import TABLES
from open_llm_proxy.archive.tables.connection import open_tables

pytest_plugins = ("log_fixtures",)
DAY = f"{FIRST_DAY:%Y-%m-%d}"
NEXT = "2026-04-08"
TOTALS = (
    "SELECT count(*) AS calls, count(*) FILTER (outcome = 'ok') AS ok, "
    "sum(total_tokens) AS tokens, count(*) FILTER (outcome = 'open') AS open FROM all_turns"
)
ROWS = (
    "SELECT count(*) AS n, bit_xor(hash(queue_id, seq, type, content, tool_calls)) AS x "
    "FROM all_entries"
)


def asked(logs: Path, statement: str, tables: Path | None = None) -> list[dict[str, Any]]:
    compacted = None if tables is None else FolderSource(tables)
    with open_tables(FolderSource(logs), tables=compacted) as opened:
        return opened.rows(statement)


def compact(logs: Path, tables: Path, day: str = DAY) -> str:
    return compact_day(FolderSource(logs), FolderDestination(tables), day).outcome


def published(tables: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in tables.rglob("*.parquet")}


def test_tables_and_objects_tell_the_same(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    history = write_history(logs, 400)
    raw, rows = asked(logs, TOTALS), asked(logs, ROWS)
    assert raw[0]["calls"] == history.calls and raw[0]["open"] == history.open
    for day in (DAY, NEXT):
        assert compact(logs, tables, day) == "compacted"
        assert asked(logs, TOTALS, tables) == raw, "one day raw, one compacted, or both compacted"
        assert asked(logs, ROWS, tables) == rows
    with duckdb.connect() as plain:
        found = {
            name: plain.execute(
                "SELECT count(*), count(DISTINCT day) FROM "
                f"read_parquet('{tables}/{name}/*/*.parquet', hive_partitioning = true)"
            ).fetchall()[0]
            for name in TABLES
        }
    assert found["turns"] == found["session_rollup"] == (history.calls, 2)
    assert found["sessions"][0] >= len(history.sessions)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    write_history(logs, 60)
    compact(logs, tables)
    before = published(tables)
    assert compact(logs, tables) == "unchanged"
    assert published(tables) == before


def test_an_object_that_arrives_late_is_added(tmp_path: Path) -> None:
    logs, tables, kept = tmp_path / "logs", tmp_path / "tables", tmp_path / "late"
    history = write_history(logs, 200)
    late = [path for path in history.objects if path.parent.name == DAY][3]
    whole = asked(logs, ROWS)
    shutil.move(late, kept)
    compact(logs, tables)
    assert asked(logs, ROWS, tables) != whole
    shutil.move(kept, late)
    assert asked(logs, ROWS, tables) == whole, "readers see it before it is compacted"
    assert compact(logs, tables) == "compacted"
    shutil.rmtree(logs / DAY)
    assert asked(logs, ROWS, tables) == whole


def test_an_answer_on_the_next_day_is_added_to_its_call(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    row = '{{"queue_id":"q","seq":{},"timestamp":"{}","type":"{}","request_id":"r"{}}}\n'
    question, answer = logs / DAY / "23-55-00-a.jsonl", logs / NEXT / "00-00-00-a.jsonl"
    question.parent.mkdir(parents=True)
    question.write_text(row.format(1, f"{DAY}T23:59:59.000Z", "request", ""))
    compact(logs, tables)
    assert asked(logs, TOTALS, tables)[0]["open"] == 1
    answer.parent.mkdir()
    end = ',"outcome":"ok","latency_ms":10000'
    answer.write_text(row.format(2, f"{NEXT}T00:00:09.000Z", "response", end))
    for day in (DAY, NEXT):
        assert compact(logs, tables, day) == "compacted"
        totals = asked(logs, f"{TOTALS} WHERE day = DATE '{DAY}'", tables)[0]
        assert (totals["calls"], totals["ok"], totals["open"]) == (1, 1, 0)
    assert asked(logs, TOTALS, tables)[0]["calls"] == 1


def test_raw_objects_are_deleted_once_the_table_gives_them_back(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    history = write_history(logs, 300)
    raw, rows = asked(logs, TOTALS), asked(logs, ROWS)
    own = [path for path in history.objects if path.parent.name == DAY]
    compact(logs, tables)
    stranger = logs / DAY / "23-59-00-later.jsonl"
    stranger.write_text('{"type":"request","timestamp":"2026-04-07T23:59:00.000Z"}\n')
    done = delete_raw(FolderSource(logs), FolderDestination(logs), FolderDestination(tables), DAY)
    assert (done.deleted, done.differing) == (len(own), [])
    assert [path.name for path in (logs / DAY).iterdir()] == [stranger.name], "it is in no table"
    stranger.unlink()
    assert asked(logs, TOTALS, tables) == raw and asked(logs, ROWS, tables) == rows
    assert compact(logs, tables) == "unchanged"
    assert compact(logs, tables, NEXT) == "compacted"
    assert asked(logs, TOTALS, tables) == raw and asked(logs, ROWS, tables) == rows


def test_an_object_that_the_table_does_not_give_back_is_left(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    history = write_history(logs, 100)
    compact(logs, tables)
    own = [path for path in history.objects if path.parent.name == DAY]
    changed = own[1]
    changed.write_bytes(changed.read_bytes().replace(b'"outcome":"ok"', b'"outcome":"no"'))
    done = delete_raw(FolderSource(logs), FolderDestination(logs), FolderDestination(tables), DAY)
    assert done.differing == [str(changed)] and changed.exists()
    assert done.deleted == len(own) - 1


@pytest.mark.parametrize("damage", ["cut", "changed", "unreadable lines"])
def test_a_day_in_doubt_is_left_as_it_is(tmp_path: Path, damage: str) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    history = write_history(logs, 60)
    victim = history.objects[1]
    if damage == "cut":
        os.truncate(victim, victim.stat().st_size - 7)
    elif damage == "changed":
        victim.write_bytes(victim.read_bytes().replace(b"qwen3", b"qwen4"))
    else:
        (logs / DAY / "09-00-00-copy.jsonl").write_text('{"type": "request", "seq": \n')
    result = compact_day(FolderSource(logs), FolderDestination(tables), DAY)
    assert result.outcome == "left" and result.reason
    assert published(tables) == {}


def test_a_full_disk_is_a_sentence_and_nothing_is_published(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write_history(logs, 60)
    blocked = tmp_path / "tables"
    blocked.mkdir()
    (blocked / "entries").write_text("a file in the place of the folder")
    with pytest.raises(LogSourceError, match="cannot be written"):
        compact(logs, blocked)
    assert published(blocked) == {}


def test_a_day_that_fails_costs_no_other_day(logs: Logs, tmp_path: Path) -> None:
    history = write_history(tmp_path / "logs", 60)
    os.truncate(history.objects[0], history.objects[0].stat().st_size - 7)
    done = logs("compact", str(tmp_path / "logs"), "--to", str(tmp_path / "tables"))
    assert done.returncode == 1 and done.stderr.count(DAY) and NEXT not in done.stderr
    days = {path.parent.name for path in published(tmp_path / "tables")}
    assert days == {f"day={NEXT}"}


def test_a_day_without_objects_is_nothing_to_publish(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    write_history(logs, 60)
    assert compact(logs, tables, "2026-05-01") == "unchanged"
    assert published(tables) == {}


RUN = """
import sys
from pathlib import Path
from open_llm_proxy.archive.compaction.day import compact_day
from open_llm_proxy.archive.compaction.destination import FolderDestination
from open_llm_proxy.archive.sources.folder import FolderSource
print("begun", flush=True)
compact_day(FolderSource(Path(sys.argv[1])), FolderDestination(Path(sys.argv[2])), sys.argv[3])
print("done", flush=True)
"""


def test_killed_and_doubled_runs_harm_nothing(tmp_path: Path) -> None:
    logs, tables = tmp_path / "logs", tmp_path / "tables"
    write_history(logs, 300)
    raw, rows = asked(logs, TOTALS), asked(logs, ROWS)
    chance = random.Random(1)
    for _ in range(6):
        arguments = [sys.executable, "-c", RUN, str(logs), str(tables), DAY]
        runs = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(2)]
        for run in runs:
            assert run.stdout is not None and run.stdout.readline() == b"begun\n"
        time.sleep(chance.random() * 0.6)  # any moment will do
        runs[0].send_signal(signal.SIGKILL)
        for run in runs:
            run.communicate()
        assert asked(logs, TOTALS, tables) == raw and asked(logs, ROWS, tables) == rows
        if chance.random() < 0.5:
            shutil.rmtree(tables)
    compact(logs, tables)
    assert asked(logs, TOTALS, tables) == raw and asked(logs, ROWS, tables) == rows
