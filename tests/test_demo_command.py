"""`make run`: a few lines, each of which works as it is pasted into the shell."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_llm_proxy.server.commands.demo import paste
from open_llm_proxy.server.commands.demo.call_lines import call_line

PROGRAM = Path(sys.executable).with_name("open-llm-proxy")

pytestmark = pytest.mark.timeout(seconds=90)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in an empty folder, as a terminal would show it."""
    process = subprocess.Popen(
        [PROGRAM, "demo"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        if words in line:
            return said
    raise AssertionError("\n".join(said))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_it_says_ten_lines_that_work_as_they_are_pasted(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    said = read_until(demo, "demo --history 30d")
    assert len(said) <= 11 and not any(line.startswith("{") for line in said)
    assert said[0].startswith("open-llm-proxy ") and "http://127.0.0.1:" in said[0]
    (first,) = (line for line in said if line.endswith("ok"))
    assert first.split()[1] == "demo" and "tokens" in first and " ms " in first

    def paste_line(words: str) -> str:
        (line,) = (line for line in said if words in line)
        command = line.partition(": ")[2] if not line.startswith("  ") else line
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout + done.stderr

    assert "Hello from the demo provider" in paste_line("curl -s")
    assert "Hello from the demo provider" in paste_line(" logs show ")
    assert "demo" in paste_line("duckdb")
    (pages,) = (line.partition("As web pages: ")[2] for line in said if "As web pages: " in line)
    assert urllib.request.urlopen(pages, timeout=30).status == 200
    read_until(demo, "  ok")  # the pasted call
    demo.send_signal(signal.SIGINT)
    assert demo.wait(30) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(pages, timeout=5)


def test_a_command_is_called_by_name_where_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(PROGRAM)])
    monkeypatch.chdir(PROGRAM.parent.parent.parent)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert paste.program() == ".venv/bin/open-llm-proxy".replace(
        ".venv", PROGRAM.parent.parent.name
    )
    monkeypatch.setenv("PATH", f"{PROGRAM.parent}:/usr/bin")
    assert paste.program() == "open-llm-proxy"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert paste.program() == str(PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cli.py")])
    assert paste.program().endswith(" -m open_llm_proxy.server.commands.cli")


def test_the_line_of_a_call() -> None:
    row = {"timestamp": "2026-11-26T08:22:01.123Z", "model": "kimi", "latency_ms": 1234}
    line = call_line(row | {"outcome": "ok", "total_tokens": 53})
    assert line.split() == ["08:22:01", "kimi", "53", "tokens", "1,234", "ms", "ok"]
    line = call_line(row | {"outcome": "upstream_error", "error": "bad\n\x1b[31m" + "x" * 100})
    assert "no tokens told" in line and "upstream_error: bad " in line
    assert line.isprintable() and len(line) < 140
