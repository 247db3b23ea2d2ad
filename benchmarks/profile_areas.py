"""Where the proxy's event loop spends its time: by area, and the top of a flame graph.

    python benchmarks/profile_areas.py [--seconds N] [--json FILE] [--flame FILE]

py-spy samples the durable proxy under the load of relay_throughput.py, 32 connections. A sample
belongs to the area of its innermost frame that is in one: what the standard library does for an
area counts as that area's. `--flame` also writes the samples as flamegraph.pl and speedscope.app
read them.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from relay_throughput import measure, pinned, provider, proxy

CONNECTIONS = 32
SAMPLES_PER_SECOND = 400
TOP = 25
# A part of a frame's file → the area; the first that fits.
AREAS = (
    ("server/redaction/", "redaction"),
    ("server/transcript/", "transcript of the answer"),
    ("server/entries/", "log entries"),
    ("archive/", "log entries"),
    ("server/json_", "reading the request's JSON"),
    ("server/client_request", "reading the request's JSON"),
    ("server/top_level", "reading the request's JSON"),
    ("server/upstream/", "provider's connection"),
    ("server/metrics", "metrics"),
    ("prometheus_client/", "metrics"),
    ("queue/", "queue: hand-over and completion"),
    ("writer.py", "queue: hand-over and completion"),
    ("log_queue.py", "queue: hand-over and completion"),
    ("commit_group.py", "queue: hand-over and completion"),
    ("stall_clock.py", "queue: hand-over and completion"),
    ("server/http1/", "client's connection and HTTP"),
    ("server/handler", "client's connection and HTTP"),
    ("server/app", "client's connection and HTTP"),
    ("server/", "relay: keys, routes, headers, the call itself"),
)
WAITING = "waiting for events (select)"
REST = "event loop (asyncio)"


def area(frames: list[str]) -> str:
    for frame in reversed(frames):
        file = frame.rpartition(" (")[2]
        for part, name in AREAS:
            if part in file:
                return name
    return WAITING if "selectors.py" in frames[-1] else REST


def without_line(frame: str) -> str:
    return frame.rpartition(":")[0] + ")" if ":" in frame else frame


def aggregated(raw: str) -> dict[str, Any]:
    """Shares of the samples of the main thread, by area and by function (itself and below)."""
    areas: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [without_line(frame) for frame in stack.split(";")]
        if not any("asyncio/base_events.py" in frame for frame in frames):
            continue  # another thread
        number = int(count)
        total += number
        areas[area(frames)] += number
        for frame in set(frames):
            inclusive[frame] += number
    ours = [
        (name, n) for name, n in inclusive.most_common() if "server/" in name or "queue" in name
    ]
    return {
        "samples": total,
        "areas": {name: n / total for name, n in areas.most_common()},
        "top": {name: n / total for name, n in ours if n < 0.75 * total},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flame", type=Path)
    options = parser.parse_args()
    spy = Path(sys.executable).parent / "py-spy"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(provider())
        server = stack.enter_context(proxy(folder, port, queue=True))
        measure(server, 8, 1.0)
        samples = folder / "samples.txt"
        command = [*pinned(1), str(spy), "record", "--pid", str(server.pid), "--threads"]
        command += ["--rate", str(SAMPLES_PER_SECOND), "--duration", str(options.seconds)]
        command += ["--format", "raw", "--output", str(samples)]
        recording = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        measure(server, CONNECTIONS, options.seconds + 1)
        recording.wait()
        record = aggregated(samples.read_text())
        if options.flame:
            shutil.copy(samples, options.flame)
    print(f"{record['samples']} samples of the event loop's thread")
    for name, share in record["areas"].items():
        print(f"{share * 100:6.1f} % {name}")
    print("functions, with all that they call:")
    for name, share in list(record["top"].items())[:TOP]:
        print(f"{share * 100:6.1f} % {name}")
    record["top"] = dict(list(record["top"].items())[:TOP])
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
