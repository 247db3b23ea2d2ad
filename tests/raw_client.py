"""A client whose requests the test writes byte by byte, and whose answers keep every byte.

Real clients mend what they get: they join chunks, drop doubled headers, hide how a connection
ended. `Answer` shows all of that, and whether the answer was complete (RFC 9112, section 8).
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import wire

Headers = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Answer:
    """A response: names of headers as they came, the body without its chunks' framing."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    is_complete: bool = False
    was_reset: bool = False

    def header(self, name: str) -> str | None:
        """The one value of header `name`; fails if it came twice."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must have OpenAI's shape."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


class RawClient:
    """One connection. `answer` reads a whole response, `begin` and `piece` read it bit by bit."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._left: int | None = 0  # of the body under way; None: chunks or until close
        self._is_chunked = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, limit=1 << 20, ssl=self._tls
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(self, data: bytes) -> None:
        """Write raw bytes and wait until the socket takes them."""
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self) -> Answer:
        """The head of the next response, any 1xx skipped."""
        while True:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            version, status, reason = first.split(" ", 2)
            assert version == "HTTP/1.1"
            pairs = (line.split(": ", 1) for line in lines)
            answer = Answer(int(status), reason, [(name, value) for name, value in pairs])
            if answer.status >= 200:
                break
        self._is_chunked = answer.header("Transfer-Encoding") == "chunked"
        length = answer.header("Content-Length")
        self._left = None if length is None else int(length)
        if answer.status in (204, 304):
            self._left, self._is_chunked = 0, False
        return answer

    async def piece(self) -> bytes:
        """The next bytes of the body as they come, one chunk at most; empty at its end.

        Raises `ConnectionError` where the connection ends before the body does.
        """
        if self._is_chunked:
            size = int((await self._exactly(until=b"\r\n"))[:-2], 16)
            data = (await self._exactly(size + 2))[:-2]
            if not data:
                self._left, self._is_chunked = 0, False
            return data
        data = b""
        if self._left != 0:
            data = await self._reader.read(min(self._left or 65536, 65536))
        if self._left is not None:
            self._left -= len(data)
            if self._left and not data:
                raise ConnectionResetError("the body is shorter than its Content-Length")
        return data

    async def answer(self) -> Answer:
        """The next response, as far as it comes."""
        answer = await self.begin()
        await self.finish(answer)
        return answer

    async def finish(self, answer: Answer) -> None:
        """Read the rest of a response into `answer`."""
        try:
            while data := await self.piece():
                answer.body += data
            answer.is_complete = True
        except ConnectionResetError as error:
            answer.was_reset = error.errno is not None
        except ConnectionError:
            answer.was_reset = True

    async def line(self) -> str:
        """The next line of what comes, whatever it is."""
        return (await self._reader.readuntil(b"\r\n")).decode("latin-1").rstrip("\r\n")

    async def everything(self) -> bytes:
        """All bytes until the server closes the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(65536):
                received += data
        return received

    async def ended(self) -> bool:
        """Whether the server closes the connection and sends nothing more; waits for it."""
        with contextlib.suppress(ConnectionError):
            return await self._reader.read(1) == b""
        return True

    def stop_reading(self) -> None:
        """Leave what comes in the kernel's buffer."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Leave: an orderly close, or a reset where there are unread bytes."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def reset(self) -> None:
        """Leave with a TCP reset."""
        wire.reset(self._writer)

    async def _exactly(self, size: int = 0, *, until: bytes = b"") -> bytes:
        try:
            if until:
                return await self._reader.readuntil(until)
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the connection ended within the body") from None


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Headers = (),
    *,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request's bytes; Content-Length stands in it where there is a body."""
    lines = [f"{method} {path} {version}", "Host: proxy.test"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


def chunked_request(path: str, chunks: Sequence[bytes], headers: Headers = ()) -> bytes:
    """A POST whose body comes in chunks."""
    head = request("POST", path, None, (*headers, ("Transfer-Encoding", "chunked")))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
