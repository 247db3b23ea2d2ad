"""An MCP server on a real socket that says exactly what a test wants, also what no server should.

    with ScriptedMcpServer() as server:
        server.tools = [{"name": "query", "inputSchema": None}]
        server.calls = [{"content": [{"type": "text", "text": "3"}]}, Status(503)]

It speaks the protocol of 2025 with sessions. Each call of a tool takes the next of `calls`; the
last one stays. `restart` forgets all sessions; what a forgotten one is answered is `forgotten`.
"""

import json
import secrets
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


@dataclass
class Status:
    """An HTTP answer that is no MCP message."""

    status: int
    body: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class ErrorAnswer:
    """A JSON-RPC error, by default with HTTP 200."""

    code: int
    message: str
    status: int = 200


class BrokenStream:
    """An event stream that ends without an answer."""


class Restart:
    """Forget all sessions and refuse this call as one of a forgotten session."""


Answer = Json | Status | ErrorAnswer | BrokenStream | Restart
# A callable makes the answer when the call is there, and may wait.
Answers = Answer | Callable[[], Answer]


class ScriptedMcpServer:
    """`methods` counts the requests by method."""

    def __init__(self) -> None:
        self.tools: Any = [{"name": "query", "inputSchema": {"type": "object"}}]
        self.pages: dict[str | None, Json] = {}
        self.listing: Answer | None = None
        self.calls: list[Answers] = [{"content": [{"type": "text", "text": "done"}]}]
        self.opening: Answer | None = None
        self.forgotten: Answer = Status(404)
        self.methods: list[str] = []
        self._sessions: set[str] = set()
        self._http = Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/mcp"

    def restart(self) -> None:
        self._sessions.clear()

    def answer(self, message: Json, session: str | None) -> tuple[Answer, str | None]:
        """What a message is answered with, and the id of a session that begins with it."""
        method = message["method"]
        self.methods.append(method)
        if method == "server/discover":
            return Status(404), None
        if method == "initialize":
            if self.opening is not None:
                return self.opening, None
            session = secrets.token_hex(4)
            self._sessions.add(session)
            about = {"name": "scripted", "version": "7"}
            capabilities: Json = {"capabilities": {"tools": {}}, "serverInfo": about}
            return {"protocolVersion": "2025-06-18", **capabilities}, session
        if session not in self._sessions:
            return self.forgotten, None
        if method == "tools/list":
            cursor = (message.get("params") or {}).get("cursor")
            return self.listing or self.pages.get(cursor, {"tools": self.tools}), None
        answer = self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, Restart):
            self.restart()
            return self.forgotten, None
        return answer, None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: ScriptedMcpServer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves with a reset is no news, and stderr is what some tests look at.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "id" not in message:
            self._send(202, "", {})
            return
        answer, session = self.server.script.answer(message, self.headers["Mcp-Session-Id"])
        headers = {"Content-Type": "application/json"}
        if session is not None:
            headers["Mcp-Session-Id"] = session
        frame = {"jsonrpc": "2.0", "id": message["id"]}
        match answer:
            case Status():
                self._send(answer.status, answer.body, answer.headers)
            case ErrorAnswer():
                error = {"code": answer.code, "message": answer.message}
                self._send(answer.status, json.dumps({**frame, "error": error}), headers)
            case BrokenStream():
                self._send(200, ": nothing\n\n", {"Content-Type": "text/event-stream"})
            case _:
                self._send(200, json.dumps({**frame, "result": answer}), headers)

    def do_GET(self) -> None:
        self._send(405, "", {})

    def do_DELETE(self) -> None:
        self._send(200, "", {})

    def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass
