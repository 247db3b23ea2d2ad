"""The agent's command as the tests run it, and the processes that it needs.

The command mostly runs in the test's own process, which saves two seconds of imports each
time; `script_argv` is for those tests that need a process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_provider import KEY

REPO = Path(__file__).resolve().parent.parent
SCRIPT = REPO / "tools" / "agent_runner.py"
MCP_SERVER = REPO / "tests" / "agent_mcp_server.py"

# As for a user who runs the script: its folder is where the package is found.
sys.path.insert(0, str(SCRIPT.parent))

from agent import (  # noqa: E402
    cli,
    columns,
    content,
    mcp_tools,
    recording,
    render,
    render_side,
    reply,
    tool_schemas,
)

__all__ = [
    "Finished",
    "Run",
    "cli",
    "columns",
    "content",
    "mcp_tools",
    "recording",
    "render",
    "render_side",
    "reply",
    "tool_schemas",
]


@dataclass(frozen=True)
class Finished:
    """How a run of the command ended."""

    code: int
    out: str
    err: str
    transcript: Any = None

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@contextmanager
def mcp_server(data: Path, *options: str) -> Iterator[str]:
    """An MCP server over HTTP as a process of its own; yields its URL."""
    argv = [sys.executable, str(MCP_SERVER), "--data", str(data), *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the MCP server did not start"
            yield url
        finally:
            process.kill()


Run = Callable[..., Finished]


def mcp_command(data: Path) -> str:
    """The MCP server over stdio, as a value for --mcp-command."""
    return f"'{sys.executable}' '{MCP_SERVER}' --data '{data}' --stdio"


def script_argv(*arguments: str) -> list[str]:
    """The command as a user types it, in an environment without a proxy package."""
    return [sys.executable, str(SCRIPT), *arguments]


def user_environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OPENAI_API_KEY": KEY, **changes}
