"""One connection to an MCP server: over HTTP, or to a program over stdio.

The SDK ends a whole client when one of its HTTP requests breaks, and raises that in whatever
task entered it. So a connection lives in a task of its own, which ends when the connection does;
calls from other tasks watch it.
"""

import asyncio
import os
import tempfile
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import Implementation

from .mcp_answers import Answers, Refusals
from .settings import SessionSettings

CONNECT_TIMEOUT_SECONDS = 30.0
# Longer than the SDK takes to end a program that does not leave by itself.
CLOSE_TIMEOUT_SECONDS = 10.0
# One result. The SDK's own limit is 1 MiB, which a plain `SELECT *` passes.
MAX_RESULT_BYTES = 64 * 1024 * 1024
MAX_REASON_CHARS = 300


class ToolServerError(Exception):
    """The MCP server cannot be used; the message is a sentence that says what to look at."""


class Connection:
    """One client, entered and left in `task`; `task` ends when the connection does."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._refusals = Refusals()
        self.notes: list[str] = []
        self.calls = 0
        self._is_retired = False
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.task: asyncio.Task[None] = asyncio.create_task(self._run())

    @property
    def client(self) -> Client:
        return self._ready.result()

    async def open(self) -> None:
        """Wait until it is usable. Raises ToolServerError."""
        try:
            first: set[asyncio.Future[Any]] = {self._ready, self.task}
            await asyncio.wait(first, timeout=CONNECT_TIMEOUT_SECONDS, return_when=FIRST_COMPLETED)
            if not self._ready.done():
                raise ToolServerError(self._refusal())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the connection; nothing is raised for how it ends."""
        self._closing.set()
        if not self._ready.done():
            self.task.cancel()
        await asyncio.wait({self.task}, timeout=CLOSE_TIMEOUT_SECONDS)
        self.task.cancel()
        _ = self.failure  # seen, so that asyncio does not report it as lost
        self._stderr.close()

    def retire(self) -> None:
        """Take no further calls; those that it has may still end well."""
        self._is_retired = True

    @property
    def is_usable(self) -> bool:
        return not (self._is_retired or self.task.done() or self._closing.is_set())

    @property
    def failure(self) -> BaseException | None:
        """What ended the connection, if it has ended by an error."""
        if not self.task.done() or self.task.cancelled():
            return None
        error = self.task.exception()
        return cause(error) if error else None

    async def _run(self) -> None:
        async with self._transport() as transport:
            info = Implementation(name="open-llm-proxy-agent", version="1")
            async with Client(self._read(transport), client_info=info) as client:
                self._ready.set_result(client)
                await self._closing.wait()

    @asynccontextmanager
    async def _read(self, transport: Any) -> AsyncIterator[Any]:
        async with transport as (incoming, outgoing):
            yield Answers(incoming, self._refusals, self.notes), outgoing

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        command = self._settings.mcp_command
        if command is not None:
            # The server inherits the environment, as a command in a shell does; not the key.
            environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
            server = StdioServerParameters(command=command[0], args=[*command[1:]], env=environment)
            yield stdio_client(server, errlog=self._stderr)  # type: ignore[arg-type]
            return
        # No read time-out: how long a tool may take is `tool_timeout_seconds`.
        limits = httpx2.Timeout(CONNECT_TIMEOUT_SECONDS, read=None)
        hooks = {"response": [self._refusals.note]}
        async with httpx2.AsyncClient(timeout=limits, event_hooks=hooks) as http:
            yield streamable_http_client(
                self._settings.mcp_url, http_client=http, max_sse_event_size=MAX_RESULT_BYTES
            )

    def _refusal(self) -> str:
        """One sentence on why the connection could not be opened."""
        where = self._settings.tool_server
        error = self.failure
        if self._settings.mcp_command is not None:
            self._stderr.seek(0)
            last_words = self._stderr.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
            why = last_words[-1] if last_words else said(error) if error else "it did not answer"
            return f"The MCP command {where} does not work: {why[:MAX_REASON_CHARS]}."
        if error is None:
            return f"The MCP server {where} did not answer within {CONNECT_TIMEOUT_SECONDS:g} s."
        if self._refusals.last is not None:
            look = ": check --mcp-url, which usually ends in /mcp"
            return f"{where} answered {self._refusals.last} instead of MCP{look}."
        if self._refusals.last_status is not None:
            return f"{where} does not speak MCP ({said(error)}): check --mcp-url."
        return f"The MCP server {where} cannot be reached: {said(error)}."


def cause(error: BaseException) -> BaseException:
    """What stands behind groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def said(error: BaseException) -> str:
    """What an error says, in one line of bounded length and without a full stop."""
    error = cause(error)
    if "validation error" in str(error):  # pages of what the MCP library expected
        return "its answer is not what the protocol asks for"
    text = " ".join(str(error).split())[:MAX_REASON_CHARS]
    return text.rstrip(".") or type(error).__name__
