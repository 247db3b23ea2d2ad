"""What bodies, answers and clients that were made to hold the server up do to everybody else.

    python benchmarks/hostile.py [NAME ...]

The real server with its queue, pinned to one core. While one hostile thing happens, another
process asks for /health without a pause; its longest wait is about the longest time that the event
loop was blocked. Memory is the growth of the server's peak, which the kernel is told to forget.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from relay_throughput import KEY, Proxy, pinned, proxy

MIB = 1 << 20
CHAT = "/v1/chat/completions"
ANSWER = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
MODELS = json.dumps({"data": [{"id": f"org/model-{n}"} for n in range(100_000)]}).encode()
BOMB_UNITS = {
    "newlines": b"\n",
    "empty-events": b"data: \n\n",
    "events": b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
}


def bomb(unit: bytes) -> bytes:
    """About 200 kB of gzip."""
    return gzip.compress(unit * (200 * MIB // len(unit)))[:200_000]


def chat(text: str, **more: object) -> bytes:
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "Why?"}]
    return json.dumps({"model": "kimi", "messages": messages, **more}).encode()


BOMBS: dict[str, bytes] = {}
BODIES: dict[str, Callable[[], bytes]] = {
    "58 MiB of {},{},…": lambda: b'{"model":"kimi","x":[%b{}]}' % (b"{}," * (58 * MIB // 3)),
    "8 MiB of numbers": lambda: b'{"model":"kimi","x":[%b1]}' % (b"1," * (4 * MIB)),
    "300,000 token ids": lambda: json.dumps({"model": "kimi", "x": [*range(300_000)]}).encode(),
    "8 MiB of text": lambda: chat("Fields, and [more]: {data}. " * (8 * MIB // 28)),
    "4 MiB of mysql -px": lambda: chat("mysql " + " -px" * MIB),
    "4 MiB of quotes": lambda: chat('"' * (2 * MIB)),
    "8 MiB in 100,000 messages": lambda: json.dumps(
        {"model": "kimi", "messages": [{"role": "user", "content": "x" * 40}] * 100_000}
    ).encode(),
    "8 MiB with a name twice": lambda: chat("y" * 8 * MIB)[:-1] + b',"model":"kimi"}',
}


async def serve_provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider whose model `bomb-NAME` answers with that bomb."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            body = await reader.readexactly(length)
            name = body[:100].partition(b"bomb-")[2].partition(b'"')[0].decode()
            answer, extra = ANSWER, b"Content-Type: application/json\r\n"
            if head.startswith(b"get"):
                answer = MODELS
            elif name in BOMBS:
                answer = BOMBS[name]
                extra = b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
            sizes = b"Content-Length: %d\r\n\r\n" % len(answer)
            writer.write(b"HTTP/1.1 200 OK\r\n" + extra + sizes + answer)
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


async def with_key(server: Proxy, path: str, body: bytes | None) -> str:
    status = await ask(server, request(path, body, f"Authorization: Bearer {KEY}"))
    return str(status)


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


async def bombed(server: Proxy, name: str) -> str:
    return await with_key(server, CHAT, b'{"model":"bomb-%b","messages":[]}' % name.encode())


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


async def measure(name: str, server: Proxy, hostile: Callable[[], Awaitable[str]]) -> None:
    forget_peak(server)
    before = memory(server, "VmRSS")
    prober = await asyncio.create_subprocess_exec(
        *(*pinned(1), sys.executable, __file__, "probe", server.url.rpartition(":")[2]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert prober.stdout is not None
    await prober.stdout.readline()
    begun, cpu = time.perf_counter(), server.cpu_seconds()
    result = await hostile()
    seconds, used = time.perf_counter() - begun, server.cpu_seconds() - cpu
    out, _ = await prober.communicate(b"")
    grown = (memory(server, "VmHWM") - before) / 1024
    print(
        f"{name:<30} {result:>6} {seconds:8.2f} s {used:8.2f} s CPU "
        f"{float(out) * 1000:8.0f} ms {grown:8.0f} MiB",
        flush=True,
    )


def forget_peak(server: Proxy) -> None:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def memory(server: Proxy, name: str) -> int:
    """A line of /proc's status, in kB."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


async def main() -> None:
    provider = await asyncio.start_server(serve_provider, "127.0.0.1", 0)
    provider_port = provider.sockets[0].getsockname()[1]
    wanted = sys.argv[1:]
    BOMBS.update((name, bomb(unit)) for name, unit in BOMB_UNITS.items())
    head = ("", "status", "takes", "", "/health", "memory")
    print("{:<30} {:>6} {:>10} {:>14} {:>11} {:>12}".format(*head))
    with tempfile.TemporaryDirectory() as folder:
        starting = proxy(Path(folder), provider_port, True)
        server = await asyncio.to_thread(starting.__enter__)
        cases: dict[str, Callable[[], Awaitable[str]]] = {
            "a call": lambda: with_key(server, CHAT, chat("x")),
            "stranger's form of 96 MiB": lambda: stranger_body(server),
            "1,000 idle strangers": lambda: idle_strangers(server),
            "list of 100,000 models": lambda: with_key(server, "/v1/models", None),
            "the same again": lambda: with_key(server, "/v1/models", None),
        }
        for name, make in BODIES.items():
            cases[name] = partial(with_key, server, CHAT, make())
        for name in BOMBS:
            cases[f"200 kB of gzip: {name}"] = partial(bombed, server, name)
        try:
            for name, hostile in cases.items():
                if not wanted or name in wanted:
                    await measure(name, server, hostile)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["probe"]:
        probe(int(sys.argv[2]))
    else:
        asyncio.run(main())
