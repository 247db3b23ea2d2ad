"""The relay: one handler for the four POST routes that carry calls to providers.

The handler is the client's side of a call: it reads and checks the request, writes the answer,
and notices that the client leaves. The call itself, and its entries, are `RelayedCall`'s. What
the handler promises is that an answer ends in one of two ways: complete, after its closing
entry is durable, or visibly broken off.
"""

import asyncio
import logging
import socket
import struct
import sys
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import errors
from open_llm_proxy.server.client_request import ClientRequest, ProviderBody, provider_body
from open_llm_proxy.server.entries.call_entries import CallEntries, CallResult
from open_llm_proxy.server.errors import ProxyError
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.relay.call import RelayedCall
from open_llm_proxy.server.relay.request_body import (
    LINGER_SECONDS,
    LINGER_SILENCE_SECONDS,
    RequestBody,
    framing_problem,
)
from open_llm_proxy.server.relay.stream_error import LastWords
from open_llm_proxy.server.routing import Provider

log = logging.getLogger(__name__)

# How long a client has to take the error that ends its stream.
LAST_WORDS_SECONDS = 2.0
WARNED_MODEL_CHARACTERS = 200


@stream_request_body
class RelayHandler(ProxyHandler):
    """`POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/responses`."""

    _key_name: str
    _body: RequestBody
    _refusal: ProxyError | None = None
    _call: RelayedCall | None = None
    _is_stream = False
    _last_words: LastWords
    _client_left = False

    async def prepare(self) -> None:
        """Refuse strangers before their body is read, and bodies that are too large."""
        services, request = self.services, self.request
        self._body = RequestBody(request.headers, services.max_body_bytes)
        problem = framing_problem(request.version, request.headers)
        if problem is not None:
            error = errors.ambiguous_framing(problem)
            services.metrics.refused.labels(error.code).inc()
            self._refuse_at_once(error)
            return
        if request.method != "POST":
            self._body.forget()
            if not self._body.is_small:
                raise HTTPError(405)
            return
        # The limit is ours to enforce, with an answer; Tornado's own would only hang up.
        self.connection.set_max_body_size(sys.maxsize)
        try:
            if services.lifecycle.refusing:
                raise errors.draining()
            self._key_name = services.keys.check(request.headers.get("Authorization"))
        except ProxyError as error:
            services.metrics.refused.labels(error.code).inc()
            self._refuse(error)
            return
        if self._body.is_too_large:
            await self._reject_too_large()

    async def data_received(self, chunk: bytes) -> None:
        self._body.add(chunk)
        if self._body.is_forgotten:
            if self._body.has_lingered and not self._finished:
                self.finish()
        elif self._body.is_too_large:
            await self._reject_too_large()

    async def post(self) -> None:
        if self._refusal is not None:
            if not self._headers_written:
                self.answer_error(self._refusal)
            return
        result = CallResult()
        entries = self._entries()
        try:
            provider, body = self._accept(entries)
        except ProxyError as error:
            self.answer_error(await self._log_rejected(entries, result, error))
            return
        await self._relay(
            RelayedCall(
                self.services, self.request_id, self.request, entries, result, self, provider, body
            )
        )

    async def _relay(self, call: RelayedCall) -> None:
        self._call = call
        if self._client_left:
            call.client_left()
        lifecycle = self.services.lifecycle
        lifecycle.begin(call)
        try:
            failure = await call.run()
            if failure is None:
                await self._end(call.held())
            else:
                await self._end_with(failure)
        finally:
            lifecycle.end(call)

    def _entries(self) -> CallEntries:
        return CallEntries(
            self.services.provenance,
            self.services.redactor,
            self.request.headers,
            request_id=self.request_id,
            key_name=self._key_name,
            endpoint=self.request.path,
            capture=self.services.capture,
        )

    def _accept(self, entries: CallEntries) -> tuple[Provider, ProviderBody]:
        """Read and route the call; raises `ProxyError` where the proxy itself refuses it."""
        router = self.services.router
        sent = self._body.take()
        entries.set_unread(sent)
        request = ClientRequest.parse(sent)
        entries.set_request(request)
        route = router.route(request.model)
        if route is None:
            raise errors.model_not_found(request.model, router.served())
        provider = route.provider
        entries.set_route(provider.name, None)
        body = provider_body(request, provider, self.request.path)
        entries.set_route(provider.name, body.thinking_applied)
        if body.thinking_applied is False:
            model = request.model[:WARNED_MODEL_CHARACTERS]
            self.set_header("X-Proxy-Warning", f"enable_thinking has no effect on model {model!a}")
        if provider.api_key is None:
            raise errors.provider_key_missing(provider.name, provider.config.api_key_env)
        return provider, body

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._client_left = True
        if self._call is not None:
            self._call.client_left()

    @property
    def begun(self) -> bool:
        return self._headers_written

    async def begin(self, status: int, reason: str, headers: HTTPHeaders, stream: bool) -> None:
        self._is_stream, self._last_words = stream, LastWords()
        self.set_status(status, reason)
        self.clear_header("Content-Type")
        for name in {name for name, _ in headers.get_all()} - {"Vary"}:
            self.clear_header(name)
        for name, value in headers.get_all():
            self.add_header(name, value)
        if self.request.version != "HTTP/1.1":
            # There are no chunks, so the connection's end is the answer's; Tornado would still
            # promise to keep it open to a client that asked for that.
            self.request.headers.pop("Connection", None)
            self.set_header("Connection", "close")
        if stream:
            await self.flush()

    async def send(self, data: bytes) -> None:
        if self._is_stream:
            self._last_words.follow(data)
        self.write(data)
        await self.flush()

    async def _end(self, held: bytes) -> None:
        """The closing entry is durable: let the client have the end of its answer."""
        if self.connection.stream.closed():
            return
        if held:  # Tornado takes an empty write for a body, which a 204 must not have.
            self.write(held)
        await self.finish()

    async def _end_with(self, failure: ProxyError) -> None:
        """Say in place of the answer, or of its rest, why there is none."""
        if failure.code == "log_queue_unavailable":
            self.services.metrics.refused.labels(failure.code).inc()
        if not self._headers_written:
            self.clear()
            self.answer_error(failure)
            return
        if self._is_stream and "Content-Encoding" not in self._headers:
            self.write(self._last_words.error(failure.body()))
            try:
                await asyncio.wait_for(self.flush(), LAST_WORDS_SECONDS)
            except (StreamClosedError, TimeoutError):
                log.debug("the client of call %s left or is stuck", self.request_id)
        self._cut()

    def _cut(self) -> None:
        """Close the client's connection in a way that shows that the answer is not complete."""
        stream = self.connection.stream
        if self.request.version != "HTTP/1.1" and not self._is_stream and not stream.closed():
            # Without chunks an orderly close would be the end of a complete answer: reset it.
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's hook for a defect: an answer under way must not be completed by it."""
        if self._headers_written:
            self._cut()
        else:
            super().send_error(status_code, **kwargs)

    async def _log_rejected(
        self, entries: CallEntries, result: CallResult, error: ProxyError
    ) -> ProxyError:
        """Make both rows of a call that the proxy refuses durable; returns what to answer."""
        result.outcome, result.status, result.error = "rejected", error.status, error.message
        try:
            await entries.reject(self.services.log, result)
        except QueueError as unavailable:
            error = errors.log_queue_unavailable(str(unavailable))
        self.services.metrics.refused.labels(error.code).inc()
        return error

    async def _reject_too_large(self) -> None:
        error = errors.body_too_large(self.services.max_body_bytes)
        self._body.forget()
        self._refusal = error
        self._refuse(await self._log_rejected(self._entries(), CallResult(), error))

    def _refuse(self, error: ProxyError) -> None:
        """Answer ahead of the body; see request_body.py for what becomes of the body."""
        self._refusal = error
        self._body.forget()
        if self._body.is_small:
            return  # `post` answers once the body was read
        if not self._body.is_coming:
            self._refuse_at_once(error)
            return
        self.set_header("Connection", "close")
        self.answer_error(error)
        self.set_header("Content-Length", str(sum(map(len, self._write_buffer))))
        self.flush()
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_SECONDS
        loop.call_later(LINGER_SILENCE_SECONDS, self._linger, until, 0)

    def _refuse_at_once(self, error: ProxyError) -> None:
        """Answer and hang up, whatever of the body may come."""
        self.set_header("Connection", "close")
        self.answer_error(error)
        self.finish()

    def _linger(self, until: float, received_before: int) -> None:
        """Hang up once a refused body stops coming, or comes for too long."""
        if self._finished:
            return
        loop, received = asyncio.get_running_loop(), self._body.received_bytes
        if received == received_before or loop.time() > until:
            self.finish()
        else:
            loop.call_later(LINGER_SILENCE_SECONDS, self._linger, until, received)
