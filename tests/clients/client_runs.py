"""The clients that are tried, their environments below build/clients/, and a run of each.

Python clients live in a virtual environment each, those for Node and the browser in one folder of
npm packages. What cannot be had is `Missing`, with the reason.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "build" / "clients"
NODE_FOLDER = FOLDER / "node"
NODE_PACKAGES = ("openai", "ai", "@ai-sdk/openai-compatible", "zod", "playwright-core")
RUN_SECONDS = 300


class Missing(Exception):
    """A client cannot be run here; the message says what is not there."""


@dataclass(frozen=True)
class Client:
    """`requirements` are for pip; without any the script is for Node and `package` npm's."""

    name: str
    script: str
    package: str
    requirements: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


LANGCHAIN = "langchain-openai"
# Its list of prices; it would wait for the web when it is imported.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

CLIENTS = (
    Client("openai (Python) 1.x", "use_openai.py", "openai", ("openai<2",)),
    Client("openai (Python)", "use_openai.py", "openai", ("openai",)),
    Client(
        "langchain-openai", "use_langchain_openai.py", "langchain-openai", ("langchain-openai",)
    ),
    Client("pydantic-ai", "use_pydantic_ai.py", "pydantic-ai-slim", ("pydantic-ai-slim[openai]",)),
    Client("litellm", "use_litellm.py", "litellm", ("litellm",), OFFLINE),
    Client("openai (Node)", "use_openai.mjs", "openai"),
    Client("Vercel AI SDK", "use_ai_sdk.mjs", "ai"),
    Client("Chromium, fetch", "use_browser.mjs", "chromium"),
    Client("Chromium, openai", "use_browser.mjs", "openai", environment={"OPENAI": "1"}),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: for each check None or an error, and the request id that was read."""

    results: dict[str, str | None]
    request_id: str | None
    session: str
    version: str


def installed(client: Client) -> list[str]:
    """The program that runs the client's script, installed where it is not yet.

    Raises Missing.
    """
    if not client.requirements:
        return [installed_node(client)]
    folder = FOLDER / client.name.replace(" ", "-").replace("(", "").replace(")", "")
    python = folder / "bin" / "python"
    if not (folder / "filled").exists():
        subprocess.run((sys.executable, "-m", "venv", str(folder)), check=True)
        quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        done = subprocess.run((str(python), *quiet, *client.requirements))
        if done.returncode != 0:
            raise Missing(f"pip cannot install {' '.join(client.requirements)}")
        (folder / "filled").touch()
    return [str(python)]


def installed_node(client: Client) -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("there is no Node with npm: apt-get install nodejs npm")
    if client.script == "use_browser.mjs":
        chromium()
    if not (NODE_FOLDER / "filled").exists():
        NODE_FOLDER.mkdir(parents=True, exist_ok=True)
        (NODE_FOLDER / "package.json").write_text('{"private": true, "type": "module"}\n')
        quiet = ("--no-audit", "--no-fund", "--silent")
        done = subprocess.run((npm, "install", *quiet, *NODE_PACKAGES), cwd=NODE_FOLDER)
        if done.returncode != 0:
            raise Missing(f"npm cannot install {' '.join(NODE_PACKAGES)}")
        (NODE_FOLDER / "filled").touch()
    # Node looks for packages beside the script, so the scripts are put beside the packages.
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, NODE_FOLDER)
    return node


def chromium() -> str:
    program = shutil.which("chromium")
    if program is None:
        raise Missing("there is no Chromium: apt-get install chromium")
    return program


def run(client: Client, program: list[str], base_url: str, key: str, control_url: str) -> Outcome:
    """Run the client's checks against `base_url`."""
    folder = HERE if client.requirements else NODE_FOLDER
    session = f"session-{secrets.token_hex(4)}"
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **client.environment,
        "BASE_URL": base_url,
        "API_KEY": key,
        "CONTROL_URL": control_url,
        "SESSION": session,
        "NONCE": secrets.token_hex(4),
        "MODULES": str(NODE_FOLDER / "node_modules"),
        "CHROMIUM": shutil.which("chromium") or "",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        (*program, str(folder / client.script)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    version = found.get("version") or version_of(client, program)
    return Outcome(found["results"], found["request_id"], session, version)


def version_of(client: Client, program: list[str]) -> str:
    if not client.requirements:
        package = NODE_FOLDER / "node_modules" / client.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    command = (*program, "-c", code, client.package)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
