"""An OpenAI-compatible provider without a model: what `open-llm-proxy demo` talks to.

It answers in the shapes of OpenAI's API reference (chat completions with streaming, tool calls and
usage, completions, embeddings, models) and with vLLM's `reasoning_content`, so that a real exchange
over HTTP fills the log's fields. Its answers are made in answers.py. It has one key and no limits,
so it must listen on loopback only.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Iterable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from open_llm_proxy.server.commands.demo import answers as demo_answers

Json = dict[str, Any]

MODELS = ("kimi", "qwen3", "glm-4.7", "demo")


def make_demo_provider(api_key: str, pace_seconds: float = 0.03) -> Application:
    """The provider; every route requires `Authorization: Bearer <api_key>`, else it answers 401.

    A stream pauses for `pace_seconds` after each event.
    """
    arguments = {"api_key": api_key, "pace_seconds": pace_seconds}
    return Application(
        [
            (r"/v1/chat/completions", ChatCompletions, arguments),
            (r"/v1/completions", Completions, arguments),
            (r"/v1/embeddings", Embeddings, arguments),
            (r"/v1/models", Models, arguments),
            (r".*", NoSuchRoute, arguments),
        ],
        # No access log: the proxy logs every call.
        log_function=lambda handler: None,
    )


class Endpoint(RequestHandler):
    """Key check, body and error format of every route."""

    def initialize(self, api_key: str, pace_seconds: float) -> None:
        self.api_key = api_key
        self.pace_seconds = pace_seconds

    def set_default_headers(self) -> None:
        self.set_header("x-request-id", f"req-demo-{secrets.token_hex(8)}")

    def prepare(self) -> None:
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        known = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
        if scheme.lower() != "bearer" or not known:
            raise HTTPError(401, reason="The demo provider does not accept this API key.")

    def body(self) -> Json:
        try:
            body = json.loads(self.request.body)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise HTTPError(400, reason="The body must be a JSON object that names a model.")
        return body

    def envelope(self, prefix: str, model: str, kind: str) -> Json:
        """The fields that begin an answer, the same in all its chunks."""
        identity = f"{prefix}-demo-{secrets.token_hex(12)}"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": model}

    def answer(self, value: Json) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(encode(value))

    async def stream(self, events: Iterable[Json]) -> None:
        """Send events, `pace_seconds` apart; a client that disconnects ends them silently."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        try:
            for event in events:
                self.write(b"data: " + encode(event) + b"\n\n")
                await self.flush()
                await asyncio.sleep(self.pace_seconds)
            await self.finish(b"data: [DONE]\n\n")
        except StreamClosedError:
            return

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        codes = {401: "invalid_api_key", 404: "unknown_url"}
        error = {
            "message": self._reason,
            "type": "invalid_request_error" if status_code < 500 else "server_error",
            "param": None,
            "code": codes.get(status_code),
        }
        self.answer({"error": error})


class NoSuchRoute(Endpoint):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404, reason="The demo provider has no such route.")


class Models(Endpoint):
    def get(self) -> None:
        fields = {"object": "model", "created": 0, "owned_by": "demo"}
        self.answer({"object": "list", "data": [{"id": name} | fields for name in MODELS]})


class ChatCompletions(Endpoint):
    async def post(self) -> None:
        body = self.body()
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
            raise HTTPError(400, reason="messages must be a list of at least one message.")
        message = demo_answers.reply(body, messages[-1])
        usage = demo_answers.usage(json.dumps([messages, body.get("tools", "")]), message)
        if body.get("stream"):
            envelope = self.envelope("chatcmpl", body["model"], "chat.completion.chunk")
            options = body.get("stream_options")
            wanted = isinstance(options, dict) and bool(options.get("include_usage"))
            chunks = demo_answers.chat_chunks(message, usage if wanted else None)
            await self.stream(envelope | chunk for chunk in chunks)
        else:
            envelope = self.envelope("chatcmpl", body["model"], "chat.completion")
            self.answer(envelope | demo_answers.chat_completion(message, usage))


class Completions(Endpoint):
    async def post(self) -> None:
        body = self.body()
        prompt = demo_answers.text_of(body.get("prompt"))
        text = demo_answers.talk(prompt)
        envelope = self.envelope("cmpl", body["model"], "text_completion")
        if body.get("stream"):
            chunks = demo_answers.completion_chunks(text)
            await self.stream(envelope | chunk for chunk in chunks)
        else:
            usage = demo_answers.usage(prompt, {"content": text})
            self.answer(envelope | demo_answers.completion(text, usage))


class Embeddings(Endpoint):
    def post(self) -> None:
        body = self.body()
        given = body.get("input")
        texts = [demo_answers.text_of(t) for t in (given if isinstance(given, list) else [given])]
        as_base64 = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, text in enumerate(texts)
            for vector in [demo_answers.embedding(text, as_base64)]
        ]
        count = sum(map(demo_answers.tokens, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        self.answer({"object": "list", "data": data, "model": body["model"], "usage": usage})


def encode(value: Json) -> bytes:
    """Compact JSON in UTF-8; an echoed lone surrogate is sent as its JSON escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
