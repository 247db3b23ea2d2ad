"""The agent with the oldest libraries that setup.py allows, and with the newest that there are.

`make test-agent-versions` makes an environment for each below build/agent/ by pip. The command runs
there as a process, against the provider and the MCP server of these tests.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wire
from agent_command import REPO, SCRIPT, user_environment
from agent_provider import AgentProvider, Whole, asks, call, fails, says
from scripted_mcp_server import BrokenStream, ErrorAnswer, Restart, ScriptedMcpServer, Status

pytest_plugins = ("agent_fixtures",)
pytestmark = pytest.mark.long

TEXT: dict[str, Any] = {"content": [{"type": "text", "text": "3"}]}


def requirements() -> list[str]:
    """What the extra `agent` asks for."""
    for node in ast.walk(ast.parse((REPO / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            return list(ast.literal_eval(node.value)["agent"])
    raise AssertionError("setup.py has no extras")


def oldest(requirement: str) -> str:
    """The requirement with its lower bound as the only version."""
    return re.sub(r">=([\d.]+).*", lambda bound: f"~={bound[1]}.0", requirement)


@pytest.fixture(scope="module", params=["oldest", "newest"])
def python(request: pytest.FixtureRequest) -> str:
    """A Python with the agent's libraries. The newest ones are looked for each time."""
    folder = REPO / "build" / "agent" / request.param
    program = folder / "bin" / "python"
    if not program.exists():
        subprocess.run((sys.executable, "-m", "venv", str(folder)), check=True)
    wanted = requirements()
    if request.param == "oldest":
        wanted = [oldest(text) for text in wanted if not text.startswith("rich")]
    subprocess.run(
        (str(program), "-m", "pip", "install", "--quiet", "--upgrade", *wanted), check=True
    )
    listing = (str(program), "-m", "pip", "list", "--format", "freeze")
    subprocess.run(listing, check=True)  # shown where a test fails
    return str(program)


class Agent:
    """The command in that Python; `run` gives the transcript and standard error."""

    def __init__(self, python: str, folder: Path, llm: AgentProvider, ca: str) -> None:
        self._python, self._folder, self._llm, self._ca = python, folder, llm, ca

    def run(self, *options: str) -> tuple[Any, str]:
        path = self._folder / "transcript.json"
        path.unlink(missing_ok=True)
        argv = [self._python, str(SCRIPT), "Hello", "--proxy-url", self._llm.url, *options]
        done = subprocess.run(
            [*argv, "--transcript", str(path)],
            env=user_environment(SSL_CERT_FILE=self._ca),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(path.read_text()), done.stderr


@pytest.fixture
def agent(
    python: str, tmp_path: Path, llm: AgentProvider, certificates: wire.Certificates
) -> Agent:
    return Agent(python, tmp_path, llm, str(certificates.authority))


@pytest.fixture
def mcp() -> Iterator[ScriptedMcpServer]:
    with ScriptedMcpServer() as server:
        yield server


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_a_session_with_tools_and_retries(
    agent: Agent, llm: AgentProvider, mcp_url: str, options: list[str]
) -> None:
    size = call("query", sql="SELECT count(*) AS n FROM states")
    thought = {"reasoning_content": "Two at once."}
    llm.script(fails(500, "Busy."), asks(size, call("picture"), **thought), says("Three."))
    extra = ("--temperature", "0", "--enable-thinking")
    transcript, err = agent.run("--mcp-url", mcp_url, *extra, *options)
    assert (transcript["answer"], err) == ("Three.", "")
    first = transcript["turns"][0]
    assert (first["retries"], first["reasoning"]) == (1, "Two at once.")
    assert first["usage"]["total_tokens"] == 110
    assert [c["result"].split("\n")[0] for c in first["tool_calls"]] == ["n", "The map:"]
    assert llm.requests[1].body["enable_thinking"] is True


def test_answers_of_odd_mcp_servers(
    agent: Agent, llm: AgentProvider, mcp: ScriptedMcpServer
) -> None:
    mcp.tools = [
        {"name": "query", "inputSchema": {"type": "object", "properties": None}},
        {"name": "list", "inputSchema": {"type": "array"}, "outputSchema": 5},
    ]
    mcp.calls = [
        Restart(),
        TEXT,
        ErrorAnswer(-32000, "Connection closed"),
        BrokenStream(),
        Status(504),
        {"content": [{"type": "hologram"}], "isError": None},
        {"isError": True},
    ]
    llm.script(*[asks(call("query", n=number)) for number in range(6)], says("Done."))
    transcript, err = agent.run("--mcp-url", mcp.url)
    assert err == ""
    results = [turn["tool_calls"][0]["result"] for turn in transcript["turns"][:6]]
    assert results[0] == "3"
    assert results[1] == "The call failed: Connection closed"
    assert "broke during this call" in results[2]
    assert "HTTP 504" in results[3]
    assert results[4] == "[content of the unknown kind hologram, not shown]"
    assert results[5] == "[the tool reported an error without a text]"
    assert len(transcript["notes"]) == 2


def test_what_fails_is_told_in_a_sentence(
    agent: Agent, llm: AgentProvider, mcp: ScriptedMcpServer
) -> None:
    places = ("--mcp-url", mcp.url)
    assert "refused the key" in agent.run(*places, "--api-key", "wrong")[1]
    llm.script(says("Half of this answer is missing.", break_after=3))
    assert "the stream ended in the middle" in agent.run(*places, "--stream")[1]
    lost = {"Content-Type": "text/event-stream", "Content-Length": "9999"}
    llm.script(Whole(200, 'data: {"choices": [{"index": 0, "delta": {}}]}\n\n', lost))
    assert llm.url in agent.run(*places, "--stream")[1]
    llm.script(Whole(200, "<html>", {"Content-Type": "text/html"}))
    assert "is no JSON" in agent.run(*places)[1]
    mcp.opening = Status(401)
    assert "HTTP 401" in agent.run(*places)[1]
    away = f"http://127.0.0.1:{wire.free_port()}/mcp"
    assert "cannot be reached" in agent.run("--mcp-url", away)[1]
