"""A real OpenAI-compatible provider on a real loopback socket that answers as it is told.

It speaks HTTP by hand, so that it can also break it: provider_behaviours.py lists how, and a
call chooses by its user message. Every request is kept byte for byte in `calls`, and the number
of every call that arrived in `seen`: the set P of the oracle. A test waits for `call(number)` to
arrive and for the client to leave (`Call.closed`) instead of sleeping.

Within a test's event loop:

    async with ScriptedProvider() as provider:
        ...  # provider.url

As a process of its own, which the fate of the test's loop does not touch: `ProviderProcess`, or

    python tests/scripted_provider.py --port 0 --seen FILE

which prints its port and appends each number to FILE before it answers, so that P outlives it.
"""

import argparse
import asyncio
import contextlib
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import provider_answers
import wire
from provider_behaviours import BEHAVIOURS, Behaviour, ok
from provider_exchange import Call, ClientGone, Exchange
from waiting import Changes


class ScriptedProvider:
    """The provider's server; give it `certificates` for https, `seen_path` to write P down."""

    def __init__(
        self,
        *,
        certificates: wire.Certificates | None = None,
        seen_path: Path | None = None,
        models: Sequence[str] = ("kimi", "qwen3", "glm-4.7"),
    ) -> None:
        self.calls: list[Call] = []
        self.seen: set[int] = set()
        self.connections = 0
        self.models = tuple(models)
        # Raw responses for the behaviour `shape`: bytes to write, numbers to wait.
        self.shapes: dict[str, Sequence[bytes | float]] = {}
        self.port = 0
        self._certificates = certificates
        self._changes = Changes()
        self._seen_file: BinaryIO | None = seen_path.open("ab", buffering=0) if seen_path else None
        self._server: asyncio.Server | None = None
        # The tasks that serve the open connections, and which of those are between two calls.
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """`http(s)://127.0.0.1:port`, without a path."""
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen on `port` of `host`; 0 takes a free one."""
        context: ssl.SSLContext | None = None
        if self._certificates:
            context = self._certificates.server_context()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), host, port, ssl=context, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task, writer in list(self._open.items()):
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
        if self._seen_file is not None:
            self._seen_file.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def call(self, number: int, timeout_seconds: float = 10.0) -> Call:
        """The latest call with this number, waited for until it has arrived."""
        return await self._changes.until(
            lambda: next((call for call in reversed(self.calls) if call.number == number), None),
            f"call {number} reaches the provider",
            timeout_seconds,
        )

    async def arrived(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Return once `count` different numbered calls have arrived."""
        await self._changes.until(
            lambda: len(self.seen) >= count,
            f"{count} calls reach the provider",
            timeout_seconds,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.transport.get_protocol()
        assert isinstance(connection, _Connection)
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        number = self.connections
        try:
            while True:
                request = await wire.read_request(reader, writer)
                if request is None or not await self._answer(request, number, connection, writer):
                    return
        except ClientGone:
            return
        except asyncio.CancelledError:
            return  # Only stop() cancels; the task belongs to no one who would want to know.
        finally:
            writer.close()
            try:
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await writer.wait_closed()
            finally:
                del self._open[task]  # Only now: stop() waits for the tasks that are in there.

    async def _answer(
        self,
        request: wire.Request,
        number: int,
        connection: "_Connection",
        writer: asyncio.StreamWriter,
    ) -> bool:
        call = Call(request, number, connection.closed)
        connection.calls.append(call)
        exchange = Exchange(call, writer, self.shapes)
        behaviour = self._behaviour(call, exchange)
        self._record(call)
        try:
            if behaviour is not None:
                await behaviour(exchange)
            elif request.method == "GET" and request.target.endswith("/models"):
                await exchange.send_json(200, provider_answers.models(self.models))
            else:
                refusal = provider_answers.error_object("no JSON object or no such behaviour")
                await exchange.send_json(400, refusal)
        finally:
            call.finished.set()
        return exchange.keep_alive

    def _behaviour(self, call: Call, exchange: Exchange) -> Behaviour | None:
        """What the call asks for; None for a body that is no call, or an unknown behaviour."""
        if not call.json:
            return None
        if call.script is None:
            return BEHAVIOURS.get(str(call.json.get("model")).rpartition("/")[2], ok)
        if exchange.option("once", 0) and call.number in self.seen:
            return ok
        return BEHAVIOURS.get(call.script.behaviour)

    def _record(self, call: Call) -> None:
        self.calls.append(call)
        if call.number is not None:
            if self._seen_file is not None and call.number not in self.seen:
                self._seen_file.write(b"%d\n" % call.number)
            self.seen.add(call.number)
        self._changes.notify()


class _Connection(asyncio.StreamReaderProtocol):
    """Notices that the client leaves while nobody reads from the stream."""

    def __init__(self, provider: ScriptedProvider) -> None:
        super().__init__(asyncio.StreamReader(limit=wire.MAX_LINE_BYTES), provider._serve)
        self.closed = asyncio.Event()
        self.calls: list[Call] = []

    def eof_received(self) -> bool | None:
        self._note()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._note()
        super().connection_lost(error)

    def _note(self) -> None:
        if not self.closed.is_set():
            now = time.monotonic()
            for call in self.calls:
                call.closed_at = now
            self.closed.set()


class ProviderProcess:
    """The scripted provider as a process of its own, over http."""

    def __init__(self, seen_path: Path, host: str = "127.0.0.1") -> None:
        self._seen_path = seen_path
        command = (sys.executable, __file__, "--host", host, "--seen", str(seen_path))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def seen(self) -> set[int]:
        """The numbers of all calls that arrived so far."""
        return {int(line) for line in self._seen_path.read_text().splitlines()}

    def close(self) -> None:
        """End the process and wait for its end."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible provider.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0: a free one")
    parser.add_argument("--seen", type=Path, help="file for the numbers of calls that arrived")
    arguments = parser.parse_args()
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    provider = ScriptedProvider(seen_path=arguments.seen)
    await provider.start(arguments.port, arguments.host)
    print(provider.port, flush=True)
    await stopped.wait()
    await provider.stop()


if __name__ == "__main__":
    asyncio.run(_main())
