"""The command line as a whole: versions, and what it says after a slip."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from open_llm_proxy.server.commands import cli


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("srve", "unknown 'srve'; did you mean serve?"),
        ("xyz", "unknown 'xyz'; one of serve, demo, check"),
        ("check --jsno", "unrecognized arguments: --jsno; did you mean --json?"),
        ("serve --confg=x", "unrecognized arguments: --confg=x; did you mean --config?"),
        ("check --frobnicate", "unrecognized arguments: --frobnicate\n"),
        ("queue stats .", "unknown 'stats'; did you mean status?"),
        ("logs stts .", "unknown 'stts'; did you mean stats?"),
        ("keys new app --modles=kimi", "--modles=kimi; did you mean --models?"),
        ("--versoin", "unrecognized arguments: --versoin; did you mean --version?"),
        ("", "name a command, such as serve; --help lists them"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(arguments.split())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"open-llm-proxy {version('open-llm-proxy')}\n"


def test_replay_prints_json_for_scripts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = Path(__file__).with_name("data") / "queue-format-2" / "left"
    queues, to = tmp_path / "queues", str(tmp_path / "objects")
    shutil.copytree(left, queues)

    def replay(*options: str) -> tuple[int, dict[str, object]]:
        code = cli.run(["replay", str(queues), "--to", to, "--again", "--json", *options])
        (line,) = capfd.readouterr().out.splitlines()
        return code, json.loads(line)

    code, plan = replay("--dry-run")
    assert (code, plan["refusal"]) == (0, None)
    code, done = replay()
    assert (code, done["left"]) == (0, None)
    assert done["objects"] == len(list(Path(to).glob("*/*.jsonl"))) > 0
    assert plan["path"] == done["path"]
    assert cli.run(["replay", str(queues), "--to", to, "--json"]) == 0
    assert capfd.readouterr().out == ""
