"""docs/analysis.md: every command of it runs on the demo's history and finds something."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from logs_command import Logs
from open_llm_proxy.server.commands import cli

pytest_plugins = ("log_fixtures",)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "analysis.md"
_BLOCK = re.compile(r"^```console\n\$ open-llm-proxy logs (.*?)\n```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"""(?:[^"'\n]|"[^"]*"|'[^']*')*""")


def commands() -> list[list[str]]:
    """The documented commands; a statement in quotes may have several lines."""
    found = [_COMMAND.match(block) for block in _BLOCK.findall(PAGE.read_text())]
    return [shlex.split(match.group()) for match in found if match]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOG_DIR", str(folder))
        assert cli.run(["demo", "--history", "20d"]) == 0
    return folder


def test_every_command_of_the_page_finds_something(
    logs: Logs, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = commands()
    assert len(asked) >= 11
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    failed = logs("sessions", "--outcome", "failed", "-n", "1", LOG_DIR=str(history)).objects
    for arguments in asked:
        # Days and ids are those of the day on which the page was written.
        arguments = [re.sub(r"^\d{4}-\d\d-\d\d$", yesterday, word) for word in arguments]
        if arguments[0] == "show":
            arguments[1] = failed[0]["session_key"][:8]
        done = logs(*arguments, LOG_DIR=str(history))
        assert done.returncode == 0, (arguments, done.stderr)
        output = tmp_path / "training.jsonl" if "-o" in arguments else None
        assert output.read_bytes() if output else done.stdout, arguments
