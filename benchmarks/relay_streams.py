"""Many streams at a time through the proxy: whether all are whole, how late a token comes, memory.

    python benchmarks/relay_streams.py [STREAMS] [TOKENS_PER_SECOND] [SECONDS]

By default 1,000 streams of 20 tokens a second for 60 seconds. The server, with its durable queue,
is pinned to one core, the provider and the clients to another. A delay is the time from the
provider's sending of an event to the client's receipt. Afterwards the log must hold one complete
response row for each stream.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from relay_throughput import HERE, KEY, Proxy, pinned, provider, proxy


def memory_bytes(server: Proxy, kind: str) -> int:
    """``VmRSS``, the resident size now, or ``VmHWM``, the largest so far."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the server ended")


def run(server: Proxy, streams: int, tokens: int, pace_seconds: float) -> None:
    command = [*pinned(1), sys.executable, str(HERE / "streams.py"), "clients", server.url, KEY]
    cpu, started = server.cpu_seconds(), time.monotonic()
    clients = subprocess.Popen(
        [*command, str(streams), str(tokens), str(pace_seconds)], stdout=subprocess.PIPE, text=True
    )
    sizes = []
    while clients.poll() is None:
        sizes.append(memory_bytes(server, "VmRSS"))
        time.sleep(1.0)
    cpu = server.cpu_seconds() - cpu
    out, _ = clients.communicate()
    figures = json.loads(out)
    print(
        f"{figures['complete']} of {streams} streams of {tokens} tokens complete "
        f"in {figures['seconds']:.1f} s"
    )
    for why in figures["broken"]:
        print(f"  broken: {why}")
    print(
        f"delay of a token: p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, "
        f"max {figures['max_ms']:.0f} ms"
    )
    events = figures["complete"] * (tokens + 2)
    print(
        f"server CPU: {cpu / (time.monotonic() - started) * 100:.0f} % of a core, "
        f"{cpu / max(1, events) * 1e6:.0f} us an event"
    )
    show = [sizes[len(sizes) * i // 4] for i in range(4)] + sizes[-1:]
    print("resident MB over the run:", " ".join(f"{size / 1e6:.0f}" for size in show))


def check_log(folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    for path in folder.glob("*/*.jsonl"):
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            if row["type"] == "response":
                whole = row.get("finish_reason") == "stop"
                outcomes[f"{row['outcome']}{'' if whole else ', not whole'}"] += 1
    print("response rows:", dict(outcomes))


def main() -> None:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60.0
    with tempfile.TemporaryDirectory() as name, provider("streams.py") as provider_port:
        folder = Path(name)
        with proxy(folder, provider_port, True) as server:
            run(server, 10, 20, 0.01)
            idle = memory_bytes(server, "VmRSS")
            print(f"idle: {idle / 1e6:.0f} MB; now the run")
            run(server, streams, int(rate * seconds), 1 / rate)
            peak = memory_bytes(server, "VmHWM")
            print(
                f"peak: {peak / 1e6:.0f} MB, {(peak - idle) / max(1, streams) / 1e3:.0f} kB/stream"
            )
        check_log(folder / "objects")


if __name__ == "__main__":
    main()
