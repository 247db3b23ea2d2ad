"""The relay: one handler for the four POST routes that carry calls to providers.

The handler decides whether a call is taken: framing, key, size, JSON, route. A call that is taken
is `RelayedCall.run`'s, from its opening entry to the end of the answer; one that is refused gets
both its rows at once, and then the refusal. Strangers are refused before their body is read.
"""

import asyncio
import sys
from typing import Any

from tornado.web import HTTPError, stream_request_body

from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest, ProviderBody, provider_body
from open_llm_proxy.server.entries.call_entries import CallEntries
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay.call import RelayedCall
from open_llm_proxy.server.relay.client_response import ClientResponse
from open_llm_proxy.server.relay.request_body import (
    LINGER_SECONDS,
    LINGER_SILENCE_SECONDS,
    RequestBody,
    framing_problem,
)
from open_llm_proxy.server.routing import Route

WARNED_MODEL_CHARACTERS = 200


@stream_request_body
class RelayHandler(ProxyHandler):
    """`POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/responses`."""

    _key_name: str
    _body: RequestBody
    _refusal: ProxyError | None = None
    _call: RelayedCall | None = None
    _client_left = False

    async def prepare(self) -> None:
        """Refuse strangers before their body is read, and bodies that are too large."""
        services, request = self.services, self.request
        self._body = RequestBody(request.headers, services.max_body_bytes)
        problem = framing_problem(request.version, request.headers)
        if problem is not None:
            error = proxy_errors.ambiguous_framing(problem)
            services.metrics.count_refusal(error.code)
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
                raise proxy_errors.draining()
            self._key_name = services.keys.check(request.headers.get("Authorization"))
        except ProxyError as error:
            services.metrics.count_refusal(error.code)
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
            if not self.head_sent:
                self.answer_error(self._refusal)
            return
        entries = self._entries()
        try:
            route, body = self._accept(entries)
        except ProxyError as error:
            self.answer_error(await self._log_rejected(entries, error))
            return
        call = RelayedCall(self.services, self.request, entries, ClientResponse(self), route, body)
        self._call = call
        if self._client_left:
            call.client_left()
        lifecycle = self.services.lifecycle
        lifecycle.begin(call)
        try:
            await call.run()
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

    def _accept(self, entries: CallEntries) -> tuple[Route, ProviderBody]:
        """Read and route the call; raises `ProxyError` where the proxy itself refuses it."""
        router = self.services.router
        sent = self._body.take()
        entries.set_unread(sent)
        request = ClientRequest.parse(sent)
        entries.set_request(request)
        route = router.route(request.model)
        if route is None:
            raise proxy_errors.model_not_found(request.model, router.served())
        provider = route.provider
        entries.set_route(provider.name, None)
        body = provider_body(request, provider, self.request.path)
        warning = None
        if body.thinking_applied is False:
            model = request.model[:WARNED_MODEL_CHARACTERS]
            warning = f"enable_thinking has no effect on model {model!a}"
            self.set_header("X-Proxy-Warning", warning)
        entries.set_route(provider.name, body.thinking_applied, warning)
        if provider.api_key is None:
            raise proxy_errors.provider_key_missing(provider.name, provider.config.api_key_env)
        return route, body

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._client_left = True
        if self._call is not None:
            self._call.client_left()

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's hook for a defect: an answer under way must not be completed by it."""
        if self.head_sent:
            ClientResponse(self).cut()
        else:
            super().send_error(status_code, **kwargs)

    async def _log_rejected(self, entries: CallEntries, error: ProxyError) -> ProxyError:
        """Make both rows of a call that the proxy refuses durable; returns what to answer."""
        result = CallResult.rejected(error.status, error.message)
        try:
            await entries.reject(self.services.log, result)
        except QueueError as unavailable:
            error = proxy_errors.log_queue_unavailable(str(unavailable))
        self.services.metrics.count_refusal(error.code)
        return error

    async def _reject_too_large(self) -> None:
        error = proxy_errors.body_too_large(self.services.max_body_bytes)
        self._body.forget()
        self._refusal = error
        self._refuse(await self._log_rejected(self._entries(), error))

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
