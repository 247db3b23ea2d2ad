"""A provider that answers what the call itself says, and the rows that the real server logs.

The body's field `given` holds the answer: `body` (any JSON, default a short completion), or
`raw` (base64 of any bytes), `status`, `headers`, `type`; `hang` leaves the call without an
answer. So a test writes question and answer side by side, of any shape, and the proxy in between
is the real one.
"""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

import log_contract
from proxy_process import PROXY_KEY, ProxyProcess, one_provider

CHAT = "/v1/chat/completions"
Fields = dict[str, Any]


class GivenAnswers:
    """The provider's server, on loopback; `bodies` are the requests as they arrived."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        socket, port = bind_unused_port()
        self.url = f"http://127.0.0.1:{port}"
        handler = (r"/.*", _GivenAnswer, {"bodies": self.bodies})
        app = Application([handler], log_function=lambda _: None)
        self._server = HTTPServer(app, max_body_size=1 << 28, max_buffer_size=1 << 28)
        self._server.add_socket(socket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        self._server.stop()
        await self._server.close_all_connections()


@contextmanager
def given_answers_thread() -> Iterator[GivenAnswers]:
    """The provider on a loop and a thread of its own, for tests that have no loop."""

    async def make() -> GivenAnswers:
        return GivenAnswers()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    provider = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    try:
        yield provider
    finally:
        asyncio.run_coroutine_threadsafe(provider.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _GivenAnswer(RequestHandler):
    request: HTTPServerRequest

    def initialize(self, bodies: list[bytes]) -> None:
        self._bodies = bodies

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    async def post(self) -> None:
        self._bodies.append(self.request.body)
        given: Fields = json.loads(self.request.body).get("given") or {}
        if given.get("hang"):
            self.detach()
            return
        self.set_status(given.get("status", 200))
        for name, value in given.get("headers", {}).items():
            self.set_header(name, value)
        if "raw" in given:
            self.set_header("Content-Type", given.get("type", "application/json"))
            self.write(base64.b64decode(given["raw"]))
        else:
            self.write(json.dumps(given.get("body", completion("fine"))))
            self.set_header("Content-Type", "application/json")


def completion(content: Any, **message: Any) -> Fields:
    """A chat completion; `finish_reason`, `usage` and `id` may be given too."""
    finish = message.pop("finish_reason", "stop")
    usage = message.pop("usage", {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    answer_id = message.pop("id", "chatcmpl-1")
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish}
    return {"id": answer_id, "object": "chat.completion", "choices": [choice], "usage": usage}


def tool_call(call_id: str, name: str, arguments: str) -> Fields:
    """A tool call of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def events(*documents: Any, done: bool = True) -> Fields:
    """A given stream with these events."""
    lines = [f"data: {json.dumps(document)}\n\n" for document in documents]
    text = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return raw(text.encode(), "text/event-stream")


def raw(body: bytes, content_type: str = "application/json", **given: Any) -> Fields:
    """A given answer of any bytes."""
    return {"raw": base64.b64encode(body).decode(), "type": content_type, **given}


class Asker:
    """Calls the proxy as a client; every answer is waited for."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self._http = httpx.AsyncClient(base_url=proxy.url, trust_env=False, timeout=60)

    async def ask(
        self,
        messages: Any = "hello",
        given: Fields | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        path: str = CHAT,
        **fields: Any,
    ) -> httpx.Response:
        """Make a call; a str is the one message of a user."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"model": "kimi", "messages": messages, **fields}
        if given is not None:
            body["given"] = given
        return await self.send(json.dumps(body).encode(), headers=headers, path=path)

    async def send(
        self, body: bytes, *, headers: Mapping[str, str] | None = None, path: str = CHAT
    ) -> httpx.Response:
        """Send a body as it is."""
        known = {"Authorization": f"Bearer {PROXY_KEY}", "Content-Type": "application/json"}
        return await self._http.post(path, content=body, headers={**known, **(headers or {})})

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def rows_of(lines: list[str]) -> list[Fields]:
    """Lines of the log as objects."""
    return log_contract.read_rows(lines)


async def logged(
    folder: Path, calls: Sequence[Fields], **environment: str
) -> tuple[list[Fields], list[httpx.Response]]:
    """The rows that the real server logs of some calls, and their answers."""
    async with GivenAnswers() as provider:
        settings = {"LOG_DIR": str(folder / "objects"), **environment}
        config = one_provider(provider.url)
        async with ProxyProcess(folder / "proxy", config, settings) as proxy:
            async with Asker(proxy) as asker:
                answers = [await asker.ask(**call) for call in calls]
            assert await proxy.stop() == 0
            return rows_of(proxy.stdout_lines()), answers


def written_below(folder: Path) -> dict[Path, bytes]:
    """All that a server has written below its folder, its own config.json left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "config.json"]
    return {path: path.read_bytes() for path in files}
