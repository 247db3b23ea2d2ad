"""What stands between the proxy and a store in tests of the drain: broken wires, broken stores.

`FaultyProxy` passes TCP on to a real store and breaks single PUTs. `StubStore` is a store of its
own that answers each PUT as the test tells it, which real stores do not do on demand.
"""

import abc
import asyncio
import base64
import contextlib
import hashlib
import re
import urllib.parse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import wire
from waiting import Changes

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cut:
    """Reset both sides once the store has got `at` of a PUT's body.

    An int counts bytes, from the end if it is negative; a float is a share of the body.
    """

    at: int | float


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip one bit of the body's byte `at`, counted as in `Cut`."""

    at: int | float


@dataclass(frozen=True, slots=True)
class SwallowAnswer:
    """Let the store have the whole PUT and answer it, and reset the client instead."""


Fault = Cut | Corrupt | SwallowAnswer
_Answer = tuple[int, str]  # status and S3 error code


class _Server(abc.ABC):
    """A listening socket whose connections end with it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.port = 0
        self._host = host
        self._changes = Changes()
        self._listener: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def accept(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._listener = await asyncio.start_server(
            self._serve, self._host, self.port, limit=wire.MAX_LINE_BYTES
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections and cut the open ones, until `accept`."""
        if self._listener is not None:
            self._listener.close()
        await self.cut_connections()
        if self._listener is not None:
            await self._listener.wait_closed()

    async def cut_connections(self) -> None:
        """Reset every open connection."""
        for task, writer in list(self._tasks.items()):
            wire.reset(writer)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.refuse()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            await self._handle(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            return  # The connection is over, by a fault, by its client or by refuse().
        finally:
            del self._tasks[task]
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @abc.abstractmethod
    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it is over."""


class FaultyProxy(_Server):
    """A TCP proxy in front of a plain-http store. Faults hit PUTs; other requests pass.

    `break_next(Cut(0.5), times=2)` breaks the next two PUTs; `freeze()` stops every byte until
    `thaw()`; `refuse()` closes the port until `accept()`.
    """

    def __init__(self, store: tuple[str, int], host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self.hits = 0
        self.faults: deque[Fault] = deque()
        self.moving = asyncio.Event()
        self.moving.set()
        self._store = store

    def break_next(self, fault: Fault, times: int = 1) -> None:
        """Break the next `times` PUTs, after those that are to be broken already."""
        self.faults.extend([fault] * times)

    async def hit(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Return once `count` PUTs were broken."""
        await self._changes.until(
            lambda: self.hits >= count, f"{count} PUTs broken", timeout_seconds
        )

    def note_hit(self) -> None:
        self.hits += 1
        self._changes.notify()

    def freeze(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self.moving.clear()

    def thaw(self) -> None:
        """Pass on again, first what waited."""
        self.moving.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.moving.wait()
        store_reader, store_writer = await asyncio.open_connection(*self._store)
        passage = _Passage(self, reader, writer, store_reader, store_writer)
        try:
            await passage.run()
        finally:
            store_writer.transport.abort()


class _Passage:
    """One connection through the proxy: requests one way, answers the other."""

    def __init__(
        self,
        proxy: FaultyProxy,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        store_reader: asyncio.StreamReader,
        store_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client_reader, client_writer
        self._store_reader, self._store_writer = store_reader, store_writer
        self._swallowing = False

    async def run(self) -> None:
        """Return when either side is done or a fault has ended the connection."""
        directions = {
            asyncio.create_task(self._pass_requests()),
            asyncio.create_task(self._pass_answers()),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pass_requests(self) -> None:
        while True:
            head = await self._client_reader.readuntil(b"\r\n\r\n")
            match = _LENGTH.search(head)
            faults = self._proxy.faults
            fault = faults.popleft() if head.startswith(b"PUT ") and faults else None
            self._swallowing = isinstance(fault, SwallowAnswer)
            await self._pass(self._store_writer, head)
            await self._pass_body(int(match[1]) if match else 0, fault)
            if isinstance(fault, Cut):
                wire.reset(self._store_writer)
                wire.reset(self._client_writer)
                self._proxy.note_hit()
                return
            if isinstance(fault, Corrupt):
                self._proxy.note_hit()

    async def _pass_body(self, length: int, fault: Fault | None) -> None:
        """Pass `length` bytes on, up to the fault's place if it cuts there."""
        place = _offset(fault.at, length) if isinstance(fault, Cut | Corrupt) else length
        end = place if isinstance(fault, Cut) else length
        passed = 0
        while passed < end:
            data = await self._client_reader.read(min(65_536, end - passed))
            if not data:
                raise asyncio.IncompleteReadError(b"", end - passed)
            if isinstance(fault, Corrupt) and passed <= place < passed + len(data):
                changed = bytearray(data)
                changed[place - passed] ^= 1
                data = bytes(changed)
            passed += len(data)
            await self._pass(self._store_writer, data)

    async def _pass_answers(self) -> None:
        while data := await self._store_reader.read(65_536):
            if self._swallowing and not data.startswith(b"HTTP/1.1 100"):
                wire.reset(self._client_writer)
                self._proxy.note_hit()
                return
            await self._pass(self._client_writer, data)

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await self._proxy.moving.wait()
        writer.write(data)
        await writer.drain()


def _offset(at: int | float, length: int) -> int:
    if isinstance(at, float):
        return int(length * at)
    return at if at >= 0 else max(0, length + at)


class StubStore(_Server):
    """An S3 store that takes PUTs into memory, except where it was told to refuse them.

    A body that is not the one of its Content-MD5 is refused as S3 refuses it. `overwritten` are
    the keys under which other bytes came than before.
    """

    bucket = "stub-bucket"

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[wire.Request] = []
        self.overwritten: set[str] = set()
        self._always: _Answer = (200, "")
        self._next: deque[_Answer] = deque()
        self._refused: tuple[str, _Answer] | None = None
        self._stored: dict[str, bytes] = {}

    def answer_next(self, status: int, code: str = "", times: int = 1) -> None:
        """Answer the next `times` PUTs with `status` and S3's error `code`."""
        self._next.extend([(status, code)] * times)

    def answer_always(self, status: int, code: str = "") -> None:
        """Answer every PUT so, after those of `answer_next`; 200 takes them again."""
        self._always = (status, code)

    def refuse_keys(self, part: str, status: int, code: str = "") -> None:
        """Answer every PUT of a key that contains `part` so, before all other rules."""
        self._refused = (part, (status, code))

    async def put(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Return once `count` PUTs were answered, well or badly."""
        await self._changes.until(
            lambda: sum(request.method == "PUT" for request in self.requests) >= count,
            f"{count} PUTs reach the store",
            timeout_seconds,
        )

    def env(self) -> dict[str, str]:
        return {
            "LOG_BUCKET": self.bucket,
            "AWS_ACCESS_KEY_ID": "stub-key",
            "AWS_SECRET_ACCESS_KEY": "stub-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """(key, bytes) of every object that was taken, in the order of the keys."""
        yield from sorted(self._stored.items())

    def forget(self) -> None:
        """Remove all objects and requests, as they have been judged."""
        self._stored.clear()
        self.requests.clear()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await wire.read_request(reader, writer)) is not None:
            status, code = self._answer(request) if request.method == "PUT" else (200, "")
            body = f"<Error><Code>{code}</Code><Message>as told</Message></Error>" if code else ""
            headers = (("Content-Type", "application/xml"), ("Content-Length", str(len(body))))
            if request.method == "PUT" and status == 200:
                headers += (("ETag", f'"{hashlib.md5(request.body).hexdigest()}"'),)
            writer.write(wire.head(status, headers) + body.encode())
            await writer.drain()
            self.requests.append(request)
            self._changes.notify()

    def _answer(self, request: wire.Request) -> _Answer:
        path = urllib.parse.unquote(request.target.partition("?")[0])
        key = path.removeprefix(f"/{self.bucket}/")
        if self._refused is not None and self._refused[0] in key:
            return self._refused[1]
        answer = self._next.popleft() if self._next else self._always
        if answer[0] != 200:
            return answer
        digest = base64.b64encode(hashlib.md5(request.body).digest()).decode()
        if request.header("Content-MD5") not in (None, digest):
            return (400, "BadDigest")
        if self._stored.setdefault(key, request.body) != request.body:
            self.overwritten.add(key)
            self._stored[key] = request.body
        return answer
