"""An MCP server with DuckDB behind it, built on the official SDK, as a process of its own.

    python tests/agent_mcp_server.py --data states.csv            # HTTP; prints its URL
    python tests/agent_mcp_server.py --data states.csv --stdio

`query` runs SQL over the table `states`; the other tools return every kind of content, or
misbehave. With --legacy the server knows the protocol of 2025 only, with sessions, as most
deployed servers do.
"""

import argparse
import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import duckdb
from mcp.server.mcpserver import Audio, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import BlobResourceContents, EmbeddedResource, ResourceLink, TextResourceContents

INSTRUCTIONS = "Answer from the table states(state, area, gap12)."
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(52)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


def make_server(data: str) -> MCPServer[Any]:
    """The server; `data` is a CSV or Parquet file."""
    server: MCPServer[Any] = MCPServer("states", instructions=INSTRUCTIONS, log_level="CRITICAL")
    add_data_tools(server, data)
    add_content_tools(server)
    add_misbehaving_tools(server)
    return server


def add_data_tools(server: MCPServer[Any], data: str) -> None:
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE states AS SELECT * FROM '{data}'")

    @server.tool(structured_output=False)
    def query(sql: str) -> str:
        """Run SQL over the table states."""
        cursor = connection.cursor()
        try:
            cursor.execute(sql)
        except duckdb.Error as error:
            raise ToolError(str(error)) from error
        names = [column[0] for column in cursor.description or ()]
        rows = [" | ".join(str(value) for value in row) for row in cursor.fetchall()]
        return "\n".join([" | ".join(names), *rows])

    @server.tool(name="data.size")
    def size() -> dict[str, int]:
        """How many rows there are."""
        row = connection.cursor().execute("SELECT count(*) FROM states").fetchone()
        assert row is not None
        return {"rows": row[0]}


def add_content_tools(server: MCPServer[Any]) -> None:
    @server.tool(structured_output=False)
    def picture() -> list[Any]:
        """A text and an image."""
        return ["The map:", Image(data=PIXEL, format="png")]

    @server.tool(structured_output=False)
    def recording() -> Audio:
        """A sound."""
        return Audio(data=bytes(100), format="wav")

    @server.tool(structured_output=False)
    def documents() -> list[Any]:
        """A text resource, a binary one and a link."""
        text = TextResourceContents(uri="data://note", mime_type="text/plain", text="Read me.")
        blob = BlobResourceContents(uri="data://tile", mime_type="image/tiff", blob="AAAAAAAA")
        link = ResourceLink(name="full", uri="https://example.org/full.parquet", description="All")
        return [
            EmbeddedResource(resource=text),
            EmbeddedResource(resource=blob),
            link,
        ]

    @server.tool(structured_output=False)
    def long(characters: int) -> str:
        """A long text."""
        return "x" * characters


def add_misbehaving_tools(server: MCPServer[Any]) -> None:
    numbers = itertools.count(1)
    meeting: dict[int, asyncio.Barrier] = {}

    @server.tool(structured_output=False)
    def next_number() -> str:
        """Another number each time."""
        return str(next(numbers))

    @server.tool(structured_output=False)
    async def meet(count: int) -> str:
        """Returns once `count` calls are under way at the same time."""
        barrier = meeting.setdefault(count, asyncio.Barrier(count))
        await barrier.wait()
        return "met"

    @server.tool(structured_output=False)
    async def hang() -> str:
        """Never returns."""
        await asyncio.Event().wait()
        return ""

    @server.tool(structured_output=False)
    def die() -> str:
        """Ends the process in the middle of the call."""
        os._exit(1)


def without_discovery(app: App) -> App:
    """`app` for a client that must fall back to the handshake of 2025."""

    async def legacy(scope: Scope, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers") or ())
        if headers.get(b"mcp-method") == b"server/discover":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"Not Found"})
        else:
            await app(scope, receive, send)

    return legacy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--legacy", action="store_true")
    given = parser.parse_args()
    server = make_server(given.data)
    if given.stdio:
        server.run("stdio")
        return
    import uvicorn

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", given.port))
    listening.listen()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)
    app: App = server.streamable_http_app()
    config = uvicorn.Config(without_discovery(app) if given.legacy else app, log_level="critical")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
