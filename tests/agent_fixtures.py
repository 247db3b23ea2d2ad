"""The fixtures of the agent's tests: `pytest_plugins = ("agent_fixtures",)` takes them in."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import wire
from agent_command import Finished, Run, cli, mcp_server
from agent_provider import KEY, AgentProvider


class Terminal(io.StringIO):
    """Standard output as a terminal is, for what asks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three states and the share of their area that is GAP 1 or 2, as Parquet."""
    path = tmp_path_factory.mktemp("data") / "states.parquet"
    rows = "('Nevada', 286380, 0.41), ('Hawaii', 28313, 0.38), ('Iowa', 145746, 0.02)"
    duckdb.sql(f"SELECT * FROM (VALUES {rows}) t(state, area, gap12)").write_parquet(str(path))
    return path


@pytest.fixture(scope="session")
def mcp_url(states: Path) -> Iterator[str]:
    with mcp_server(states) as url:
        yield url


@pytest.fixture
def llm() -> Iterator[AgentProvider]:
    with AgentProvider() as provider:
        yield provider


@pytest.fixture
def run_agent(
    llm: AgentProvider,
    mcp_url: str,
    certificates: wire.Certificates,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """`run_agent("question", "--option", …)`: the command against the provider and the MCP server.

    The transcript is read back. Options that the test gives come after the fixture's and win.
    With `terminal=True` standard output is one.
    """
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Half of a short run is spent on reading the system's certificates, which no test needs.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, terminal: bool = False) -> Finished:
        places = ["--proxy-url", llm.url]
        if "--mcp-command" not in arguments:
            places += ["--mcp-url", mcp_url]
        path = tmp_path / "transcript.json"
        if "--transcript" not in arguments and "--questions" not in arguments:
            places += ["--transcript", str(path)]
        if path.is_file():
            path.unlink()
        capsys.readouterr()
        with monkeypatch.context() as changed:
            screen = Terminal()
            if terminal:
                changed.setattr(sys, "stdout", screen)
            try:
                code = cli.main([*places, *arguments])
            except SystemExit as ended:
                code = int(ended.code or 0)
        captured = capsys.readouterr()
        transcript = json.loads(path.read_text()) if path.is_file() else None
        return Finished(code, screen.getvalue() or captured.out, captured.err, transcript)

    return run
