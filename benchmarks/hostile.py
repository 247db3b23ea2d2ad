"""What bodies, answers and clients that were made to hold the server up do to everybody else.

    python benchmarks/hostile.py [--full] [NAME ...]

The real server with its queue, pinned to one core. Each hostile thing is measured by five figures:
how long it takes, the processor time of the server, the longest that the event loop was blocked,
the longest that another process waited for /health, and how far the server's memory grew, by the
peak that the kernel is told to forget. Where the loop was blocked is the processor time of its
longest callback, so other work on the machine does not count in it; the waiting does count that.
`--full` logs with `LOG_CAPTURE=full`, `--json` prints a line of JSON for each. NAME is the
beginning of one.
"""

import asyncio
import contextlib
import gzip
import json
import mmap
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from relay_throughput import KEY, Proxy, pinned, proxy

MIB = 1 << 20
CHAT = "/v1/chat/completions"
JSON_TYPE = b"Content-Type: application/json\r\n"
STREAM_TYPE = b"Content-Type: text/event-stream\r\n"
CODED_STREAM = STREAM_TYPE + b"Content-Encoding: gzip\r\n"
ANSWER = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
MODELS = json.dumps({"data": [{"id": f"org/model-{n}"} for n in range(100_000)]}).encode()
TEXT = "Fields, and [more]: {data}. "
MANIFEST = "kind: Secret\ndata:\n  a: b\n"


def bomb(unit: bytes) -> bytes:
    """About 200 kB of gzip."""
    return gzip.compress(unit * (200 * MIB // len(unit)))[:200_000]


def filled(unit: str, size: int) -> str:
    return unit * (size // len(unit))


def nested(size: int) -> str:
    """JSON in a string in JSON, as deep as fits."""
    text = '{"password": "' + "x" * (size // 4) + '"}'
    while len(following := json.dumps([text])) < size:
        text = following
    return text


def chat(text: str, **more: object) -> bytes:
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "Why?"}]
    return json.dumps({"model": "kimi", "messages": messages, **more}).encode()


def completion(text: str) -> bytes:
    message = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [message]}).encode()


def events(*documents: str) -> bytes:
    return "".join(f"data: {document}\n\n" for document in (*documents, "[DONE]")).encode()


def delta(text: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})


# What a client sends.
BODIES: dict[str, Callable[[], bytes]] = {
    "58 MiB of objects": lambda: b'{"model":"kimi","x":[%b{}]}' % (b"{}," * (58 * MIB // 3)),
    "8 MiB of numbers": lambda: b'{"model":"kimi","x":[%b1]}' % (b"1," * (4 * MIB)),
    "300,000 token ids": lambda: json.dumps({"model": "kimi", "x": [*range(300_000)]}).encode(),
    "120,000 objects": lambda: b'{"model":"kimi","x":[%b{}]}' % (b"{}," * 120_000),
    "8 MiB of text": lambda: chat(filled(TEXT, 8 * MIB)),
    "4 MiB of mysql -px": lambda: chat("mysql " + " -px" * MIB),
    "4 MiB of quotes": lambda: chat('"' * (2 * MIB)),
    "4 MiB of manifests": lambda: chat(filled(MANIFEST, 4 * MIB)),
    "4 MiB of nested JSON": lambda: chat(nested(4 * MIB)),
    "8 MiB in 100,000 messages": lambda: json.dumps(
        {"model": "kimi", "messages": [{"role": "user", "content": "x" * 40}] * 100_000}
    ).encode(),
    "8 MiB with a name twice": lambda: chat("y" * 8 * MIB)[:-1] + b',"model":"kimi"}',
    "8 MiB, spaced": lambda: json.dumps(json.loads(chat(filled(TEXT, 8 * MIB))), indent=3).encode(),
}
# The same in gzip.
CODED: dict[str, Callable[[], bytes]] = {
    "60 MiB of text in gzip": lambda: gzip.compress(chat("x" * 60 * MIB)),
    "8 MiB of text in gzip": lambda: gzip.compress(chat(filled(TEXT, 8 * MIB))),
}
# What a provider answers: its head's lines and its body.
ANSWERS: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "gzip: newlines": lambda: (CODED_STREAM, bomb(b"\n")),
    "gzip: empty events": lambda: (CODED_STREAM, bomb(b"data: \n\n")),
    "gzip: events": lambda: (CODED_STREAM, bomb(f"data: {delta('a')}\n\n".encode())),
    "answer of 8 MiB of text": lambda: (JSON_TYPE, completion(filled(TEXT, 8 * MIB))),
    "answer of 4 MiB of manifests": lambda: (JSON_TYPE, completion(filled(MANIFEST, 4 * MIB))),
    "answer of 4 MiB of nested JSON": lambda: (JSON_TYPE, completion(nested(4 * MIB))),
    "answer of 1 MiB of objects": lambda: (JSON_TYPE, b"[" + b"{}," * (MIB // 3) + b"{}]"),
    "answer of 8 MiB of objects": lambda: (JSON_TYPE, b"[" + b"{}," * (8 * MIB // 3) + b"{}]"),
    "answer of 8 MiB of numbers": lambda: (JSON_TYPE, b"[" + b"1," * (4 * MIB) + b"1]"),
    "stream of 8 MiB of small events": lambda: (
        STREAM_TYPE,
        events(*[delta("word ")] * (8 * MIB // 60)),
    ),
    "stream of 4 MiB of manifests": lambda: (
        STREAM_TYPE,
        events(*[delta(MANIFEST * 40)] * (4 * MIB // len(MANIFEST) // 40)),
    ),
    "events of 200 kB of objects": lambda: (
        STREAM_TYPE,
        events(*['{"choices":[' + '{"a":1},' * 25_000 + "{}]}"] * 40),
    ),
    "event of 1 MiB of objects": lambda: (STREAM_TYPE, events("[" + "{}," * (MIB // 3) + "{}]")),
    "event of 8 MiB of objects": lambda: (
        STREAM_TYPE,
        events("[" + "{}," * (8 * MIB // 3) + "{}]"),
    ),
    "events of 60 kB of objects": lambda: (
        STREAM_TYPE,
        events(*['{"choices":[' + "{}," * 20_000 + "{}]}"] * 130),
    ),
    "event of 1 MiB of tool calls": lambda: (
        STREAM_TYPE,
        events(
            '{"choices":[{"delta":{"tool_calls":['
            + ",".join(['{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}'] * 15_000)
            + "]}}]}"
        ),
    ),
}
MADE: dict[str, tuple[bytes, bytes]] = {}


async def serve_provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that answers with that one of `MADE` which the header `X-Title` names."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            await reader.readexactly(int(headers.get("content-length", 0)))
            plain = (JSON_TYPE, MODELS if head.startswith("GET") else ANSWER)
            lines, answer = MADE.get(headers.get("x-title", ""), plain)
            sizes = b"Content-Length: %d\r\n\r\n" % len(answer)
            writer.write(b"HTTP/1.1 200 OK\r\n" + lines + sizes + answer)
            await writer.drain()


async def ask(server: Proxy, raw: bytes) -> int:
    """Send a request and read the answer to its end; the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    try:
        writer.write(raw)
        status = int((await reader.readline()).split()[1])
        while await reader.read(MIB):
            pass
        return status
    finally:
        writer.close()


def request(path: str, body: bytes | None, *headers: str) -> bytes:
    lines = ["GET" if body is None else "POST", path, "HTTP/1.1\r\nHost: a\r\nConnection: close"]
    head = " ".join(lines) + "".join(f"\r\n{header}" for header in headers)
    length = "" if body is None else f"\r\nContent-Length: {len(body)}"
    return (head + length + "\r\n\r\n").encode() + (body or b"")


async def with_key(server: Proxy, path: str, body: bytes | None, *headers: str) -> str:
    raw = request(path, body, f"Authorization: Bearer {KEY}", *headers)
    with contextlib.suppress(ConnectionError):
        return str(await ask(server, raw))
    return "cut"


async def stranger_body(server: Proxy) -> str:
    raw = request(
        "/health", b"a=1&" * (24 * MIB), "Content-Type: application/x-www-form-urlencoded"
    )
    with contextlib.suppress(ConnectionError):
        return str(await ask(server, raw.replace(b"POST", b"GET", 1)))
    return "cut"


async def idle_strangers(server: Proxy) -> str:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1000):
            port = int(server.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(b"GET /health HTTP/1.1\r\n" if number % 3 == 0 else b"")
        return await with_key(server, CHAT, chat("x"))


def probe(port: int) -> None:
    """Ask for /health until stdin ends; print the longest wait."""
    longest, over = 0.0, threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("begun", flush=True)
    while not over.is_set():
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request("/health", None))
            while connection.recv(65_536):
                pass
        longest = max(longest, time.perf_counter() - begun)
    print(longest)


class LongestBlock:
    """The longest callback of the server's event loop, in a file that both processes map."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)

    @property
    def seconds(self) -> float:
        return float(struct.unpack("d", self._shared)[0])

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._shared[:] = struct.pack("d", value)


def serve(path: str) -> None:
    """The server, with a watch on its event loop."""
    longest, run = LongestBlock(Path(path)), asyncio.Handle._run
    clock = time.thread_time

    def watched(handle: asyncio.Handle) -> None:
        begun = clock()
        run(handle)
        if (taken := clock() - begun) > longest.seconds:
            longest.seconds = taken

    asyncio.Handle._run = watched  # type: ignore[method-assign]
    sys.argv[1:] = ["serve"]
    entry_points(group="console_scripts")["open-llm-proxy"].load()()


async def measure(
    name: str, server: Proxy, longest: LongestBlock, hostile: Callable[[], Awaitable[str]]
) -> dict[str, object]:
    forget_peak(server)
    before = memory(server, "VmRSS")
    prober = await asyncio.create_subprocess_exec(
        *(*pinned(1), sys.executable, __file__, "probe", server.url.rpartition(":")[2]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert prober.stdout is not None
    await prober.stdout.readline()
    longest.seconds = 0.0
    begun, cpu = time.perf_counter(), server.cpu_seconds()
    result = await hostile()
    seconds, used = time.perf_counter() - begun, server.cpu_seconds() - cpu
    out, _ = await prober.communicate(b"")
    return {
        "name": name,
        "status": result,
        "seconds": seconds,
        "cpu_seconds": used,
        "blocked_ms": longest.seconds * 1000,
        "health_ms": float(out) * 1000,
        "grown_mib": (memory(server, "VmHWM") - before) / 1024,
    }


def forget_peak(server: Proxy) -> None:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def memory(server: Proxy, name: str) -> int:
    """A line of /proc's status, in kB."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cases(server: Proxy) -> dict[str, Callable[[], Awaitable[str]]]:
    found: dict[str, Callable[[], Awaitable[str]]] = {
        "a call": lambda: with_key(server, CHAT, chat("x")),
        "stranger's form of 96 MiB": lambda: stranger_body(server),
        "1,000 idle strangers": lambda: idle_strangers(server),
        "list of 100,000 models": lambda: with_key(server, "/v1/models", None),
        "the same again": lambda: with_key(server, "/v1/models", None),
    }
    for name, make in BODIES.items():
        found[name] = lambda make=make: with_key(server, CHAT, make())  # type: ignore[misc]
    for name, make in CODED.items():
        found[name] = partial(with_body, server, make, "Content-Encoding: gzip")
    for name in ANSWERS:
        found[name] = partial(with_key, server, CHAT, chat("x"), f"X-Title: {name.lower()}")
    return found


async def with_body(server: Proxy, make: Callable[[], bytes], *headers: str) -> str:
    return await with_key(server, CHAT, make(), *headers)


async def main() -> None:
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    wanted = tuple(word for word in sys.argv[1:] if not word.startswith("--"))
    if pinned(1):
        os.sched_setaffinity(0, [1])
    provider = await asyncio.start_server(serve_provider, "127.0.0.1", 0)
    provider_port = provider.sockets[0].getsockname()[1]
    head = ("", "status", "takes", "CPU", "blocked", "/health", "memory")
    line = "{:<32} {:>6} {:>9} {:>9} {:>10} {:>10} {:>9}"
    if "--json" not in options:
        print(line.format(*head))
    more = {"LOG_CAPTURE": "full"} if "--full" in options else {}
    with tempfile.TemporaryDirectory() as folder:
        watch = Path(folder) / "longest-block"
        watch.write_bytes(bytes(8))
        serving = (__file__, "serve", str(watch))
        starting = proxy(Path(folder), provider_port, True, serving, **more)
        server = await asyncio.to_thread(starting.__enter__)
        longest = LongestBlock(watch)
        try:
            for name, hostile in cases(server).items():
                if wanted and not name.startswith(wanted):
                    continue
                if name in ANSWERS:
                    MADE[name.lower()] = ANSWERS[name]()
                found = await measure(name, server, longest, hostile)
                MADE.clear()
                show(found, line, "--json" in options)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


def show(found: dict[str, object], line: str, as_json: bool) -> None:
    formats = ("{}", "{}", "{:.2f} s", "{:.2f} s", "{:.0f} ms", "{:.0f} ms", "{:.0f} MiB")
    values = [form.format(value) for form, value in zip(formats, found.values(), strict=True)]
    print(json.dumps(found) if as_json else line.format(*values), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        probe(int(sys.argv[2]))
    elif sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        asyncio.run(main())
