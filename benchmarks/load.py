"""A fast load generator and a fast fake provider, both raw asyncio, for the benchmarks.

    python benchmarks/load.py provider        prints its port, answers every POST at once
    python benchmarks/load.py load URL KEY CONNECTIONS SECONDS [HEADERS_AS_JSON [BODY_FILE]]
                                              prints calls, seconds and latencies as JSON

Each connection sends its next call when the answer to the last one is complete: the same system
prompt of 4 kB, as apps have it, and a question with a number of its own, or the body in BODY_FILE
with a number in place of NUMBER. Both are kept simple so
that the proxy between them is what is measured.
"""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

ANSWER = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "kimi",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "The answer is 42. " * 20},
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
).encode()
HEAD_END = b"\r\n\r\n"
PROMPT_FILE = Path(__file__).parent.parent / "tests" / "data" / "geo-agent-system-prompt.md"
PROMPT_CHARACTERS = 4000
NUMBER = "#########"


class HTTPMessages(asyncio.Protocol):
    """Splits a connection's bytes into HTTP messages framed by Content-Length."""

    def __init__(self) -> None:
        self._buffer = b""
        self._need = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= self._need:
            if not self._need:
                end = self._buffer.find(HEAD_END)
                if end < 0:
                    return
                head = self._buffer[:end].lower()
                _, _, rest = head.partition(b"content-length:")
                length = int(rest.split(b"\r\n", 1)[0] or 0)
                self._need = end + len(HEAD_END) + length
                continue
            message, self._buffer = self._buffer[: self._need], self._buffer[self._need :]
            self._need = 0
            self.message_received(message)

    def message_received(self, message: bytes) -> None:
        raise NotImplementedError


class Provider(HTTPMessages):
    """Answers every request at once with the same completion."""

    _answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (
            len(ANSWER),
            ANSWER,
        )
    )

    def message_received(self, message: bytes) -> None:
        self.transport.write(self._answer)


numbers = itertools.count(1)


class Caller(HTTPMessages):
    """One connection that calls again and again until `stop` (a monotonic time)."""

    def __init__(self, request: bytes, stop: float, latencies: list[float]) -> None:
        super().__init__()
        self.done = asyncio.get_running_loop().create_future()
        self._request, _, self._rest = request.partition(NUMBER.encode())
        self._stop = stop
        self._latencies = latencies
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._call()

    def message_received(self, message: bytes) -> None:
        now = time.perf_counter()
        if not message.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(message[:300].decode(errors="replace")))
            self.transport.close()
            return
        self._latencies.append(now - self._sent)
        if now >= self._stop:
            self.transport.close()
            self.done.set_result(None)
        else:
            self._call()

    def _call(self) -> None:
        self._sent = time.perf_counter()
        self.transport.write(b"%b%09d%b" % (self._request, next(numbers), self._rest))


async def provide() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def usual_body() -> bytes:
    messages = [
        {"role": "system", "content": PROMPT_FILE.read_text()[:PROMPT_CHARACTERS]},
        {"role": "user", "content": f"How much of parcel {NUMBER} is protected?"},
    ]
    return json.dumps({"model": "kimi", "messages": messages}).encode()


async def load(
    url: str, key: str, connections: int, seconds: float, headers: dict[str, str], body: bytes
) -> None:
    parts = urlsplit(url)
    request = (
        f"POST {parts.path}/v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    started = time.perf_counter()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: Caller(request, started + seconds, latencies), parts.hostname, parts.port
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    elapsed = time.perf_counter() - started
    latencies.sort()
    print(
        json.dumps(
            {
                "calls": len(latencies),
                "seconds": elapsed,
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "provider":
        asyncio.run(provide())
    else:
        url, key, connections, seconds, *rest = sys.argv[2:]
        more = json.loads(rest[0]) if rest else {}
        body = Path(rest[1]).read_bytes() if len(rest) > 1 else usual_body()
        asyncio.run(load(url, key, int(connections), float(seconds), more, body))
