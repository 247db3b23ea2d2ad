"""A long conversation in capture `full`: 200 kB, 60 messages, tools.

    python benchmarks/long_prompt.py [--rounds N] [--seconds N] [--json FILE]

CPU a call, beside the floor that only passes the bytes on; the share of it that redaction has when
no text was seen before, and when only the last message is new, as in a chat that goes on; how long
the event loop was blocked at most, as the processor time of its longest callback; and for how long
others wait meanwhile: /ready is asked every 5 ms, by a process that has to share its core.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from hostile import LongestBlock
from load import NUMBER, PROMPT_FILE
from relay_throughput import (
    DURABLE,
    FLOOR,
    HERE,
    Proxy,
    floor,
    measured_rounds,
    provider,
    proxy,
    show,
    summary,
)

from open_llm_proxy.server.redaction.cache import RememberingRedactor

BYTES, MESSAGES, TOOLS = 200_000, 60, 20
PROBE_SECONDS = 0.005


def conversation() -> dict[str, Any]:
    """A system prompt, then questions, answers and results of tools in turn."""
    prompt = PROMPT_FILE.read_text()
    size = BYTES // MESSAGES - 200
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}]
    for number in range(MESSAGES - 2):
        start = number * 997 % max(1, len(prompt) - size)
        text = f"{number}: {prompt[start : start + size]}"
        role = ("user", "assistant")[number % 2]
        messages.append({"role": role, "content": text})
    messages.append({"role": "user", "content": f"And of parcel {NUMBER}?"})
    parameters = {"type": "object", "properties": {"sql": {"type": "string"}}}
    tools = [
        {
            "type": "function",
            "function": {"name": f"t{n}", "description": prompt[:500], "parameters": parameters},
        }
        for n in range(TOOLS)
    ]
    return {"model": "kimi", "messages": messages, "tools": tools}


def redaction_ms(body: dict[str, Any], is_known: bool) -> float:
    """Median time to redact all messages once, as a new question or a chat that goes on."""
    times = []
    redactor = RememberingRedactor()
    for number in range(9):
        if not is_known:
            redactor = RememberingRedactor()
        texts = [message["content"] for message in body["messages"][:-1]] + [f"new {number}"]
        row = redactor.for_row()
        began = time.thread_time()
        for text in texts:
            row.text(text)
        times.append(time.thread_time() - began)
    return statistics.median(times[1:]) * 1000


class Probe(threading.Thread):
    """Asks /ready again and again; `waits` are the seconds that it took."""

    def __init__(self, server: Proxy) -> None:
        super().__init__(daemon=True)
        self.waits: list[float] = []
        self.stopped = threading.Event()
        self._url = f"{server.url}/ready"

    def run(self) -> None:
        while not self.stopped.wait(PROBE_SECONDS):
            began = time.monotonic()
            urllib.request.urlopen(self._url, timeout=10).close()
            self.waits.append(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    body = conversation()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "body.json"
        file.write_text(json.dumps(body))
        port = stack.enter_context(provider())
        watch = folder / "longest-block"
        watch.write_bytes(bytes(8))
        longest = LongestBlock(watch)
        serving = (str(HERE / "hostile.py"), "serve", str(watch))
        durable = proxy(folder / "proxy", port, True, serving, LOG_CAPTURE="full")
        servers = {FLOOR: stack.enter_context(floor(port)), DURABLE: stack.enter_context(durable)}
        longest.seconds = 0.0  # the start was longer
        probe = Probe(servers[DURABLE])
        probe.start()
        found = measured_rounds(servers, 1, options.rounds, options.seconds, str(file))
        probe.stopped.set()
        probe.join()
    table = summary(found, FLOOR)
    print(f"{file.name}: {len(json.dumps(body)):,} bytes, {MESSAGES} messages, {TOOLS} tools")
    show(1, table)
    waits = sorted(probe.waits)
    record = {
        "bytes": len(json.dumps(body)),
        "messages": MESSAGES,
        "tools": TOOLS,
        "table": table,
        "redaction_new_ms": redaction_ms(body, is_known=False),
        "redaction_known_ms": redaction_ms(body, is_known=True),
        "blocked_ms": longest.seconds * 1000,
        "others_p99_ms": waits[len(waits) * 99 // 100] * 1000,
        "others_max_ms": waits[-1] * 1000,
    }
    print(json.dumps({name: value for name, value in record.items() if name != "table"}))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
