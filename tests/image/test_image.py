"""The image: built from the lock, run as in the README, healthy, without root, ended by SIGTERM."""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import wire
from engine import IMAGE, ROOT, Engine, EngineUnusable
from waiting import wait_until

REVISION = "0123456789abcdef0123456789abcdef01234567"
# Kept, so that a second run needs no packages; `make clean` removes it.
BASE_ARCHIVE = ROOT / "build" / "image" / "base.tar"
USER = "10001"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine in which the image is built."""
    if os.geteuid() != 0:
        pytest.skip("needs root: buildah with chroot, and podman's network")
    with tempfile.TemporaryDirectory(prefix="image-", ignore_cleanup_errors=True) as folder:
        engine = Engine(Path(folder) / "engine")
        try:
            engine.start(BASE_ARCHIVE)
        except EngineUnusable as reason:
            pytest.skip(str(reason))
        try:
            printed = engine.build(f"--build-arg=REVISION={REVISION}")
            assert "--require-hashes" in printed
            yield engine
        finally:
            engine.close()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., str]]:
    """Starts a container with the options and the command given; returns its address."""

    def run(*words: str) -> str:
        port = wire.free_port()
        published = f"--publish=127.0.0.1:{port}:8002"
        engine.podman("run", "--detach", "--name=tried", published, *words)
        return f"http://127.0.0.1:{port}"

    yield run
    engine.podman("rm", "--force", "--ignore", "--time=1", "tried")


def state(engine: Engine) -> dict[str, object]:
    [container] = json.loads(engine.podman("inspect", "tried"))
    found: dict[str, object] = container["State"]
    return found


def end(engine: Engine) -> object:
    """SIGTERM; the exit status."""
    engine.podman("kill", "--signal=TERM", "tried")
    engine.podman("wait", "tried", seconds=60)
    return state(engine)["ExitCode"]


async def answered(url: str, **headers: str) -> httpx.Response:
    """The answer to GET /health, as soon as there is one."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:

        async def get() -> httpx.Response | None:
            try:
                return await client.get(f"{url}/health", headers=headers)
            except httpx.TransportError:
                return None

        return await wait_until(get, f"{url} answers", 60, 0.1)


def readme_words() -> list[str]:
    """What stands after `docker run` in the README, without the port, which may be taken here."""
    [line] = re.findall(r"^ +docker run (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(line.replace("<registry>/open-llm-proxy:0.1.0", IMAGE))
    at = words.index("-p")
    assert words[at + 1] == "127.0.0.1:8002:8002"
    # --rm would remove what the test asks at the end.
    return [word for word in words[:at] + words[at + 2 :] if word != "--rm"]


async def test_the_line_of_the_readme_runs_the_demo(
    engine: Engine, start: Callable[..., str]
) -> None:
    url = start(*readme_words())
    await answered(url)
    told = await wait_until(
        lambda: re.search(r"Bearer ([\w-]+)'", engine.logs("tried")), "the key is told"
    )
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.post(
            f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {told[1]}"}
        )
    assert answer.status_code == 200
    assert "Hello!" in answer.json()["choices"][0]["message"]["content"]
    assert end(engine) == 0


async def test_its_own_command_serves_without_root_on_a_root_that_cannot_be_written(
    engine: Engine, start: Callable[..., str]
) -> None:
    url = start(
        *("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *("--env=PROXY_KEY=proxy-key", "--env=NRP_API_KEY=provider-key", IMAGE),
    )
    assert (await answered(url)).json()["status"] == "ok"
    engine.podman("healthcheck", "run", "tried")
    assert engine.podman("exec", "tried", "id", "-u").strip() == USER
    assert engine.podman("exec", "tried", "cat", "/proc/1/cmdline").endswith("serve\0")
    with pytest.raises(AssertionError, match="Read-only file system"):
        engine.podman("exec", "--user=0", "tried", "touch", "/opt/open-llm-proxy/written")
    assert end(engine) == 0


async def test_the_health_check_fails_where_nothing_serves(
    engine: Engine, start: Callable[..., str]
) -> None:
    start(IMAGE, "sleep", "600")
    with pytest.raises(AssertionError):
        engine.podman("healthcheck", "run", "tried")


def test_labels_say_what_it_is_and_what_it_was_made_from(engine: Engine) -> None:
    [image] = json.loads(engine.podman("image", "inspect", IMAGE))
    labels = image["Labels"]
    asked = "from importlib.metadata import version; print(version('open-llm-proxy'))"
    version = engine.podman("run", "--rm", IMAGE, "python", "-c", asked).strip()
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == "open-llm-proxy"
    assert image["Config"]["User"] == f"{USER}:{USER}"
    assert image["Config"]["Volumes"] == {"/var/lib/open-llm-proxy": {}}


def test_no_tool_that_installs_is_left_in_it(engine: Engine) -> None:
    listed = engine.podman("run", "--rm", IMAGE, "ls", "/opt/open-llm-proxy/bin").split()
    assert "open-llm-proxy" in listed
    assert not [name for name in listed if name.startswith("pip")]


def test_a_wheel_that_the_lock_does_not_name_is_not_installed(
    engine: Engine, tmp_path: Path
) -> None:
    """The same build fails with another hash in the lock."""
    copy = tmp_path / "Dockerfile"
    text = (ROOT / "Dockerfile").read_text()
    line = "COPY requirements.lock /src/\n"
    assert line in text
    wrong = f"RUN sed -i 's/sha256:[0-9a-f]*/sha256:{'0' * 64}/' /src/requirements.lock\n"
    copy.write_text(text.replace(line, line + wrong))
    with pytest.raises(AssertionError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        engine.build(f"--file={copy}")
