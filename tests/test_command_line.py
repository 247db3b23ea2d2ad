"""The command line as a whole: versions, and what it says after a slip of the finger."""

from importlib.metadata import version

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
