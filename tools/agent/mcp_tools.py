"""The tools of an MCP server as OpenAI tools, and the calls to them.

A call that the end of its connection meets comes back as a result that says so, and the next
call connects again. Only when that fails too does `ToolServerError` end the session.
"""

import asyncio
import re
from asyncio import FIRST_COMPLETED
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
from mcp import Client, MCPError
from mcp.types import CONNECTION_CLOSED, CallToolResult

from .content import result_text
from .mcp_connection import CONNECT_TIMEOUT_SECONDS, Connection, ToolServerError, said
from .settings import SessionSettings

# A call that was given up gets this long to tell the server.
CANCEL_TIMEOUT_SECONDS = 5.0
MAX_TOOLS = 1000
# What the OpenAI API takes as a function's name; MCP names may be longer and hold dots.
MAX_FUNCTION_NAME_CHARS = 64
# The SDK's words where the connection has ended, and not only the answer to one call.
CONNECTION_OVER = "Connection closed"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool under the name that the model sees, and the server's own name for it."""

    name: str
    server_name: str
    description: str
    parameters: dict[str, Any]

    def as_function(self) -> dict[str, Any]:
        """The tool as an entry of `tools` in a chat-completions request."""
        parameters = {"type": "object", "properties": {}, **self.parameters}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to: text for the model, also when it failed."""

    text: str
    is_error: bool


class ToolServer:
    """`async with ToolServer(settings) as server:` connects, lists the tools and closes."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self.tools: dict[str, Tool] = {}
        self.instructions: str | None = None

    async def __aenter__(self) -> Self:
        connection = await self._connected()
        try:
            self.instructions = connection.client.instructions
            self.tools = await self._listed(connection.client)
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

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Call a tool once. Its errors and time-outs are results. Raises ToolServerError."""
        tool = self.tools.get(name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            return ToolResult(f"There is no tool {name!r}. The tools are: {known}.", True)
        for _ in range(2):
            connection = await self._connected()
            result = await self._call_over(connection, tool, arguments)
            if result is not None:
                return result
            await connection.close()
        return ToolResult("The tool server drops every connection; the call was not made.", True)

    async def _call_over(
        self, connection: Connection, tool: Tool, arguments: dict[str, Any]
    ) -> ToolResult | None:
        """The call's result, or None if it surely has not run and wants a new connection."""
        limit = self._settings.tool_timeout_seconds
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

    async def _connected(self) -> Connection:
        async with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_usable:
                if connection is not None:
                    await connection.close()
                connection = self._connection = Connection(self._settings)
                await connection.open()
            return connection

    async def _listed(self, client: Client) -> dict[str, Tool]:
        """All tools, page by page, under names that are valid and different."""
        tools: dict[str, Tool] = {}
        cursor: str | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                while len(tools) < MAX_TOOLS:
                    page = await client.list_tools(cursor=cursor)
                    for item in page.tools:
                        name = function_name(item.name, tools)
                        description = item.description or item.title or ""
                        tools[name] = Tool(name, item.name, description, item.input_schema)
                    cursor = page.next_cursor
                    if cursor is None:
                        break
        except (MCPError, TimeoutError, ValueError) as error:
            text = f"The MCP server {self._settings.tool_server} lists no tools: {said(error)}."
            raise ToolServerError(text) from error
        return tools


async def _outcome(call: asyncio.Task[CallToolResult], connection: Connection) -> ToolResult | None:
    """A finished call; whatever the SDK raised for it is the model's to read."""
    if call.cancelled():
        return _broken(connection)
    error = call.exception()
    if error is None:
        result = call.result()
        return ToolResult(result_text(result), result.is_error)
    if isinstance(error, MCPError) and connection.session_is_gone:
        return None
    if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
        if error.message == CONNECTION_OVER:
            await connection.close()
        return _broken(connection, error)
    return ToolResult(f"The call failed: {said(error)}", True)


def _broken(connection: Connection, error: MCPError | None = None) -> ToolResult | None:
    """What a call is told whose connection or answer broke off; None if it was never sent."""
    failure = connection.failure
    if isinstance(failure, httpx2.ConnectError):
        return None
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
