"""Debian's buildah and podman on a base made by mmdebstrap: no registry, and settings of their own.

The base stands in for the Dockerfile's FROM: Debian 12 with its Python 3.11, as the official image
is Debian 12 with a Python of its own. Storage is a folder that the caller removes after `close`.
pip has this machine's settings in the build, so that an index or a certificate authority of its own
works in there too.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "Dockerfile"
PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap")
BASE = "localhost/debian-python:test"
IMAGE = "localhost/open-llm-proxy:test"
PACKAGES = "python3-pip,python3-venv,ca-certificates"

CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
# Nothing comes from elsewhere, so there is nobody's signature to ask for.
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class EngineUnusable(Exception):
    """No image can be built or run on this machine; the message says why."""


def run(
    *command: str | Path,
    seconds: float = 120.0,
    env: Mapping[str, str] | None = None,
    with_stderr: bool = False,
) -> str:
    """The standard output of a command. Raises AssertionError with all that it printed."""
    result = subprocess.run(
        [str(word) for word in command],
        timeout=seconds,
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    printed = result.stdout + result.stderr
    assert result.returncode == 0, f"{command}: {result.returncode}\n{printed}"
    return printed if with_stderr else result.stdout


def make_base(archive: Path) -> None:
    """Write the base's root file system to `archive`, from the sources that this machine uses."""
    index = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    line = f"{index} $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = run("apt-get", "indextargets", "--format", f"$(ORIGIN) {line}", "Identifier: Packages")
    own = {text.partition(" ")[2] for text in listed.splitlines() if text.startswith("Debian ")}
    sources = archive.with_suffix(".list")
    archive.parent.mkdir(parents=True, exist_ok=True)
    sources.write_text("".join(f"{text}\n" for text in sorted(own)))
    unfinished = archive.with_suffix(".unfinished.tar")
    link = 'ln -s python3 "$1/usr/bin/python"'
    try:
        run(
            *("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}"),
            *(f"--customize-hook={link}", "bookworm", unfinished),
            *([sources] if own else []),
            seconds=900,
        )
    except AssertionError as error:
        raise EngineUnusable(f"mmdebstrap made no base: {error}") from None
    unfinished.rename(archive)


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, those of the environment before those of a file."""
    settings: dict[str, str] = {}
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    for line in sorted(listed, key=lambda text: text.startswith(":env:")):
        name, _, value = line.partition("=")
        if name.startswith((":env:.", "global.")):
            settings[name.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def pip_volumes(folder: Path) -> list[str]:
    """Options for a build: the machine's pip settings, and the files and folders they name."""
    settings = pip_settings()
    written = folder / "pip.conf"
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    written.write_text(f"[global]\n{lines}")
    paths = set()
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        # The links of an index in a folder lead to folders beside it.
        path = path.parent if word.startswith("file://") and path.is_dir() else path
        if path.is_absolute() and path.exists() and path != path.parent:
            paths.add(path)
    shared = [f"--volume={path}:{path}:ro" for path in sorted(paths)]
    return [*shared, f"--volume={written}:/etc/pip.conf:ro"]


@dataclass
class Engine:
    """buildah and podman with everything of theirs in `folder`."""

    folder: Path
    driver: str = "overlay"

    def start(self, base: Path) -> None:
        """Import the base and run a program in it; raises `EngineUnusable`."""
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise EngineUnusable(f"not installed: {', '.join(missing)}")
        if not base.exists():
            make_base(base)
        self.folder.mkdir()
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
        (self.folder / "policy.json").write_text(POLICY)
        reasons = []
        # Overlay is quick, but cannot lie on another overlay, as in a container.
        for self.driver in ("overlay", "vfs"):
            try:
                self.podman("import", "--quiet", "--change", "CMD=python3", base, BASE, seconds=300)
                self.podman("run", "--rm", BASE, "python", "-c", "import venv")
                return
            except AssertionError as error:
                reasons.append(str(error))
        raise EngineUnusable("no container runs here: " + "\n".join(reasons))

    def build(self, *options: str) -> str:
        """Build the Dockerfile as `IMAGE`; returns what was printed."""
        [name] = set(re.findall(r"^FROM (\S+:\S+)", DOCKERFILE.read_text(), re.MULTILINE))
        return self._run(
            *("buildah", "build", "--isolation=chroot", "--format=docker", "--pull-never"),
            f"--signature-policy={self.folder / 'policy.json'}",
            f"--build-context={name}=container-image://{BASE}",
            *pip_volumes(self.folder),
            *options,
            *(f"--tag={IMAGE}", ROOT),
            seconds=900,
        )

    def podman(self, *arguments: str | Path, seconds: float = 120.0) -> str:
        return self._run("podman", *arguments, seconds=seconds)

    def logs(self, container: str) -> str:
        """What a container has printed on stdout, then on stderr."""
        return self._run("podman", "logs", container, seconds=60, with_stderr=True)

    def _run(
        self, program: str, *arguments: str | Path, seconds: float, with_stderr: bool = False
    ) -> str:
        place = ("--root", self.folder / f"{self.driver}-root", "--runroot", self.folder / "run")
        return run(
            *(program, *place, "--storage-driver", self.driver, *arguments),
            seconds=seconds,
            with_stderr=with_stderr,
            env={**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")},
        )

    def close(self) -> None:
        """End and remove every container and every mount."""
        self.podman("rm", "--force", "--all", "--time=1")
        self.podman("umount", "--all")
