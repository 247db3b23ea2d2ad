"""Documentation that is made from the code is up to date."""

import subprocess
import sys
from pathlib import Path

import log_contract
from open_llm_proxy.server.entries.fields import LogEntry

ROOT = Path(__file__).resolve().parent.parent


def test_the_rendered_parts_are_up_to_date() -> None:
    command = [sys.executable, "tools/render_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_has_the_contracts_fields_in_order() -> None:
    assert ("queue_id", "seq", *LogEntry.__struct_fields__) == log_contract.FIELDS
