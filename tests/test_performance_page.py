"""docs/performance.md, docs/scaling.md and the README's figures show what their record says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_pages_are_made_from_their_record() -> None:
    tool = ROOT / "tools" / "render_performance.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
