"""Many streams at a time: whether all are whole, how late a token comes, memory, tokens a second.

    python benchmarks/relay_streams.py [--streams 100,300,1000] [--rate 20] [--seconds 30]
                                       [--flat-out 50] [--json FILE]

Paced: streams of `rate` tokens a second; a delay is the time from the provider's sending of an
event to the client's receipt. Flat out: so many streams as fast as they are taken. The control is
floor_server.py, which passes the same streams on without any promise, in turn with the proxy, whose
durable queue is on. Servers are pinned to one core, the provider and the clients to another. At the
end the log must hold one complete response row for each stream.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from relay_throughput import DURABLE, FLOOR, HERE, KEY, Proxy, floor, pinned, provider, proxy

FLAT_OUT_TOKENS = 2000
FLAT_OUT_ROUNDS = 3


def memory_bytes(server: Proxy, kind: str) -> int:
    """``VmRSS``, the resident size now, or ``VmHWM``, the largest so far."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the server ended")


def run(server: Proxy, streams: int, tokens: int, pace_seconds: float) -> dict[str, Any]:
    """The clients' figures, the server's CPU and its memory while they run."""
    command = [*pinned(1), sys.executable, str(HERE / "streams.py"), "clients", server.url, KEY]
    cpu = server.cpu_seconds()
    clients = subprocess.Popen(
        [*command, str(streams), str(tokens), str(pace_seconds)], stdout=subprocess.PIPE, text=True
    )
    sizes = []
    while clients.poll() is None:
        sizes.append(memory_bytes(server, "VmRSS") / 1e6)
        time.sleep(0.5)
    cpu = server.cpu_seconds() - cpu
    out, _ = clients.communicate()
    figures: dict[str, Any] = json.loads(out)
    figures["cpu_share"] = cpu / figures["seconds"]
    figures["cpu_us_a_token"] = cpu / max(1, figures["tokens"]) * 1e6
    figures["tokens_a_second"] = figures["tokens"] / figures["seconds"]
    figures["memory_mb"] = [sizes[len(sizes) * i // 4] for i in range(4)] + sizes[-1:]
    return figures


def paced(servers: dict[str, Proxy], streams: int, rate: float, seconds: float) -> dict[str, Any]:
    print(f"{streams} streams of {rate:g} tokens a second for {seconds:g} s")
    table = {}
    for name, server in servers.items():
        table[name] = figures = run(server, streams, int(rate * seconds), 1 / rate)
        memory = " ".join(f"{size:.0f}" for size in figures["memory_mb"])
        print(
            f"  {name:8s} {figures['complete']} whole, delay p50 {figures['p50_ms']:.1f} ms, "
            f"p99 {figures['p99_ms']:.1f} ms, max {figures['max_ms']:.0f} ms; CPU "
            f"{figures['cpu_share'] * 100:.0f} % of a core, {figures['cpu_us_a_token']:.0f} us a "
            f"token; MB over the run: {memory}"
        )
        for why in figures["broken"]:
            print(f"    broken: {why}")
    added = table[DURABLE]["p99_ms"] - table[FLOOR]["p99_ms"]
    print(f"  p99 added to the floor's: {added:.1f} ms")
    return table


def flat_out(servers: dict[str, Proxy], streams: int) -> dict[str, Any]:
    print(f"{streams} streams of {FLAT_OUT_TOKENS} tokens, as fast as they are taken")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(FLAT_OUT_ROUNDS):
        for name, server in servers.items():
            found[name].append(run(server, streams, FLAT_OUT_TOKENS, 0.0))
    table = {}
    for name, rounds in found.items():
        row: dict[str, Any] = {"complete": sum(figures["complete"] for figures in rounds)}
        for figure in ("tokens_a_second", "cpu_us_a_token"):
            values = [figures[figure] for figures in rounds]
            ratios = [a[figure] / b[figure] for a, b in zip(rounds, found[FLOOR], strict=True)]
            row[figure], row[f"{figure}_ratio"] = map(statistics.median, (values, ratios))
            row[f"{figure}_low"], row[f"{figure}_high"] = min(values), max(values)
        table[name] = row
        print(
            f"  {name:8s} {row['tokens_a_second']:8.0f} tokens/s "
            f"({row['tokens_a_second_low']:.0f}-{row['tokens_a_second_high']:.0f}), "
            f"{row['tokens_a_second_ratio']:.2f} of the floor; "
            f"CPU {row['cpu_us_a_token']:.1f} us a token"
        )
    return table


def check_log(folder: Path) -> dict[str, int]:
    """How the calls of all objects ended."""
    outcomes: Counter[str] = Counter()
    for path in folder.glob("*/*.jsonl"):
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            if row["type"] == "response":
                whole = row.get("finish_reason") == "stop"
                outcomes[f"{row['outcome']}{'' if whole else ', not whole'}"] += 1
    print("response rows:", dict(outcomes))
    return dict(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", default="100,300,1000")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--flat-out", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {"rate": options.rate, "seconds": options.seconds, "paced": {}}
    folder = Path(tempfile.mkdtemp())
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(provider("streams.py"))
        servers = {
            FLOOR: stack.enter_context(floor(port)),
            DURABLE: stack.enter_context(proxy(folder, port, queue=True)),
        }
        for server in servers.values():
            run(server, 10, 20, 0.01)
        for streams in map(int, options.streams.split(",")):
            record["paced"][streams] = paced(servers, streams, options.rate, options.seconds)
        if options.flat_out:
            record["flat_out"] = flat_out(servers, options.flat_out)
        record["peak_mb"] = memory_bytes(servers[DURABLE], "VmHWM") / 1e6
        print(f"peak memory of the proxy: {record['peak_mb']:.0f} MB")
    record["outcomes"] = check_log(folder / "objects")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
