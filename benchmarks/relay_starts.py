"""Start, idle memory, and a burst of new connections.

    python benchmarks/relay_starts.py [--rounds N] [--connections N] [--json FILE]

Start: from the process's birth to the first answer 200 of /ready, with a directory and with S3 (of
which nothing is there: it is not asked before something is to be uploaded). The control is the
start of a Python that imports what the floor needs. Burst: so many connections at the same moment,
each with one call; one whose SYN finds no room in the kernel's queue waits for a second. The kernel
counts those, of the whole machine.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from relay_streams import memory_bytes
from relay_throughput import FLOOR, KEY, Proxy, floor, pinned, provider, proxy

IDLE_SECONDS = 2.0
S3 = {
    "LOG_BUCKET": "benchmark",
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "ONLINE_CHECKS": "off",
}


def started(folder: Path, port: int, queue: bool, **more: str) -> dict[str, float]:
    """Seconds until /ready, and memory and CPU of an idle server."""
    began = time.monotonic()
    with proxy(folder, port, queue, **more) as server:
        seconds = time.monotonic() - began
        cpu = server.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "memory_mb": memory_bytes(server, "VmRSS") / 1e6,
            "idle_cpu_share": (server.cpu_seconds() - cpu) / IDLE_SECONDS,
        }


def bare_start() -> dict[str, float]:
    """The control: Python and Tornado, imported."""
    began = time.monotonic()
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*pinned(0), sys.executable, "-c", "import tornado.web"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {"seconds": time.monotonic() - began, "cpu_seconds": used}


def dropped_syns() -> int:
    """Connections that found no room, since the machine's start."""
    names, values = [
        line.split()
        for line in Path("/proc/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    ]
    return int(values[names.index("ListenDrops")])


async def burst(url: str, connections: int) -> dict[str, float]:
    """Seconds that each of so many new connections needs until it stands, and for its answer."""
    parts = urlsplit(url)
    body = json.dumps({"model": "kimi", "messages": [{"role": "user", "content": "Hello"}]})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()

    async def call() -> tuple[float, float]:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        connected = time.monotonic() - began
        writer.write(request)
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(answer[:300].decode(errors="replace"))
        return connected, time.monotonic() - began

    dropped = dropped_syns()
    times = await asyncio.gather(*(call() for _ in range(connections)))
    return {
        "dropped_syns": dropped_syns() - dropped,
        "slowest_connect_ms": max(connected for connected, _ in times) * 1000,
        "seconds": max(answered for _, answered in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=600)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {"connections": options.connections}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(provider())
        kinds: dict[str, list[dict[str, float]]] = {"bare": [], "directory": [], "S3": []}
        for number in range(options.rounds):
            kinds["bare"].append(bare_start())
            kinds["directory"].append(started(folder / f"d{number}", port, queue=True))
            kinds["S3"].append(started(folder / f"s{number}", port, queue=False, **S3))
        for name, found in kinds.items():
            medians = {
                figure: statistics.median(figures[figure] for figures in found)
                for figure in found[0]
            }
            record[name] = medians
            print(f"{name:10s}", ", ".join(f"{k} {value:.3g}" for k, value in medians.items()))
        servers: dict[str, Proxy] = {
            FLOOR: stack.enter_context(floor(port)),
            "durable": stack.enter_context(proxy(folder / "burst", port, queue=True)),
        }
        record["burst"] = {}
        for name, server in servers.items():
            record["burst"][name] = found_burst = asyncio.run(
                burst(server.url, options.connections)
            )
            print(f"burst of {options.connections}, {name}: {found_burst}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
