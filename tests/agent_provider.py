"""A scripted OpenAI-compatible provider on a real socket, for sessions that use tools.

    with AgentProvider() as provider:
        provider.script(asks(call("query", sql="SELECT 1")), says("It is 1."))
        ...  # provider.url; provider.requests holds what came

Each request takes the next step of the script. A step answers in a stream where the request
asks for one. What has no script is answered with 500, which fails the test.
"""

import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

KEY = "key-of-the-agent-tests"
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 10,
    "total_tokens": 110,
    "prompt_tokens_details": {"cached_tokens": 40},
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A request as it came; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: Json

    @property
    def results(self) -> list[str]:
        """The texts of all tool results in the conversation."""
        return [m["content"] for m in self.body["messages"] if m["role"] == "tool"]


class Step:
    """What one request is answered with."""

    def answer(self, handler: "Handler", request: Request) -> None:
        raise NotImplementedError


@dataclass
class Message(Step):
    """An answer of the model; `break_after` ends a stream after so many chunks, without [DONE]."""

    message: Json
    finish_reason: str = "stop"
    break_after: int | None = None

    def answer(self, handler: "Handler", request: Request) -> None:
        identity = {"id": "chatcmpl-1", "created": 1, "model": request.body["model"]}
        if not request.body.get("stream"):
            choice = {"index": 0, "message": self.message, "finish_reason": self.finish_reason}
            body = {**identity, "object": "chat.completion", "choices": [choice], "usage": USAGE}
            handler.send_json(200, body)
            return
        handler.start_stream()
        chunks = list(self._chunks())
        for delta, finish in chunks[: self.break_after]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            handler.send_event({**identity, "object": "chat.completion.chunk", "choices": [choice]})
        if self.break_after is None:
            handler.send_event({**identity, "choices": [], "usage": USAGE})
            handler.send_event("[DONE]")

    def _chunks(self) -> Iterator[tuple[Json, str | None]]:
        yield {"role": "assistant"}, None
        for name in ("reasoning_content", "reasoning", "content"):
            for piece in pieces(self.message.get(name) or ""):
                yield {name: piece}, None
        for index, tool_call in enumerate(self.message.get("tool_calls") or ()):
            function = tool_call["function"]
            head = {"name": function["name"], "arguments": ""}
            yield {"tool_calls": [{**tool_call, "index": index, "function": head}]}, None
            for piece in pieces(function["arguments"]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
        yield {}, self.finish_reason


@dataclass
class Whole(Step):
    """A response as it is, for errors and nonsense; a Content-Length of its own may be a lie."""

    status: int
    body: str
    headers: dict[str, str]

    def answer(self, handler: "Handler", request: Request) -> None:
        handler.send_whole(self.status, self.body.encode(), self.headers)


@dataclass
class Silence(Step):
    """No answer until the test says so, or it ends; `arrived` says that the request is there."""

    arrived: threading.Event
    release: threading.Event

    def answer(self, handler: "Handler", request: Request) -> None:
        self.arrived.set()
        self.release.wait(30)
        handler.close_connection = True


def says(text: str, **more: Any) -> Message:
    """An answer; `more` are further fields of the message, such as reasoning_content."""
    finish = more.pop("finish_reason", "stop")
    break_after = more.pop("break_after", None)
    return Message({"role": "assistant", "content": text, **more}, finish, break_after)


def asks(*calls: Json, content: str | None = None, **more: Any) -> Message:
    """A turn that asks for tools."""
    message = {"role": "assistant", "content": content, "tool_calls": [*calls], **more}
    return Message(message, "tool_calls")


_numbers = itertools.count(1)


def call(name: str, raw: str | None = None, **arguments: Any) -> Json:
    """A tool call; `raw` stands for arguments that are not what JSON makes of them."""
    text = json.dumps(arguments) if raw is None else raw
    function = {"name": name, "arguments": text}
    return {"id": f"call-{next(_numbers)}", "type": "function", "function": function}


def fails(status: int, message: str, code: str | None = None, **headers: str) -> Whole:
    """An error in OpenAI's shape. The SDK is told to wait a millisecond before it retries."""
    error = {"message": message, "type": "error", "param": None, "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": "application/json", "Retry-After-Ms": "1"}
    return Whole(status, json.dumps({"error": error}), kind | named)


def pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), 7):
        yield text[start : start + 7]


class AgentProvider:
    """The server. It accepts one key, and knows no model whose name begins with "no-"."""

    def __init__(self, key: str = KEY) -> None:
        self.key = key
        self.requests: list[Request] = []
        self._choose: Callable[[Request], Step] = lambda request: fails(500, "no script")
        self._lock = threading.Lock()
        self._server = Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, *steps: Step) -> None:
        """Answer the coming requests with these steps, in order."""
        left = list(steps)
        self.choose(lambda request: left.pop(0) if left else fails(500, "the script is at its end"))

    def choose(self, step: Callable[[Request], Step]) -> None:
        """Answer each coming request with what `step` returns for it."""
        self.requests.clear()
        self._choose = step

    def take(self, request: Request) -> Step:
        with self._lock:
            self.requests.append(request)
            if request.path != "/v1/chat/completions":
                return Whole(404, "404 page not found", {"Content-Type": "text/plain"})
            if request.headers.get("authorization") != f"Bearer {self.key}":
                sent = request.headers.get("authorization", "").removeprefix("Bearer ")
                return fails(401, f"Invalid API key: {sent}", "invalid_api_key")
            if request.body["model"].startswith("no-"):
                message = f"No provider serves {request.body['model']!r}; served are: kimi."
                return fails(404, message, "model_not_found")
            return self._choose(request)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, provider: AgentProvider) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.provider = provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves with a reset is no news, and stderr is what some tests look at.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open between requests unless a stream used it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, body)
        self.server.provider.take(request).answer(self, request)

    def do_GET(self) -> None:
        status, body = {"/prompt.md": (200, "You are terse."), "/page": (200, "<html>hi")}.get(
            self.path, (404, "not here")
        )
        self.send_whole(status, body.encode(), {"Content-Type": "text/plain"})

    def send_json(self, status: int, body: Json) -> None:
        self.send_whole(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.close_connection = "Content-Length" in headers  # one that is not true
        self.send_header("X-Proxy-Request-Id", f"request-{len(self.server.provider.requests)}")
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def send_event(self, data: Json | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass
