"""The shell commands of LOGGING.md that read a pod's log, with a stand-in for kubectl.

The stand-in prints what a pod's log is: entries, with the process's own messages in between.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from duckdb_log import LOGGING
from given_answers import Fields

pytest_plugins = ("log_fixtures",)
SESSION = "my-session"


def commands() -> list[str]:
    """The documented commands, in order."""
    lines = [line.strip() for line in LOGGING.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith("kubectl logs ")]


@pytest.fixture
def shell(tmp_path: Path, every_kind_rows: list[Fields]) -> dict[str, str]:
    """An environment whose kubectl prints a pod's log."""
    log = tmp_path / "pod.log"
    lines = [json.dumps(row, ensure_ascii=False) for row in every_kind_rows]
    messages = ["2026-04-07 10:00:00,000 WARNING listening on port 8002", "42", '"words"', "{"]
    log.write_text("\n".join([messages[0], *lines, *messages]) + "\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (
        ("kubectl", f'cat "{log}"'),
        ("open-llm-proxy", f'exec "{sys.executable}" -m open_llm_proxy.server.commands.cli "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "LANG": "C.UTF-8"}


@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq here")
def test_every_documented_kubectl_command_finds_something(
    shell: dict[str, str], every_kind_rows: list[Fields]
) -> None:
    found = []
    for command in commands():
        line = command.replace("<ns>", "team").replace("SESSION", SESSION)
        done = subprocess.run(
            ("sh", "-c", line), env=shell, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout, (command, done.stderr)
        assert "Traceback" not in done.stderr and "parse error" not in done.stderr
        found.append(done.stdout.splitlines())
    assert len(found) >= 4
    answers = [row for row in every_kind_rows if row["type"] == "response"]
    (outcomes,) = (lines for lines in found if '"latency_ms":' in lines[0] and len(lines[0]) < 200)
    assert len(outcomes) == len(answers)
    failed = [row for row in answers if row["outcome"] != "ok"]
    assert [len(lines) for lines in found].count(len(failed)) == 1
