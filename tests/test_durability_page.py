"""docs/durability.md shows what its record says, and the record what tests wrote."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "render_durability.py"
KILLS = "tests/faults/test_fault_01_kill_at_enqueue.py"


def test_the_page_is_made_from_its_record() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import render_durability

    return render_durability


def verdict(test: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "test": f"{KILLS}::{test}", "variant": "", "repetitions": 5, "calls": 100,
        "acknowledged": 210, "stored": 220, "lost": 0, "doubled": 0, "other": 0,
    }  # fmt: skip
    return {**figures, **changes}


def end(test: str, outcome: str = "passed") -> dict[str, Any]:
    return {"test": f"{KILLS}::{test}", "outcome": outcome, "seconds": 1.0}


def test_verdicts_are_added_up_and_controls_are_kept_apart(tool: Any, tmp_path: Path) -> None:
    lines = [
        verdict("test_a_kill"),
        end("test_a_kill"),
        verdict("test_kills", repetitions=7, lost=1, doubled=2),
        end("test_kills", "failed"),
        end("test_elsewhere", "skipped"),
        verdict("test_the_same_test_notices", variant="entry_after_call", lost=9),
        end("test_the_same_test_notices_entries_that_come_late"),
    ]
    (tmp_path / "faults.jsonl").write_text("\n".join(map(json.dumps, lines)))
    record = tool.taken_over({"soak": "kept"}, tmp_path)
    assert record["soak"] == "kept"
    first, *others = record["faults"]["rows"]
    assert first["file"] == "test_fault_01_kill_at_enqueue"
    assert first["title"].startswith("the process is killed")
    assert (first["repetitions"], first["acknowledged"]) == (12, 420)
    assert (first["lost"], first["doubled"]) == (1, 2)
    assert (first["tests_passed"], first["tests_failed"], first["tests_skipped"]) == (1, 1, 1)
    assert first["controls_passed"] == 1
    assert len(others) == 15 and not any("tests_passed" in row for row in others)
    row = next(line for line in tool.fault_table(record["faults"]).splitlines() if "| 1 |" in line)
    assert "| 1, 1 failed, 1 skipped | 12 | 200 | 420 | 1 | 2 | 1 |" in row
