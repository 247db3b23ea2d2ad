"""An OpenAI-compatible provider for real clients: the last word of the question decides.

    with ClientProvider() as provider:
        ...  # provider.url, for clients and for the proxy's config

It also answers pages of other origins, so that each check can be made directly and through the
proxy. `GET /left` waits until the client of an endless stream has left: clients ask it after an
abort, so that what they check is seen at the provider.
"""

import base64
import json
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]

MODEL = "kimi"
LEAVING_SECONDS = 20
# Nobody stays longer in an endless stream.
ENDLESS_SECONDS = 30
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TOO_LONG = {
    "message": "The prompt is too long.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
}
STRUCTURED = '{"name":"Nevada","share":0.41}'


class ClientProvider:
    """The server. `requests` has the bodies, `left` counts the clients that left a stream."""

    def __init__(self) -> None:
        self.requests: list[Json] = []
        self.left = threading.Semaphore(0)
        self.tries: defaultdict[str, int] = defaultdict(int)
        self._http = Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

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

    def __init__(self, provider: ClientProvider) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.provider = provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave are what some checks are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_OPTIONS(self) -> None:
        asked = self.headers.get("Access-Control-Request-Headers", "")
        self._send(204, b"", {"Access-Control-Allow-Headers": asked})

    def do_GET(self) -> None:
        if self.path == "/left":
            found = self.server.provider.left.acquire(timeout=LEAVING_SECONDS)
            self._send_json(200 if found else 504, {"left": found})
        else:
            listed = {"id": MODEL, "object": "model", "created": 1, "owned_by": "lab"}
            self._send_json(200, {"object": "list", "data": [listed]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.provider.requests.append(body)
        if self.path.endswith("/embeddings"):
            self._send_json(200, embeddings(body))
        elif self.path.endswith("/responses"):
            self._responses(body)
        else:
            self._chat(body, question(body))

    def _chat(self, body: Json, asked: str) -> None:
        word, _, name = asked.rpartition(" ")[2].partition(":")
        if word == "bad":
            self._send_json(400, {"error": TOO_LONG})
            return
        if word == "busy":
            self.server.provider.tries[name] += 1
            if self.server.provider.tries[name] == 1:
                error = {"message": "Slow down.", "type": "rate_limit", "code": None, "param": None}
                self._send_json(429, {"error": error}, {"Retry-After-Ms": "1", "Retry-After": "1"})
                return
        if body.get("stream"):
            self._stream(body, word)
        else:
            message, finish = answer(body, word)
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            identity = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
            rest = {"model": body["model"], "choices": [choice], "usage": USAGE}
            self._send_json(200, {**identity, **rest})

    def _stream(self, body: Json, word: str) -> None:
        self._begin_stream()
        if word in ("endless", "broken"):
            self._endless(body, 3 if word == "broken" else None)
            return
        message, finish = answer(body, word)
        for delta in deltas(message):
            self._event(chunk(body, delta))
        self._event(chunk(body, {}, finish))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**chunk(body, {}), "choices": [], "usage": USAGE})
        self._event("[DONE]")
        self._piece(b"")

    def _endless(self, body: Json, count: int | None) -> None:
        """Pieces until the client leaves; with `count` so many, then a broken connection."""
        end = time.monotonic() + ENDLESS_SECONDS
        try:
            while count != 0 and time.monotonic() < end:
                self._event(chunk(body, {"role": "assistant", "content": "more "}))
                count = None if count is None else count - 1
                time.sleep(0.02)
        except OSError:
            self.server.provider.left.release()
        self.close_connection = True

    def _responses(self, body: Json) -> None:
        text = {"type": "output_text", "text": "Hello.", "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": body["model"]}
        whole |= {"status": "completed", "output": [{**item, "content": [text]}]}
        whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
        whole["usage"] = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
        if not body.get("stream"):
            self._send_json(200, whole)
            return
        self._begin_stream()
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events = [
            {"type": "response.created", "response": {**whole, "status": "in_progress"}},
            {"type": "response.output_text.delta", **place, "delta": "Hello.", "logprobs": []},
            {"type": "response.completed", "response": whole},
        ]
        for number, event in enumerate(events):
            name = f"event: {event['type']}\n".encode()
            data = json.dumps({**event, "sequence_number": number}).encode()
            self._piece(name + b"data: " + data + b"\n\n")
        self._piece(b"")

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self._common_headers()
        self.end_headers()

    def _event(self, data: Json | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        self._piece(f"data: {text}\n\n".encode())

    def _piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send_json(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(status, json.dumps(body).encode(), kind | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self._common_headers()
        self.end_headers()
        self.wfile.write(body)

    def _common_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "*")
        self.send_header("X-Proxy-Request-Id", "none")  # the proxy's own takes its place

    def log_message(self, *args: object) -> None:
        pass


def question(body: Json) -> str:
    """The text of the last user message."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            return content if isinstance(content, str) else str(content[-1].get("text"))
    return ""


def answer(body: Json, word: str) -> tuple[Json, str]:
    """The message that a question gets, and why it ends."""
    message: Json = {"role": "assistant", "content": "Hello.", "refusal": None}
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    if word == "weather":
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        if results:
            return {**message, "content": f"It is {results[-1]}."}, "stop"
        return calling(message, tools[0], '{"city":"Paris"}')
    if word == "structured":
        if tools:
            return calling(message, tools[-1], STRUCTURED)
        return {**message, "content": STRUCTURED}, "stop"
    if word == "think":
        # The client's own flag, or what the proxy makes of it for this model.
        template = body.get("chat_template_kwargs") or {}
        thinks = body.get("enable_thinking") or template.get("thinking")
        return {**message, "content": f"thinking: {json.dumps(bool(thinks))}"}, "stop"
    return message, "stop"


def calling(message: Json, name: str, arguments: str) -> tuple[Json, str]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {**message, "content": None, "tool_calls": [call]}, "tool_calls"


def deltas(message: Json) -> Iterator[Json]:
    yield {"role": "assistant"}
    for position in range(0, len(message["content"] or ""), 3):
        yield {"content": message["content"][position : position + 3]}
    for index, call in enumerate(message.get("tool_calls") or ()):
        head = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{**call, "index": index, "function": head}]}
        for piece in call["function"]["arguments"].partition(":"):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def chunk(body: Json, delta: Json, finish: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    identity = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
    return {**identity, "model": body["model"], "choices": [choice]}


def embeddings(body: Json) -> Json:
    given = body["input"]
    count = len(given) if isinstance(given, list) and isinstance(given[0], str | list) else 1
    vector: Any = [0.5, -0.25]
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(count)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}
