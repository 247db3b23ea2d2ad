"""The recipes of LOGGING.md that read a pod's log, with a stand-in for kubectl.

The stand-in prints what a pod's log is: entries, with the process's own messages in between.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from duckdb_log import LOGGING, records, statements
from given_answers import Fields

pytest_plugins = ("log_fixtures",)
SESSION = "my-session"
MESSAGES = [
    "2026-04-07T10:00:00Z INFO Listening on http://0.0.0.0:8002",
    "Traceback (most recent call last):",
    '  File "x.py", line 3, in f',
    "",
    "42",
    '"words"',
    "null",
    "[1, 2",
    "{",
    "{not JSON}",
]


def commands() -> list[str]:
    """The documented commands, in order."""
    lines = [line.strip() for line in LOGGING.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if "kubectl logs " in line]


@pytest.fixture
def shell(tmp_path: Path, every_kind_rows: list[Fields]) -> dict[str, str]:
    """An environment whose kubectl prints a pod's log."""
    log = tmp_path / "pod.log"
    rows = ({name: row[name] for name in row if row[name] is not None} for row in every_kind_rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    half = len(lines) // 2
    text = [MESSAGES[0], *lines[:half], *MESSAGES, lines[half][:200], *lines[half:], *MESSAGES]
    log.write_text("\n".join(text) + "\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (
        ("kubectl", f'cat "{log}"'),
        ("open-llm-proxy", f'exec "{sys.executable}" -m open_llm_proxy.server.commands.cli "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "LANG": "C.UTF-8", "HOME": str(tmp_path)}


def run(command: str, shell: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ("sh", "-c", command),
        env=shell,
        cwd=shell["HOME"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq here")
def test_every_documented_kubectl_command_finds_something(
    shell: dict[str, str], every_kind_rows: list[Fields]
) -> None:
    found = []
    for command in commands():
        line = command.replace("<ns>", "team").replace("SESSION", SESSION)
        done = run(line, shell)
        if ">" in command.partition("|")[2]:
            continue  # to be read by DuckDB, see below
        # The capture has a row that was cut, which `logs` tells by its exit code too.
        code = 1 if "open-llm-proxy logs" in command else 0
        assert done.returncode == code and done.stdout, (command, done.stderr)
        assert "Traceback" not in done.stderr and "parse error" not in done.stderr
        found.append(done.stdout.splitlines())
    assert len(found) >= 4
    answers = [row for row in every_kind_rows if row["type"] == "response"]
    (outcomes,) = (lines for lines in found if '"latency_ms":' in lines[0] and len(lines[0]) < 200)
    assert len(outcomes) == len(answers)
    failed = [row for row in answers if row["outcome"] != "ok"]
    assert [len(lines) for lines in found].count(len(failed)) == 1


def test_duckdb_reads_a_capture_with_a_head_in_front(
    shell: dict[str, str], every_kind_rows: list[Fields], tmp_path: Path
) -> None:
    (command,) = (line for line in commands() if "logs schema" in line)
    assert run(command.replace("<ns>", "team"), shell).returncode == 0
    (statement,) = (text for text in statements() if "'today.jsonl'" in text)
    with duckdb.connect() as connection:
        found = records(connection, statement.replace("today.jsonl", f"{tmp_path}/today.jsonl"))
    names = ("request_id", "session_id", "user_question", "content", "error")
    assert Counter(tuple(row[name] for name in names) for row in found) == Counter(
        tuple(row[name] for name in names) for row in every_kind_rows
    )


def test_the_view_reads_a_capture_as_it_is(
    shell: dict[str, str], every_kind_rows: list[Fields], tmp_path: Path
) -> None:
    """Every documented query gives over the capture what it gives over rows without a head."""
    (view,) = (text for text in statements() if "VIEW log" in text)
    clean = tmp_path / "clean.jsonl"
    rows = ({name: row[name] for name in row if row[name] is not None} for row in every_kind_rows)
    clean.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for path in (tmp_path / "pod.log", clean):
        source = f"read_ndjson('{path}', ignore_errors = true, "
        with duckdb.connect() as connection:
            connection.execute(re.sub(r"read_ndjson\('[^']*', ", source, view))
            found.append(
                [
                    rows_in_any_order(connection, text)
                    for text in statements()
                    if FROM_LOG.search(text)
                ]
            )
    assert found[0] == found[1]
    assert len(found[0]) >= 10


FROM_LOG = re.compile(r"^(?!CREATE).*\bFROM log\b", re.DOTALL)


def rows_in_any_order(connection: duckdb.DuckDBPyConnection, statement: str) -> list[str]:
    """What a statement finds; which example of an error it shows may differ."""
    found = records(connection, statement)
    return sorted(repr({k: v for k, v in row.items() if k != "example"}) for row in found)
