"""The Dockerfile's steps without an engine: for machines on which no container runs.

Its lines are carried out with the folders of the image moved into one of this machine's, and its
command runs as the image's user, in a mount namespace whose root cannot be written.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import wire
from engine import DOCKERFILE, ROOT, run

USER = "10001"
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")
READ_ONLY = 'mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && cd /tmp && exec "$@"'


def steps(stage: int) -> list[tuple[str, str]]:
    """The instructions of a stage of the Dockerfile, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    pairs = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]
    starts = [number for number, (word, _) in enumerate(pairs) if word == "FROM"]
    return pairs[starts[stage] : [*starts, len(pairs)][stage + 1]]


def argument(stage: int, word: str) -> str:
    [found] = [rest for name, rest in steps(stage) if name == word]
    return found


@dataclass(frozen=True)
class Installed:
    """What the image would hold, in `folder`; `python` is the interpreter that it was made with."""

    folder: Path

    def moved(self, text: str) -> str:
        """A line of the Dockerfile with the image's folders in `folder`."""
        for name in (
            "/opt/open-llm-proxy",
            "/src",
            "/var/lib/open-llm-proxy",
            "/etc/open-llm-proxy",
        ):
            text = re.sub(rf"(?<![\w/]){name}", f"{self.folder}{name}", text)
        return text

    def environment(self, **settings: str) -> dict[str, str]:
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        words = shlex.split(self.moved(argument(1, "ENV").replace("$PATH", path)))
        return {**dict(word.split("=", 1) for word in words), **settings}


def python_for_all() -> str:
    """An interpreter that another user may run, with venv and pip."""
    for name in ("python", "python3"):
        for folder in ("/usr/local/bin", "/usr/bin"):
            path = f"{folder}/{name}"
            words = [
                *AS_USER,
                path,
                "-c",
                "import venv, ensurepip, sys; sys.version_info[1] > 10 or 1 / 0",
            ]
            if os.path.exists(path) and not subprocess.run(words, capture_output=True).returncode:
                return path
    pytest.skip("no Python 3.11 with venv that another user than root may run")


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    tried = ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", "true"]
    if (result := subprocess.run(tried, capture_output=True, text=True)).returncode:
        pytest.skip(f"no mount namespace with a root that cannot be written: {result.stderr}")
    python = python_for_all()
    # Not below /tmp, which the image's user gets a new one of; and for others to read.
    with tempfile.TemporaryDirectory(prefix="image-", dir="/var/tmp") as name:
        image = Installed(Path(name))
        image.folder.chmod(0o755)
        for stage in range(2):
            for word, rest in steps(stage):
                match word:
                    case "COPY" if not rest.startswith("--from="):
                        copy(*image.moved(rest).split())
                    case "RUN" if stage == 0:
                        line = re.sub(r"^python ", f"{python} ", image.moved(rest))
                        run("sh", "-ec", line, seconds=600)
        yield image


def copy(*words: str) -> None:
    *sources, target = words
    for source in sources:
        place = Path(target, source) if target.endswith("/") else Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)


def healthy(check: list[str], env: dict[str, str]) -> bool:
    return subprocess.run(check, env=env, capture_output=True, timeout=60).returncode == 0


def test_what_the_lines_of_the_dockerfile_make_serves_and_ends(installed: Installed) -> None:
    port = str(wire.free_port())
    env = installed.environment(PORT=port, PROXY_KEY="proxy-key", NRP_API_KEY="provider-key")
    command = json.loads(argument(1, "CMD"))
    check = json.loads(argument(1, "HEALTHCHECK").partition("CMD ")[2])
    assert not healthy(check, env)
    volume = installed.folder / "volume"
    volume.mkdir()
    os.chown(volume, int(USER), int(USER))
    queue = Path(env["LOG_QUEUE_DIR"])
    queue.mkdir(parents=True)
    mounted = f"mount --bind {volume} {queue} && {READ_ONLY}"
    words = ["unshare", "--mount", "sh", "-ec", mounted, "sh", *AS_USER, *command]
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not healthy(check, env):
                assert process.poll() is None, process.communicate()[1]
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert f"\nUid:\t{USER}\t" in status and "\nCapEff:\t0000000000000000\n" in status
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, told
    assert "Listening on" in told
