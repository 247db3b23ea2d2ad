"""Calls per second and a call's delay: the floor, the proxy without a sink, the durable proxy.

    python benchmarks/relay_throughput.py [--rounds N] [--seconds N] [--connections 1,8,32,128]
                                          [--json FILE]

The control is floor_server.py, thirty lines of Tornado without any promise. Servers are pinned to
one core, the provider and the callers to another. All run in turn in every round, so that a drift
of the machine meets each; a ratio is the median over the rounds, and its spread is given. CPU is
the server process's own time a call, which a busy machine changes least. Each call has the same
system prompt of 4 kB and a question of its own; the proxy's stdout goes to a file.
"""

import argparse
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
from typing import Any, NamedTuple

HERE = Path(__file__).parent
KEY = "benchmark-proxy-key"
SERVE = ("-m", "open_llm_proxy.server.commands.cli", "serve")
FLOOR, STDOUT_ONLY, DURABLE = "floor", "stdout only", "durable"


class Proxy(NamedTuple):
    url: str
    pid: int
    headers: str = "{}"  # what its calls need beside a key

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
    folder.mkdir(exist_ok=True)
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
        command,
        env=environment,
        stdout=(folder / "stdout.jsonl").open("wb"),
        stderr=(folder / "stderr.txt").open("wb"),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield Proxy(url, process.pid)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def floor(provider_port: int) -> Iterator["Proxy"]:
    """The control."""
    command = [*pinned(0), sys.executable, str(HERE / "floor_server.py"), str(provider_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Proxy(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
    finally:
        process.kill()
        process.wait()


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


def measure(server: Proxy, connections: int, seconds: float, *body: str) -> dict[str, float]:
    """Calls per second, median latency and the server's CPU time per call; `body` is a file."""
    command = [*pinned(1), sys.executable, str(HERE / "load.py"), "load", server.url, KEY]
    cpu = server.cpu_seconds()
    done = subprocess.run(
        [*command, str(connections), str(seconds), server.headers, *body],
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return {
        "rate": figures["calls"] / figures["seconds"],
        "p50_ms": figures["p50_ms"],
        "cpu_ms": (server.cpu_seconds() - cpu) / figures["calls"] * 1000,
    }


def fdatasync_ms(folder: Path) -> float:
    """Median time of a durable write of 4 kB where the queue lies."""
    times = []
    with (folder / "probe").open("wb") as probe:
        for _ in range(200):
            probe.write(b"x" * 4096)
            probe.flush()
            began = time.perf_counter()
            os.fdatasync(probe.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def measured_rounds(
    servers: dict[str, Proxy], connections: int, rounds: int, seconds: float, *body: str
) -> dict[str, list[dict[str, float]]]:
    """The figures of each server, round by round; the order turns, so that none is always first."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    names = list(servers)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(measure(servers[name], connections, seconds, *body))
    return found


def summary(found: dict[str, list[dict[str, float]]], control: str) -> dict[str, dict[str, float]]:
    """Medians and spreads of each server, and its ratios to the control's, round by round."""
    table: dict[str, dict[str, float]] = {}
    for name, figures in found.items():
        pairs = list(zip(figures, found[control], strict=True))
        row = {}
        for figure in ("rate", "p50_ms", "cpu_ms"):
            values = [each[figure] for each in figures]
            ratios = [each[figure] / base[figure] for each, base in pairs]
            row[figure], row[f"{figure}_ratio"] = map(statistics.median, (values, ratios))
            row[f"{figure}_low"], row[f"{figure}_high"] = min(values), max(values)
        table[name] = row
    return table


def show(connections: int, table: dict[str, dict[str, float]]) -> None:
    title = f"{connections} connections"
    print(f"{title:16s} calls/s (spread)       ratio   p50 ms   CPU ms a call  ratio")
    for name, row in table.items():
        spread = f"({row['rate_low']:.0f}-{row['rate_high']:.0f})"
        print(
            f"  {name:14s} {row['rate']:7.0f} {spread:14s} {row['rate_ratio']:6.2f}"
            f" {row['p50_ms']:8.2f} {row['cpu_ms']:15.3f} {row['cpu_ms_ratio']:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", default="1,8,32,128")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record["fdatasync_ms"] = fdatasync_ms(folder)
        print(f"fdatasync of 4 kB: {record['fdatasync_ms']:.3f} ms")
        port = stack.enter_context(provider())
        servers = {
            FLOOR: stack.enter_context(floor(port)),
            STDOUT_ONLY: stack.enter_context(proxy(folder / "stdout-only", port, queue=False)),
            DURABLE: stack.enter_context(proxy(folder / "durable", port, queue=True)),
        }
        for server in servers.values():
            measure(server, 8, 1.0)
        for connections in map(int, options.connections.split(",")):
            found = measured_rounds(servers, connections, options.rounds, options.seconds)
            record.setdefault("connections", {})[connections] = table = summary(found, FLOOR)
            show(connections, table)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
