"""The tools of an MCP server as OpenAI tools, and the calls to them.

A call that the end of its connection meets comes back as a result that says so, and the next
call connects again. A call that a restarted server refuses is made once more over a new session.
Only when no connection can be made does `ToolServerError` end the session.
"""

import asyncio
import re
from asyncio import FIRST_COMPLETED
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
from mcp import Client, MCPError
from mcp.types import CONNECTION_CLOSED, CallToolResult, TextContent

from .mcp_answers import Refusal, Told
from .mcp_connection import CONNECT_TIMEOUT_SECONDS, Connection, ToolServerError, said
from .settings import SessionSettings

# A call that was given up gets this long to tell the server.
CANCEL_TIMEOUT_SECONDS = 5.0
MAX_TOOLS = 1000
MAX_PAGES = 50
# What the MCP library says where a refusal has no words of the server's.
NO_WORDS = frozenset({"Server returned an error response", "Session terminated", "Not Found"})
# What the OpenAI API takes as a function's name; MCP names may be longer and hold dots.
MAX_FUNCTION_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool under the name that the model sees, and the server's own name for it."""

    name: str
    server_name: str
    description: str
    parameters: dict[str, Any]

    def as_function(self) -> dict[str, Any]:
        """The tool as an entry of `tools` in a chat-completions request."""
        named = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**named, "parameters": self.parameters}}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to: text for the model, also when it failed."""

    text: str
    is_error: bool
    not_recorded: bool = False


class NotBegun(Exception):
    """The call has surely not run, and another connection may take it."""


class ToolServer:
    """`async with ToolServer(settings) as server:` connects, lists the tools and closes.

    `notes` says what of the server's tools could not be offered as it is.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self.tools: dict[str, Tool] = {}
        self.instructions: str | None = None
        self.version: str | None = None
        self.notes: list[str] = []

    async def __aenter__(self) -> Self:
        connection = await self._connected()
        try:
            self.instructions = connection.client.instructions
            self.version = version_of(connection.client)
            self.tools = await self._listed(connection.client)
            self.notes += connection.notes
        except BaseException:
            await connection.close()
            raise
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            await self._connection.close()

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools as the `tools` of a chat-completions request."""
        return [tool.as_function() for tool in self.tools.values()]

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool once. Its errors and time-outs are results. Raises ToolServerError."""
        tool = self.tools.get(name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            return ToolResult(f"There is no tool {name!r}. The tools are: {known}.", True)
        for _ in range(2):
            connection = await self._connected()
            try:
                return await self._call_over(connection, tool, arguments)
            except NotBegun as refusal:
                connection.retire()
                why = str(refusal)
        return ToolResult(f"The call was not made: {why}.", True)

    async def _call_over(
        self, connection: Connection, tool: Tool, arguments: dict[str, Any]
    ) -> ToolResult:
        """The call's result. Raises NotBegun if another connection may take the call."""
        limit = self._settings.tool_timeout_seconds
        connection.calls += 1
        call = asyncio.create_task(connection.client.call_tool(tool.server_name, arguments))
        try:
            await asyncio.wait({call, connection.task}, timeout=limit, return_when=FIRST_COMPLETED)
            if call.done():
                return await _outcome(call, connection)
            if connection.task.done():
                return _broken(connection)
            return ToolResult(f"No result within {limit:g} seconds; it was given up.", True)
        finally:
            call.cancel()
            await asyncio.wait({call}, timeout=CANCEL_TIMEOUT_SECONDS)
            if call.done() and not call.cancelled():
                call.exception()  # seen, so that asyncio does not report it as lost
            connection.calls -= 1
            if not connection.calls and not connection.is_usable:
                await connection.close()

    async def _connected(self) -> Connection:
        async with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_usable:
                if connection is not None and not connection.calls:
                    await connection.close()
                connection = self._connection = Connection(self._settings)
                await connection.open()
            return connection

    async def _listed(self, client: Client) -> dict[str, Tool]:
        """All tools, page by page, under names that are valid and different."""
        tools: dict[str, Tool] = {}
        cursor: str | None = None
        seen: set[str | None] = set()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                while cursor not in seen and len(tools) < MAX_TOOLS and len(seen) < MAX_PAGES:
                    seen.add(cursor)
                    page = await client.list_tools(cursor=cursor)
                    for item in page.tools:
                        name = function_name(item.name, tools)
                        description = item.description or item.title or ""
                        tools[name] = Tool(name, item.name, description, item.input_schema)
                    cursor = page.next_cursor
                    if not cursor:
                        return tools
        except (MCPError, TimeoutError, ValueError) as error:
            told = error.data if isinstance(error, MCPError) else None
            why = said(error)
            if isinstance(told, Told) and told.refusal is not None:
                why = f"it answered {_refused_with(told.refusal, error)}"
            text = f"The MCP server {self._settings.tool_server} lists no tools: {why}."
            raise ToolServerError(text) from error
        self.notes.append(f"The list of tools has no end; the first {len(tools)} are offered.")
        return tools


async def _outcome(call: asyncio.Task[CallToolResult], connection: Connection) -> ToolResult:
    """A finished call; whatever was raised for it is the model's to read. Raises NotBegun."""
    if call.cancelled():
        return _broken(connection)
    error = call.exception()
    if error is None:
        result = call.result()
        text = "".join(part.text for part in result.content if isinstance(part, TextContent))
        return ToolResult(text, result.is_error is True)
    told = error.data if isinstance(error, MCPError) else None
    if isinstance(told, Told):
        if told.refusal is not None:
            return _refused(told.refusal, error)
        if told.broke_off:
            return _broken(connection, error)
    elif isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
        await connection.close()  # so that what ended it is known
        return _broken(connection, error)
    return ToolResult(f"The call failed: {said(error)}", True)


def _refused(refusal: Refusal, error: BaseException) -> ToolResult:
    """What an HTTP status says of a call, with the server's words if it has any."""
    answer = _refused_with(refusal, error)
    if refusal.is_forgotten_session:
        raise NotBegun(f"the tool server answered {answer}")
    end = " The call may have run or not." if refusal.may_have_run else ""
    return ToolResult(f"The tool server answered {answer}.{end}", True)


def _refused_with(refusal: Refusal, error: BaseException) -> str:
    return f"{refusal}" if str(error) in NO_WORDS else f"{refusal}: {said(error)}"


def _broken(connection: Connection, error: BaseException | None = None) -> ToolResult:
    """What a call is told whose connection or answer broke off. Raises NotBegun."""
    failure = connection.failure
    if isinstance(failure, httpx2.ConnectError):
        raise NotBegun(f"the tool server cannot be reached ({said(failure)})")
    why = failure or error
    reason = said(why) if why else "the server closed it"
    text = f"The connection to the tool server broke during this call ({reason})."
    return ToolResult(f"{text} The call may have run or not.", True)


def function_name(name: str, taken: dict[str, Tool]) -> str:
    """`name` in the form that the OpenAI API allows, and none of `taken`."""
    base = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_FUNCTION_NAME_CHARS] or "tool"
    candidate, number = base, 2
    while candidate in taken:
        suffix = f"_{number}"
        candidate = base[: MAX_FUNCTION_NAME_CHARS - len(suffix)] + suffix
        number += 1
    return candidate


def version_of(client: Client) -> str | None:
    """The server as it names itself, with its version and that of the protocol."""
    info = client.server_info
    return f"{info.name} {info.version}, MCP {client.protocol_version}" if info else None
