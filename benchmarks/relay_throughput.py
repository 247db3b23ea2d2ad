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
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
KEY = "benchmark-proxy-key"
CONNECTIONS = (1, 32)


def pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)] if shutil.which("taskset") and os.cpu_count() != 1 else []


@contextlib.contextmanager
def provider() -> Iterator[int]:
    command = [*pinned(1), sys.executable, str(HERE / "load.py"), "provider"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def proxy(folder: Path, provider_port: int, queue: bool) -> Iterator[str]:
    """The real server; `queue` decides whether there is a sink, and with it the queue."""
    port = 18002 if queue else 18003
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
    }
    if queue:
        environment["LOG_DIR"] = str(folder / "objects")
    command = [*pinned(0), sys.executable, "-m", "open_llm_proxy.server.cli", "serve"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


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


def measure(url: str, connections: int, seconds: float) -> dict[str, float]:
    command = [*pinned(1), sys.executable, str(HERE / "load.py"), "load", url, KEY]
    done = subprocess.run(
        [*command, str(connections), str(seconds)], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    with tempfile.TemporaryDirectory() as name, provider() as provider_port:
        folder = Path(name)
        with proxy(folder, provider_port, True) as on, proxy(folder, provider_port, False) as off:
            for url in (on, off):
                measure(url, 8, 1.0)
            for connections in CONNECTIONS:
                report(connections, rounds, seconds, on, off)


def report(connections: int, rounds: int, seconds: float, on: str, off: str) -> None:
    rates: dict[str, list[float]] = {"on": [], "off": []}
    p50: dict[str, list[float]] = {"on": [], "off": []}
    for _ in range(rounds):
        for name, url in (("on", on), ("off", off)):
            figures = measure(url, connections, seconds)
            rates[name].append(figures["calls"] / figures["seconds"])
            p50[name].append(figures["p50_ms"])
    ratios = [a / b for a, b in zip(rates["on"], rates["off"], strict=True)]
    for name in ("on", "off"):
        print(
            f"{connections:3d} connections, queue {name:3s}: "
            f"{statistics.median(rates[name]):7.0f} calls/s "
            f"({min(rates[name]):.0f}-{max(rates[name]):.0f}), "
            f"p50 {statistics.median(p50[name]):.2f} ms"
        )
    print(f"{connections:3d} connections, on/off: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
