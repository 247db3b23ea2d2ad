"""The real server, started as a process of its own on folders that outlive it.

    async with ProxyProcess(tmp_path, one_provider(provider.url), store.env()) as proxy:
        ...            # proxy.url, proxy.health()
        proxy.kill()   # SIGKILL, as the OOM killer or a lost node would
        await proxy.wait()
        await proxy.start()  # the next one, on the same folders and port

Its environment holds nothing of the test's own: only what stands in `settings`. Whatever
happens, `close` leaves no process behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

import wire
from waiting import DeadlinePassed, wait_until

SERVE_ARGV = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "serve")
PROXY_KEY = "proxy-key-of-the-tests"
PROVIDER_KEY = "provider-key-of-the-tests"
QUEUE_ID_LENGTH = 16


class ServerEnded(AssertionError):
    """The server ended although the test needs it."""


def one_provider(url: str, **changes: Any) -> dict[str, Any]:
    """A config.json whose one provider, nrp, answers at `url`; `changes` go into its entry."""
    entry: dict[str, Any] = {
        "endpoint": f"{url}/v1/chat/completions",
        "api_key_env": "NRP_API_KEY",
        "models": ["kimi", "qwen3", "glm-4.7"],
        **changes,
    }
    return {"default_provider": "nrp", "providers": {"nrp": entry}}


class ProxyProcess:
    """`open-llm-proxy serve` under `folder`, started and ended as often as a test likes.

    `settings` are environment variables on top of the defaults below, None takes one away.
    `command_prefix` wraps the command, for example in strace or faketime.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        settings: Mapping[str, str | None],
        *,
        command_prefix: Sequence[str] = (),
        argv: Sequence[str] = SERVE_ARGV,
    ) -> None:
        self.folder = folder
        self.port = wire.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.queue_folder = folder / "queue"
        self.stdout_path = folder / "stdout.jsonl"
        self.stderr_path = folder / "stderr.txt"
        self.command_prefix = tuple(command_prefix)
        self._argv = tuple(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        config_path = folder / "config.json"
        config_path.write_text(json.dumps(config))
        self.settings: dict[str, str | None] = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "CONFIG": str(config_path),
            "PROXY_KEY": PROXY_KEY,
            "NRP_API_KEY": PROVIDER_KEY,
            "LOG_QUEUE_DIR": str(self.queue_folder),
            "FLUSH_INTERVAL_SECONDS": "1",
            "SHUTDOWN_DELAY_SECONDS": "0",
            # They would reach the test's provider and store at any moment.
            "ONLINE_CHECKS": "off",
            **settings,
        }

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process as started, with a `command_prefix` that of the prefix."""
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(
        self,
        *,
        until: str | None = "/ready",
        timeout_seconds: float = 20.0,
        stdout: int | None = None,
    ) -> None:
        """Start the server and wait until the route `until` answers 200; None does not wait.

        stdout and stderr are appended to files; `stdout` hands over a file descriptor instead.
        Raises `ServerEnded` or `DeadlinePassed`, both of which show stderr.
        """
        assert not self.running, "the server runs already"
        self._spawn(stdout)
        if until is None:
            return
        route = until

        async def answers() -> bool:
            if not self.running:
                raise ServerEnded(f"exit code {self.process.returncode}; {self._last_words()}")
            return await self.status(route) == 200

        try:
            await wait_until(answers, f"{until} answers 200", timeout_seconds)
        except DeadlinePassed as error:
            raise DeadlinePassed(f"{error}; {self._last_words()}") from None

    def _spawn(self, stdout: int | None) -> None:
        self.queue_folder.mkdir(exist_ok=True)
        with self.stdout_path.open("ab") as out, self.stderr_path.open("ab") as err:
            self._process = subprocess.Popen(
                (*self.command_prefix, *self._argv),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """The environment of the process, whole."""
        inherited = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        chosen = {name: value for name, value in self.settings.items() if value is not None}
        return {**inherited, **chosen}

    async def status(self, route: str) -> int:
        """The status of a GET of `route`, 0 where nothing answers."""
        try:
            return (await self._get(route)).status_code
        except httpx.TransportError:
            return 0

    async def health(self) -> dict[str, Any]:
        """What `/health` says."""
        answer = await self._get("/health")
        value: dict[str, Any] = answer.raise_for_status().json()
        return value

    async def drained(self, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Return `/health` once every row has left this queue and all that were adopted."""

        async def empty() -> dict[str, Any] | None:
            if not self.running:
                raise ServerEnded(f"exit code {self.process.returncode}; {self._last_words()}")
            health = await self.health()
            log = health["log"]
            idle = log["queued_rows"] == 0 and log["open_calls"] == 0
            return health if idle and self.queues() <= {log["queue_id"]} else None

        try:
            return await wait_until(empty, "the queue is drained", timeout_seconds)
        except DeadlinePassed as error:
            log = (await self.health())["log"] if self.running else None
            raise DeadlinePassed(
                f"{error}; queues {sorted(self.queues())}, log {log}; {self._last_words()}"
            ) from None

    def queues(self) -> set[str]:
        """The ids of the queues that have a folder, live or left behind."""
        names = (path.name for path in self.queue_folder.iterdir() if path.is_dir())
        return {name for name in names if len(name.partition(".")[0]) == QUEUE_ID_LENGTH}

    def kill(self) -> None:
        """SIGKILL for the server and everything that it or a prefix started."""
        if self.running:  # else the number may already belong to somebody else
            self._ending = self._tree()
            os.killpg(self.process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, as kubelet sends it."""
        os.kill(self.server_pid(), signal.SIGTERM)

    def usr1(self) -> None:
        """SIGUSR1: seal and upload now."""
        os.kill(self.server_pid(), signal.SIGUSR1)

    async def wait(self, timeout_seconds: float = 30.0) -> int:
        """The exit code, waited for; minus the signal's number after a kill.

        After `kill` it waits for all that was killed: a server behind a prefix is the child of
        another, and holds its locks until it is really gone.
        """

        def ended() -> bool:
            return not self.running and all(is_over(pid) for pid in self._ending)

        await wait_until(ended, "the server ends", timeout_seconds)
        return int(self.process.returncode)

    async def stop(self, timeout_seconds: float = 30.0) -> int:
        """SIGTERM and the exit code that follows."""
        self.terminate()
        return await self.wait(timeout_seconds)

    def has_asked_to_exit(self) -> bool:
        """Whether the process has called exit, although a thread may still hang in the kernel."""
        return _state(self.process.pid) in "ZX"

    def close(self) -> None:
        """Kill what still runs and wait for its end."""
        if self._process is not None:
            self.kill()
            self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def stdout_lines(self) -> list[str]:
        """The whole lines on stdout, of all starts."""
        text = self.stdout_path.read_text() if self.stdout_path.exists() else ""
        return text.split("\n")[:-1]  # not splitlines(): a line may hold U+2028

    def stderr_text(self) -> str:
        """Everything on stderr, of all starts."""
        text = self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""
        return text

    def server_pid(self) -> int:
        """The server's own process id, also behind a prefix that runs it as its child."""
        argv = [os.fsencode(part) for part in self._argv]
        for pid in self._tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1] == argv:
                    return pid
        raise ServerEnded(f"no process {' '.join(self._argv)}; {self._last_words()}")

    def peak_memory_bytes(self) -> int:
        """The largest resident size of the server so far."""
        for line in Path(f"/proc/{self.server_pid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ServerEnded("the process has no memory any more")

    def _tree(self) -> list[int]:
        """The process ids of what was started and of its children, theirs after them."""
        pids = [self.process.pid]
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                pids.extend(int(child) for child in children.split())
        return pids

    async def _get(self, route: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {PROXY_KEY}"}
        # Plain http: verify=False only saves loading the authorities at every poll.
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5.0) as client:
            return await client.get(self.url + route, headers=headers)

    def _last_words(self) -> str:
        text = self.stderr_text().strip()
        return f"stderr ends: {text[-2000:]}" if text else "stderr is empty"


def is_over(pid: int) -> bool:
    """Whether the process has ended with all its threads, reaped by its parent or not."""
    try:
        return _state(pid) in "ZX" and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def _state(pid: int) -> str:
    """The letter of the first thread's state; X where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
