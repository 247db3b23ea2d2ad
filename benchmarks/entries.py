"""What the entries of one call cost, in microseconds of processor time.

    python benchmarks/entries.py [--baseline COMMIT]

Measured is all that a call without a stream adds for its log: identity, question, request row, the
row for the case of a death, the transcript of the answer and the response row, with redaction on,
capture `summary` and a prompt of 4 kB. `repeated` asks the same prompt in every call, as
applications do with what they say first; `fresh` asks another one each time, which no cache can
know; `system` has the 4 kB in a system message and a short question that is new each time. The
control is a bare `msgspec.json.encode` of the same rows, made in advance. `--baseline` measures an
older commit of this repository by the same calls, in turns with this one: that of format 1 is
d78566d.
"""

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from tornado.httputil import HTTPHeaders

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 7
CALLS = 400
PROMPT = (ROOT / "tests" / "data" / "geo-agent-system-prompt.md").read_text()[:4096]
HEADERS = {
    "Origin": "https://padus.example.org",
    "X-Session-Id": "550e8400-e29b-41d4-a716-446655440000",
    "Authorization": "Bearer " + "0" * 40,
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 1.99",
    "X-Stainless-Retry-Count": "0",
}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789",
        "object": "chat.completion",
        "created": 1775520000,
        "model": "kimi",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Protected areas cover a share. " * 13},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
).encode()


def body(kind: str, number: int) -> bytes:
    """The body of the call of that number: about 4 kB."""
    if kind == "system":
        question = f"How many parks are there in county {number}?"
        messages = [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": question},
        ]
    else:
        text = PROMPT if kind == "repeated" else f"{number}: {PROMPT}"
        messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "kimi", "messages": messages, "temperature": 0}).encode()


def found(name: str, *modules: str) -> Any:
    """What the product calls so, wherever this or an older version has it."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise ImportError(name)


class Calls:
    """Makes the entries of calls with the product that is imported here, old or new."""

    def __init__(self) -> None:
        server = "open_llm_proxy.server."
        self._entries_class = found("CallEntries", server + "entries.call_entries")
        self._result = found("CallResult", server + "call_result", server + "entries.call_entries")
        self._parse = found(
            "ClientRequest", server + "client_request", server + "relay.client_request"
        ).parse
        try:
            self._reader = found("make_transcript_reader", server + "transcript.reader")
        except ImportError:
            self._reader = found("TranscriptReader", server + "transcript.reader")
        self._headers = HTTPHeaders(HEADERS)
        self._redactor = found(
            "RememberingRedactor", server + "redaction.cache", server + "redaction.remembering"
        )(["x" * 40, "y" * 40])
        provenance = found("Provenance", server + "entries.call_entries")
        self._provenance = provenance("0.1.0", "a" * 64, "proxy-0")
        self._capture = found("Capture", server + "entries.capture")()
        self.rows: list[bytes] = []

    # The part of an entry log that is used here; nothing is stored.
    def open(self, entries: Any, interrupted: Any) -> "Calls":
        self.rows = [entry.body for entry in entries]
        return self

    @property
    def stored(self) -> Any:
        return None

    def seconds(self, kind: str, start: int, count: int) -> float:
        """The seconds for so many calls; what is no entry's work is done before."""
        sent = [body(kind, start + number) for number in range(count)]
        asked = [(data, self._parse(data)) for data in sent]
        begun = time.process_time()
        for data, request in asked:
            self.one(data, request)
        return time.process_time() - begun

    def one(self, data: bytes, request: Any) -> None:
        entries = self._entries_class(
            self._provenance,
            self._redactor,
            self._headers,
            request_id="0123456789abcdef",
            key_name="default",
            endpoint="/v1/chat/completions",
            capture=self._capture,
        )
        entries.set_unread(data)
        entries.set_request(request)
        entries.set_route("nrp", None)
        entries.open(self)
        reader = self._reader("application/json", None, 4 << 20)
        reader.feed(ANSWER)
        result = self._result()
        result.status, result.outcome, result.transcript = 200, "ok", reader.finish()
        self.rows.append(entries.response(result).body)


def control(rows: list[bytes]) -> float:
    """Seconds for the bare encoding of these rows, from plain dicts."""
    values = [msgspec.json.decode(row) for row in rows]
    begun = time.process_time()
    for _ in range(CALLS):
        for value in values:
            msgspec.json.encode(value)
    return (time.process_time() - begun) / CALLS


def measure() -> dict[str, float]:
    """Microseconds a call by kind of prompt, and of the control."""
    calls = Calls()
    found: dict[str, float] = {}
    for kind in ("repeated", "system", "fresh"):
        calls.seconds(kind, 0, 20)
        found[kind] = calls.seconds(kind, 1000 + int(time.time() * 1000) % 10**9, CALLS) / CALLS
        if kind == "repeated":
            found["bare encode"] = control(calls.rows)
    return {kind: seconds * 1e6 for kind, seconds in found.items()}


def serve_measurements() -> None:
    """A child: one measurement for each line on stdin."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


@contextlib.contextmanager
def measured_by(tree: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that imports the product from `tree` and measures it when asked."""
    path = tree.resolve()
    code = (
        "import sys, runpy\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path[:0] = [{str(path)!r}]\n"
        f"sys.argv = ['entries.py', '--child']\n"
        f"runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.communicate("")


def product_at(commit: str | None) -> Path:
    """A folder with the package `open_llm_proxy` as it is, or was at a commit."""
    tree = ROOT / "build" / "entries" / (commit or "now")
    package = tree / "open_llm_proxy"
    package.mkdir(parents=True, exist_ok=True)
    if commit is None:
        for name in ("server", "queue", "archive"):
            with contextlib.suppress(FileExistsError):
                (package / name).symlink_to(ROOT / name)
        return tree
    packed = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        wanted = [
            item
            for item in archive.getmembers()
            if item.name.partition("/")[0] in ("server", "queue", "archive")
        ]
        archive.extractall(package, wanted, filter="data")
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--baseline", metavar="COMMIT", help="measure that commit too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        serve_measurements()
        return
    os.environ.pop("PYTHONPATH", None)
    names = [None] + ([chosen.baseline] if chosen.baseline else [])
    with contextlib.ExitStack() as stack:
        children = [(name, stack.enter_context(measured_by(product_at(name)))) for name in names]
        found: dict[str | None, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name, child in children:
                assert child.stdin and child.stdout
                child.stdin.write("\n")
                child.stdin.flush()
                found[name].append(json.loads(child.stdout.readline()))
    kinds = list(found[None][0])
    print("microseconds of CPU a call: median (lowest to highest) of", ROUNDS, "interleaved rounds")
    print(f"{'':14}" + "".join(f"{kind:>26}" for kind in kinds))
    for name in names:
        cells = []
        for kind in kinds:
            values = [one[kind] for one in found[name]]
            cells.append(
                f"{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})"
            )
        print(f"{name or 'now':14}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
