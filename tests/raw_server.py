"""A server whose connections the test itself plays, byte by byte.

    async def script(connection):
        await connection.request()
        await connection.send(ok(b"hello"))

    async with serving(script) as (server, client):
        response = await client.fetch(server.url)

The script runs once per connection; when it returns, the connection is closed. A script that fails
makes the test fail. `client` is a `PooledHTTPClient` of the test's own.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tornado.netutil import Resolver

import wire
from open_llm_proxy.server.upstream.client import PooledHTTPClient, StreamingRequest
from waiting import Changes

Script = Callable[["RawConnection"], Awaitable[None]]
Step = bytes | Script

LENGTH, CHUNKED = b"Content-Length: 5", b"Transfer-Encoding: chunked"


class RawConnection:
    """One accepted connection."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number  # 1 for the server's first
        self.requests: list[wire.Request] = []
        self.bytes_sent = 0
        self._reader = reader
        self.writer = writer

    async def request(self) -> wire.Request:
        """The next request; the client must send one."""
        request = await wire.read_request(self._reader, self.writer)
        assert request is not None, "the client closed the connection without a request"
        self.requests.append(request)
        return request

    async def more_requests(self) -> AsyncIterator[wire.Request]:
        """All requests until the client closes the connection."""
        while (request := await wire.read_request(self._reader, self.writer)) is not None:
            self.requests.append(request)
            yield request

    async def read(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def send(self, data: bytes) -> None:
        """Write and wait until the client takes it."""
        self.writer.write(data)
        await self.writer.drain()
        self.bytes_sent += len(data)

    async def closed_by_client(self) -> None:
        """Return once the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        wire.reset(self.writer)


class RawServer:
    """Listens on a free loopback port."""

    def __init__(self, script: Script, certificates: wire.Certificates | None) -> None:
        self.connections: list[RawConnection] = []
        self.open = 0
        self.changes = Changes()
        self.port = 0
        self.failures: list[BaseException] = []
        self._script = script
        self._certificates = certificates
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}/"

    @property
    def requests(self) -> list[wire.Request]:
        """All requests, in the order of connections."""
        return [request for connection in self.connections for request in connection.requests]

    async def connected(self, count: int) -> None:
        """Return once `count` connections have been accepted."""
        await self.changes.until(lambda: len(self.connections) >= count, f"{count} connections")

    async def all_closed(self) -> None:
        """Return once no connection is open any more."""
        await self.changes.until(lambda: not self.open, "all connections are closed")

    async def start(self) -> asyncio.Server:
        context: ssl.SSLContext | None = None
        if self._certificates is not None:
            context = self._certificates.server_context()
        server = await asyncio.start_server(self._accept, "127.0.0.1", ssl=context, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def stop(self, server: asyncio.Server) -> None:
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = RawConnection(len(self.connections) + 1, reader, writer)
        self.connections.append(connection)
        self.open += 1
        self.changes.notify()
        try:
            await self._script(connection)
        except asyncio.CancelledError:
            writer.transport.abort()  # Only stop() cancels.
        except ConnectionError:
            writer.transport.abort()  # The client may leave at any time.
        except Exception as error:
            self.failures.append(error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)
            self.open -= 1
            self.changes.notify()


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, certificates: wire.Certificates | None = None, **client_options: Any
) -> AsyncIterator[tuple[RawServer, PooledHTTPClient]]:
    """A server that plays `script`, and a client with `client_options` that trusts it."""
    if certificates is not None and "ssl_options" not in client_options:
        authority = ssl.create_default_context(cafile=certificates.authority)
        client_options["ssl_options"] = authority
    client = PooledHTTPClient(force_instance=True, **client_options)
    server = RawServer(script, certificates)
    listener = await server.start()
    try:
        yield server, client
    finally:
        client.close()
        await server.stop(listener)
    if server.failures:
        raise server.failures[0]


async def pass_on(
    client: PooledHTTPClient, request: StreamingRequest, take: Callable[[bytes], Any]
) -> int:
    """Give each piece of the answer's body to `take`, and await that if need be; the status."""
    async with client.stream(request) as answer:
        while data := await answer.read():
            if (taken := take(data)) is not None:
                await taken
    return answer.status


def ok(body: bytes = b"", *headers: bytes) -> bytes:
    """A 200 with a Content-Length and these header lines."""
    return response(b"Content-Length: %d" % len(body), *headers) + body


def response(*headers: bytes, status: bytes = b"200 OK") -> bytes:
    """The head of an answer, exactly these header lines."""
    return b"\r\n".join((b"HTTP/1.1 " + status, *headers, b"", b""))


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer_all(connection: RawConnection) -> None:
    """The script that answers every request with its target, and keeps the connection open."""
    async for request in connection.more_requests():
        await connection.send(ok(request.target.encode()))


def answering(*steps: Step) -> Script:
    """Read a request, then write the bytes and run the functions, then close the connection."""

    async def script(connection: RawConnection) -> None:
        await connection.request()
        for step in steps:
            if isinstance(step, bytes):
                await connection.send(step)
            else:
                await step(connection)

    return script


def once(answer: bytes) -> Script:
    """The script that answers one request and waits until the client closes the connection."""
    return answering(answer, client_closes)


async def client_closes(connection: RawConnection) -> None:
    """The step that waits until the client has closed the connection."""
    await connection.closed_by_client()


async def reset(connection: RawConnection) -> None:
    """The step that ends the connection with a TCP reset."""
    connection.reset()


class ScriptedResolver(Resolver):
    """Answers each look-up with the next of `answers`: an error, or a port of 127.0.0.1."""

    def initialize(self, answers: list[Exception | int]) -> None:
        self.answers = answers
        self.asked = 0

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, ("127.0.0.1", answer or port))]
