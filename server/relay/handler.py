"""The relay: one handler for the four POST routes that carry calls to providers.

The handler decides whether a call is taken: framing, key, size, JSON, route. A call that is taken
is `RelayedCall.run`'s, from its opening entry to the end of the answer; one that is refused gets
both its rows at once, and then the refusal. Strangers are refused before their body is read.
"""

from functools import partial

from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest, ProviderBody, provider_body
from open_llm_proxy.server.entries.call_entries import CallEntries
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay.call import RelayedCall
from open_llm_proxy.server.relay.client_response import ClientResponse
from open_llm_proxy.server.relay.coded_body import content_coding, taken
from open_llm_proxy.server.request_body import SMALL_BYTES
from open_llm_proxy.server.routing import Route


class RelayHandler(ProxyHandler):
    """POST of `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/responses`."""

    _key_name = ""
    _coding: str | None = None
    _call: RelayedCall | None = None
    _client_left = False
    _is_interrupted = False

    @property
    def max_body_bytes(self) -> int:
        return self.services.max_body_bytes if self.request.method == "POST" else SMALL_BYTES

    def judge(self) -> None:
        if self.request.method != "POST":
            super().judge()
            return
        if self.services.lifecycle.refusing:
            raise proxy_errors.draining()
        self._key_name = self.check_key()
        self.services.keys.admit(self._key_name)
        if self.body.is_too_large:
            raise proxy_errors.body_too_large(self.max_body_bytes)
        self._coding = content_coding(self.request.headers)

    def is_logged(self, error: ProxyError) -> bool:
        """Whoever has a key; but not what cannot be read as a request."""
        return bool(self._key_name) and error.code != "malformed_request"

    async def logged(self, error: ProxyError) -> ProxyError:
        return await self._log_rejected(self._entries(), error)

    async def post(self) -> None:
        with self.services.lifecycle.finishing(self):  # a long body takes time to be read
            await self._post()

    async def _post(self) -> None:
        entries = self._entries()
        try:
            route, body = await self._accept(entries)
        except ProxyError as error:
            error = await self._log_rejected(entries, error)
            self.services.metrics.count_refusal(error.code)
            self.answer_error(error)
            return
        call = RelayedCall(
            self.services, self.request, self.path, entries, ClientResponse(self), route, body
        )
        self._call = call
        if self._client_left:
            call.client_left()
        if self._is_interrupted:
            call.interrupt()
        try:
            await call.run()
        finally:
            self._call = None  # which holds this handler

    def interrupt(self) -> None:
        """The server shuts down: end the call visibly."""
        self._is_interrupted = True
        if self._call is not None:
            self._call.interrupt()

    def _entries(self) -> CallEntries:
        return CallEntries(
            self.services.provenance,
            self.services.redactor,
            self.request.headers,
            request_id=self.request_id,
            key_name=self._key_name,
            endpoint=self.path,
            capture=self.services.capture,
        )

    async def _accept(self, entries: CallEntries) -> tuple[Route, ProviderBody]:
        """Read and route the call; raises `ProxyError` where the proxy itself refuses it."""
        router, long_work = self.services.router, self.services.long_work
        sent = await taken(self.body, self._coding, self.max_body_bytes, long_work)

        def read() -> ClientRequest:
            entries.set_unread(sent)
            request = ClientRequest.parse(sent)
            entries.set_request(request)
            return request

        request = await long_work.run(len(sent), read)
        self.services.keys.check_model(self._key_name, request.model)
        route = router.route(request.model)
        if route is None:
            raise proxy_errors.model_not_found(request.model, router.served())
        provider = route.provider
        entries.set_route(provider.name, None)
        rewrite = partial(provider_body, request, provider, self.path)
        body = await long_work.run(len(sent), rewrite)
        if body.warning is not None:
            self.answer.headers["X-Proxy-Warning"] = body.warning
        entries.set_route(provider.name, body.thinking_applied, body.warning)
        if provider.api_key is None:
            raise proxy_errors.provider_key_missing(provider.name, provider.config.api_key_env)
        return route, body

    def client_left(self) -> None:
        super().client_left()
        self._client_left = True
        if self._call is not None:
            self._call.client_left()

    async def _log_rejected(self, entries: CallEntries, error: ProxyError) -> ProxyError:
        """Make both rows of a call that the proxy refuses durable; returns what to answer."""
        result = CallResult.rejected(error.status, error.message)
        try:
            await entries.reject(self.services.log, result)
        except QueueError as unavailable:
            error = proxy_errors.log_queue_unavailable(str(unavailable))
        return error
