"""A provider that streams at a given pace, and clients that read at a given pace.

    python benchmarks/streams.py provider                       prints its port
    python benchmarks/streams.py clients URL KEY STREAMS TOKENS PACE_SECONDS
                                                                prints figures as JSON

A request says what it wants: ``{"tokens": 1200, "pace_seconds": 0.05}`` gives that many events,
with a pace of 0 as fast as they are taken,
``{"megabytes": 300}`` a stream of that size as fast as it is taken. Each event carries its number
and the moment at which it was sent, on the clock that all processes of a machine share. Everything
is raw asyncio, so that the proxy in the middle is what is measured.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import httptools
from load import HTTPMessages

PHASES = 50
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"x-request-id: benchmark\r\n\r\n"
)
EVENT = (
    'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1767225600,'
    '"model":"kimi","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
)
EVENT_END = b"}\n\n"
DONE = b"data: [DONE]\n\n"
SAMPLED_RECEIPTS = 10  # of so many one is looked at for its delay
TAIL_BYTES = 16  # of what came before: as long as what is looked for
END = (EVENT % "").replace("null", '"stop"').encode() + DONE
FILLER_CHARACTERS = 65_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def request(parts_netloc: str, key: str, fields: dict[str, object]) -> bytes:
    """A streaming call with a prompt of 4 kB; `fields` tell the provider what to do."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant. " * 140},
        {"role": "user", "content": "Count."},
    ]
    body = json.dumps({"model": "kimi", "stream": True, "messages": messages, **fields}).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts_netloc}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class Pacer:
    """Sends the events of all streams from one timer; streams of one phase go out together."""

    def __init__(self) -> None:
        # By pace: the phases of its period, each with the streams that are due in it.
        self._phases: dict[float, list[list[Stream]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, stream: "Stream", pace_seconds: float) -> None:
        if pace_seconds not in self._phases:
            self._phases[pace_seconds] = [[] for _ in range(PHASES)]
            self._tasks.append(asyncio.ensure_future(self._run(pace_seconds)))
        min(self._phases[pace_seconds], key=len).append(stream)

    async def _run(self, pace_seconds: float) -> None:
        phases = self._phases[pace_seconds]
        due = time.monotonic()
        while True:
            for phase in phases:
                due += pace_seconds / PHASES
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                now = f"{time.monotonic():.6f}"
                phase[:] = [stream for stream in phase if stream.send_next(now)]


class Stream:
    """One answer under way."""

    def __init__(self, transport: asyncio.Transport, tokens: int) -> None:
        self._transport = transport
        self._tokens = tokens
        self._number = 0

    def send_next(self, now: str) -> bool:
        """Send the next event; False after the last one, or once nobody listens."""
        if self._transport.is_closing():
            return False
        if self._number == self._tokens:
            self._transport.write(chunk(END) + b"0\r\n\r\n")
            return False
        self._transport.write(chunk((EVENT % f"{self._number} {now} ").encode()))
        self._number += 1
        return True


class StreamProvider(HTTPMessages):
    """Answers each call as its body says."""

    def __init__(self, pacer: Pacer) -> None:
        super().__init__()
        self._pacer = pacer
        self._writable = asyncio.Event()
        self._writable.set()
        self._flood: asyncio.Task[None] | None = None

    def message_received(self, message: bytes) -> None:
        if message.startswith(b"GET "):  # for the models, which nobody asks for here
            self.transport.write(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")
            return
        fields = json.loads(message.partition(b"\r\n\r\n")[2])
        self.transport.write(HEAD)
        if "megabytes" in fields:
            self._flood = asyncio.ensure_future(self._send(int(fields["megabytes"])))
        else:
            stream = Stream(self.transport, fields["tokens"])
            if fields["pace_seconds"]:
                self._pacer.add(stream, fields["pace_seconds"])
            else:
                self._flood = asyncio.ensure_future(self._send_at_once(stream))

    async def _send_at_once(self, stream: Stream) -> None:
        while stream.send_next(f"{time.monotonic():.6f}"):
            await self._writable.wait()
            await asyncio.sleep(0)

    async def _send(self, megabytes: int) -> None:
        data = chunk((EVENT % ("x" * FILLER_CHARACTERS)).encode())
        for _ in range(megabytes * 1_000_000 // len(data)):
            self.transport.write(data)
            await self._writable.wait()
        self.transport.write(chunk(END) + b"0\r\n\r\n")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


class StreamClient(asyncio.Protocol):
    """Reads one stream; `done` resolves at its last chunk and fails where it breaks."""

    def __init__(self, request_bytes: bytes, tokens: int, delays: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request_bytes
        self._tokens = tokens
        self._delays = delays
        self._events = 0
        self._tail = b""
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._is_complete = False
        self._saw_done = False
        self._receipts = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._is_complete = True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._parser.get_status_code() not in (0, 200):
            self._fail(data[-300:].decode(errors="replace"))
            return
        data = b"".join([self._tail, *self._pieces])
        self._pieces.clear()
        self._events += data.count(EVENT_END) - self._tail.count(EVENT_END)
        self._saw_done = self._saw_done or DONE in data
        self._receipts += 1
        if self._receipts % SAMPLED_RECEIPTS == 0:
            self._sample(data)
        self._tail = data[-TAIL_BYTES:]
        if self._is_complete:
            if not self._saw_done or self._events != self._tokens + 1:
                self._fail(f"{self._events} events instead of {self._tokens + 1}")
            elif not self.done.done():
                self.done.set_result(None)
            self._transport.close()

    def _sample(self, data: bytes) -> None:
        """Take the delay of the last whole event that came."""
        start = data.rfind(b'"content":"')
        content, quote, _ = data[start + 11 : start + 60].partition(b'"')
        if start >= 0 and quote and content:
            self._delays.append(time.monotonic() - float(content.split()[1]))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection was lost after {self._events} events ({error})")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


async def provide() -> None:
    pacer = Pacer()
    server = await asyncio.get_running_loop().create_server(
        lambda: StreamProvider(pacer), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def read_streams(url: str, key: str, streams: int, tokens: int, pace_seconds: float) -> None:
    parts = urlsplit(url)
    body = request(parts.netloc, key, {"tokens": tokens, "pace_seconds": pace_seconds})
    delays: list[float] = []
    clients = []
    started = time.monotonic()
    for number in range(streams):
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: StreamClient(body, tokens, delays), parts.hostname, parts.port
        )
        clients.append(client)
        if number % 50 == 49:
            await asyncio.sleep(min(0.05, pace_seconds))
    results = await asyncio.gather(*(c.done for c in clients), return_exceptions=True)
    broken = [str(result) for result in results if isinstance(result, Exception)]
    delays = sorted(delays) or [0.0]
    figures = {
        "complete": streams - len(broken),
        "broken": broken[:3],
        "seconds": time.monotonic() - started,
        "p50_ms": delays[len(delays) // 2] * 1000,
        "p99_ms": delays[len(delays) * 99 // 100] * 1000,
        "max_ms": delays[-1] * 1000,
        "tokens": (streams - len(broken)) * tokens,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1] == "provider":
        asyncio.run(provide())
    else:
        asyncio.run(
            read_streams(
                sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
            )
        )
