"""One call as the scripted provider sees it, and the means to answer it well or badly."""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import known_content
import wire

Headers = Sequence[tuple[str, str]]
Option = TypeVar("Option", int, float, str, bool)


class ClientGone(Exception):
    """The client closed the connection while its answer was under way."""


@dataclass(slots=True, eq=False)
class Call:
    """A request that arrived, and what became of its connection.

    `closed` is set once the client has closed the connection, also when that happens after the
    answer; `finished` once the provider has done with the call. Times are `time.monotonic()`.
    """

    request: wire.Request
    connection: int
    closed: asyncio.Event
    script: known_content.Script | None = None
    json: dict[str, Any] = field(default_factory=dict)
    arrived_at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    bytes_sent: int = 0

    def __post_init__(self) -> None:
        # A body that is no JSON object is answered with 400, as a provider would.
        with contextlib.suppress(ValueError):
            parsed = json.loads(self.request.body)
            self.json = parsed if isinstance(parsed, dict) else {}
        self.script = known_content.script_of(_last_user_text(self.json))

    @property
    def number(self) -> int | None:
        return self.script.number if self.script else None

    @property
    def wants_stream(self) -> bool:
        return self.json.get("stream") is True


def _last_user_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return str(body.get("prompt") or body.get("input") or "")
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = (part.get("text") or "" for part in content if isinstance(part, dict))
                return " ".join(parts)
            return str(content)
    return ""


class Exchange:
    """Writes the answer of one call. Every write waits until the client takes it."""

    def __init__(
        self,
        call: Call,
        writer: asyncio.StreamWriter,
        shapes: Mapping[str, Sequence[bytes | float]],
    ) -> None:
        self.call = call
        self.shapes = shapes
        self.keep_alive = (call.request.header("Connection") or "").lower() != "close"
        self._writer = writer
        self._chunked = True

    @property
    def number(self) -> int:
        return self.call.number or 0

    def option(self, name: str, default: Option) -> Option:
        """The option `name` of the call's script, in the type of `default`."""
        text = self.call.script.options.get(name) if self.call.script else None
        return default if text is None else type(default)(text)

    async def send(self, data: bytes) -> None:
        """Write raw bytes, or raise `ClientGone`."""
        if self.call.closed.is_set():
            raise ClientGone
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise ClientGone from None
        self.call.bytes_sent += len(data)

    async def pause(self, seconds: float) -> None:
        """Wait, or raise `ClientGone` as soon as the client closes the connection."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self.call.closed.wait(), seconds)
            except TimeoutError:
                return
            raise ClientGone

    async def until_client_leaves(self) -> None:
        await self.call.closed.wait()
        raise ClientGone

    async def send_head(self, status: int, headers: Headers = ()) -> None:
        await self.send(wire.head(status, (*self.own_headers(), *headers)))

    async def send_json(self, status: int, value: object, headers: Headers = ()) -> None:
        await self.send_body(
            status, encode(value), (("Content-Type", "application/json"), *headers)
        )

    async def send_body(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole answer with its Content-Length, in one write."""
        length = ("Content-Length", str(len(body)))
        await self.send(wire.head(status, (*self.own_headers(), *headers, length)) + body)

    async def begin_stream(self, headers: Headers = (), chunked: bool = True) -> None:
        """Headers of an event stream, chunked or ended by the connection's end."""
        self._chunked = chunked
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")
        self.keep_alive = self.keep_alive and chunked
        await self.send_head(200, (("Content-Type", "text/event-stream"), framing, *headers))

    async def send_chunk(self, data: bytes) -> None:
        """A part of the stream in the framing of its headers."""
        framed = b"%x\r\n%s\r\n" % (len(data), data)
        await self.send(framed if self._chunked else data)

    async def send_event(self, value: object) -> None:
        await self.send_chunk(event(value))

    async def end_stream(self) -> None:
        """`[DONE]` and the last chunk."""
        await self.send_chunk(b"data: [DONE]\n\n")
        if self._chunked:
            await self.send(b"0\r\n\r\n")

    def own_headers(self) -> Headers:
        return (("x-request-id", f"upstream-{self.number:06d}"),)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        wire.reset(self._writer)
        self.keep_alive = False


def encode(value: object) -> bytes:
    """JSON in UTF-8, with non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False).encode()


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"
