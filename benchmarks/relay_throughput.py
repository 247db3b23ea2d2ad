"""Calls per second through the proxy: durable queue on, beside the same relay with it off.

    python benchmarks/relay_throughput.py [ROUNDS] [SECONDS]

The server is pinned to one core, the provider and the callers to another. Queue on and queue off
run in turn in every round, so that a drift of the machine meets both; the ratio is the median
over the rounds. Prompts of 4 kB, as agents send them.
"""

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
KEY = "benchmark-proxy-key"
CONNECTIONS = (1, 32)
SERVE = ("-m", "open_llm_proxy.server.commands.cli", "serve")


class Proxy(NamedTuple):
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the server so far: what a busy machine does not change."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)] if shutil.which("taskset") and os.cpu_count() != 1 else []


@contextlib.contextmanager
def provider(script: str = "load.py") -> Iterator[int]:
    """A fake provider, which is a command of that script; gives its port."""
    command = [*pinned(1), sys.executable, str(HERE / script), "provider"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def proxy(
    folder: Path,
    provider_port: int,
    queue: bool,
    serve: Sequence[str] = SERVE,
    **more: str,
) -> Iterator["Proxy"]:
    """The real server; `queue` decides whether there is a sink, and with it the queue.

    `serve` are Python's arguments, `more` are further settings.
    """
    port = free_port()
    config = folder / "config.json"
    endpoint = f"http://127.0.0.1:{provider_port}/v1/chat/completions"
    entry = {"endpoint": endpoint, "api_key_env": "NRP_API_KEY", "models": ["kimi"]}
    config.write_text(json.dumps({"providers": {"nrp": entry}}))
    environment = {
        "PATH": os.environ["PATH"],
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "CONFIG": str(config),
        "PROXY_KEY": KEY,
        "NRP_API_KEY": "benchmark-provider-key",
        "LOG_QUEUE_DIR": str(folder / "queue"),
        "SHUTDOWN_DELAY_SECONDS": "0",
        **more,
    }
    if queue:
        environment["LOG_DIR"] = str(folder / "objects")
    command = [*pinned(0), sys.executable, *serve]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield Proxy(url, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/ready", timeout=1).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the server did not start (exit code {process.poll()})")


def measure(server: Proxy, connections: int, seconds: float) -> dict[str, float]:
    """Calls per second, median latency and the server's CPU time per call."""
    command = [*pinned(1), sys.executable, str(HERE / "load.py"), "load", server.url, KEY]
    cpu = server.cpu_seconds()
    done = subprocess.run(
        [*command, str(connections), str(seconds)], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return {
        "rate": figures["calls"] / figures["seconds"],
        "p50_ms": figures["p50_ms"],
        "cpu_ms": (server.cpu_seconds() - cpu) / figures["calls"] * 1000,
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    with tempfile.TemporaryDirectory() as name, provider() as provider_port:
        folder = Path(name)
        with proxy(folder, provider_port, True) as on, proxy(folder, provider_port, False) as off:
            for server in (on, off):
                measure(server, 8, 1.0)
            for connections in CONNECTIONS:
                report(connections, rounds, seconds, on, off)


def report(connections: int, rounds: int, seconds: float, on: Proxy, off: Proxy) -> None:
    found: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for _ in range(rounds):
        for name, server in (("on", on), ("off", off)):
            found[name].append(measure(server, connections, seconds))

    def median(name: str, figure: str) -> float:
        return statistics.median(figures[figure] for figures in found[name])

    for name in found:
        rates = [figures["rate"] for figures in found[name]]
        print(
            f"{connections:3d} connections, queue {name:3s}: {median(name, 'rate'):6.0f} calls/s "
            f"({min(rates):.0f}-{max(rates):.0f}), p50 {median(name, 'p50_ms'):.2f} ms, "
            f"server CPU {median(name, 'cpu_ms'):.3f} ms a call"
        )
    for figure in ("rate", "cpu_ms"):
        ratios = [a[figure] / b[figure] for a, b in zip(found["on"], found["off"], strict=True)]
        print(f"{connections:3d} connections, {figure} on/off: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
