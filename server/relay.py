"""The relay: one handler for the four POST routes that carry calls to providers.

The order of things is the promise of this program:

    request entry durable -> provider called -> answer passed on, but for its end
    -> response entry durable -> end of the answer

An opened call is closed exactly once, in a ``finally`` that begins before the first await, so
neither a client that leaves, nor a provider that breaks, nor a shutdown can skip the entry.
"""

import asyncio
import json
import logging
import sys
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import errors, header_policy
from open_llm_proxy.server.call_entries import CallEntries, CallResult
from open_llm_proxy.server.client_request import ClientRequest, ProviderBody, provider_body
from open_llm_proxy.server.entry_log import OpenedCall
from open_llm_proxy.server.errors import ProxyError
from open_llm_proxy.server.exchange import BrokenAnswer, Exchange
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.request_body import LINGER_SECONDS, RequestBody
from open_llm_proxy.server.routing import Provider

log = logging.getLogger(__name__)

# What ends an answer before its end: said in its place, or in the middle of it.
Failure = ProxyError | BrokenAnswer


@stream_request_body
class RelayHandler(ProxyHandler):
    """`POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/responses`."""

    _key_name: str
    _body: RequestBody
    _refusal: ProxyError | None = None
    _exchange: "asyncio.Task[None] | None" = None
    _closed: "asyncio.Future[tuple[bytes, ...]] | None" = None
    _client_gone = False
    _interrupted = False
    _is_stream = False

    async def prepare(self) -> None:
        """Refuse strangers before their body is read, and bodies that are too large."""
        services = self.services
        self._body = RequestBody(self.request.headers, services.max_body_bytes)
        # The limit is ours to enforce, with an answer; Tornado's own would only hang up.
        self._connection.set_max_body_size(sys.maxsize)
        if self.request.method != "POST":
            return
        try:
            if services.lifecycle.refusing:
                raise errors.draining()
            self._key_name = services.keys.check(self.request.headers.get("Authorization"))
        except ProxyError as error:
            services.metrics.refused.labels(error.code).inc()
            await self._refuse(error)
            return
        if self._body.is_too_large:
            await self._reject_too_large()

    async def data_received(self, chunk: bytes) -> None:
        self._body.add(chunk)
        if self._refusal is None and self._body.is_too_large:
            await self._reject_too_large()
        elif self._body.has_lingered and not self._finished:
            await self.finish()

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
            error = await self._log_rejected(entries, result, error)
            self.answer_error(error)
            return
        lifecycle = self.services.lifecycle
        lifecycle.begin(self)
        try:
            await self._relay(entries, result, provider, body)
        finally:
            lifecycle.end(self)

    async def _relay(
        self, entries: CallEntries, result: CallResult, provider: Provider, body: ProviderBody
    ) -> None:
        opened = self._open(entries)
        services = self.services
        exchange = Exchange(
            services.client,
            self,
            result,
            provider=provider.name,
            hide_usage=body.asked_for_usage,
            transcript_max_bytes=services.transcript_max_bytes,
            complete=lambda: self._close_call(opened, entries, result),
        )
        failure: Failure | None = None
        try:
            failure = await self._run(opened, exchange, result, provider, body)
        finally:
            closed = self._close_call(opened, entries, result)
            services.metrics.count_call(provider.name, self.request.path, result)
        try:
            await closed
        except QueueError as error:
            failure = self._unavailable(error)
        await self._end(exchange, failure)

    def _entries(self) -> CallEntries:
        return CallEntries(
            self.services.provenance,
            self.services.redactor,
            self.request.headers,
            request_id=self.request_id,
            key_name=self._key_name,
            endpoint=self.request.path,
        )

    def _accept(self, entries: CallEntries) -> tuple[Provider, ProviderBody]:
        """Read and route the call; raises `ProxyError` where the proxy itself refuses it."""
        router = self.services.router
        request = ClientRequest.parse(self._body.take())
        entries.set_request(request)
        route = router.route(request.model)
        if route is None:
            raise errors.model_not_found(request.model, router.served())
        provider = route.provider
        entries.set_route(provider.name, None)
        body = provider_body(request, provider)
        entries.set_route(provider.name, body.thinking_applied)
        if body.thinking_applied is False:
            self.set_header(
                "X-Proxy-Warning", f"enable_thinking has no effect on model {request.model!a}"
            )
        if provider.api_key is None:
            raise errors.provider_key_missing(provider.name, provider.config.api_key_env)
        return provider, body

    def _open(self, entries: CallEntries) -> OpenedCall:
        """Hand the request entry over; raises `ProxyError` where it cannot be stored."""
        try:
            return self.services.log.open([entries.request()], entries.interrupted())
        except QueueError as error:
            raise self._unavailable(error) from error

    async def _run(
        self,
        opened: OpenedCall,
        exchange: Exchange,
        result: CallResult,
        provider: Provider,
        body: ProviderBody,
    ) -> Failure | None:
        """Make the call in a task that `on_connection_close` and a shutdown can cancel.

        Returns what has to be said to the client in place of the rest of the answer, if
        anything; `result` tells the same for the log.
        """
        self._exchange = asyncio.ensure_future(self._exchanged(opened, exchange, provider, body))
        if self._client_gone:
            self._exchange.cancel()
        try:
            await self._exchange
        except QueueError as error:
            return self._unavailable(error)
        except (ProxyError, BrokenAnswer) as error:
            return self._as_answer(error, result)
        except StreamClosedError:
            self._client_gone = True
            result.outcome = "client_disconnected"
        except asyncio.CancelledError:
            if self._client_gone:
                result.outcome = "client_disconnected"
            elif self._interrupted:
                result.outcome = "interrupted"
                result.error = "the server was shut down before the answer was complete"
                return self._as_answer(errors.draining(), result)
            else:
                raise
        except Exception:
            log.exception("call %s failed inside the proxy", self.request_id)
            result.outcome, result.status = "rejected", 500
            result.error = "the proxy failed on this call; see its stderr"
            return errors.internal_error()
        return None

    def _as_answer(self, failure: Failure, result: CallResult) -> Failure:
        """What the client is told; before the first byte that is an answer with a status."""
        if self._headers_written:
            return failure
        if isinstance(failure, BrokenAnswer):
            timed_out = result.outcome == "upstream_timeout"
            make = errors.upstream_timeout if timed_out else errors.upstream_unreachable
            failure = make(failure.provider, str(failure))
        result.status = failure.status
        return failure

    async def _exchanged(
        self, opened: OpenedCall, exchange: Exchange, provider: Provider, body: ProviderBody
    ) -> None:
        await opened.stored
        assert provider.api_key is not None, "checked when the call was accepted"
        headers = header_policy.to_provider(
            self.request.headers, provider.api_key, provider.config.extra_headers
        )
        url = provider.url(self.request.path)
        await exchange.run(url, headers, body.body, self.services.timeouts)

    def _close_call(
        self, opened: OpenedCall, entries: CallEntries, result: CallResult
    ) -> "asyncio.Future[tuple[bytes, ...]]":
        """Hand the closing entry over, once; the future resolves when it is durable."""
        if self._closed is None:
            self._closed = opened.close(entries.response(result))
        return self._closed

    async def _end(self, exchange: Exchange, failure: Failure | None) -> None:
        """The closing entry is durable: let the client have the end of its answer."""
        if self._client_gone:
            return
        if failure is None:
            self.write(exchange.held())
            await self.finish()
        elif isinstance(failure, ProxyError) and not self._headers_written:
            self.clear()
            self.answer_error(failure)
        else:
            await self._end_visibly(str(failure))

    async def _end_visibly(self, message: str) -> None:
        """End an answer that is under way so that nobody can take it for complete."""
        if self._is_stream:
            error = ProxyError(502, "upstream_error", message, "server_error")
            self.write(b"data: " + json.dumps(error.body()).encode() + b"\n\n")
            try:
                await self.flush()
            except StreamClosedError:
                log.debug("the client of call %s left first", self.request_id)
        self._cut()

    def _cut(self) -> None:
        """Close the client's connection without the end of the body."""
        self._client_gone = True
        self._connection.close()

    @property
    def _connection(self) -> HTTP1Connection:
        return cast(HTTP1Connection, self.request.connection)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's hook for a defect: an answer under way must not be completed by it."""
        if self._headers_written:
            self._cut()
        else:
            super().send_error(status_code, **kwargs)

    # The client's side of the exchange.

    async def begin(self, status: int, reason: str, headers: HTTPHeaders, stream: bool) -> None:
        self._is_stream = stream
        self.set_status(status, reason)
        self.clear_header("Content-Type")
        for name in {name for name, _ in headers.get_all()}:
            self.clear_header(name)
        for name, value in headers.get_all():
            self.add_header(name, value)
        if stream:
            await self.flush()

    async def send(self, data: bytes) -> None:
        self.write(data)
        await self.flush()

    # What ends a call early.

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._client_gone = True
        if self._exchange is not None:
            self._exchange.cancel()

    def interrupt(self) -> None:
        """End the call visibly, as the process has to go."""
        self._interrupted = True
        if self._exchange is not None:
            self._exchange.cancel()

    # Refusals.

    def _unavailable(self, error: QueueError) -> ProxyError:
        self.services.metrics.refused.labels("log_queue_unavailable").inc()
        return errors.log_queue_unavailable(str(error))

    async def _log_rejected(
        self, entries: CallEntries, result: CallResult, error: ProxyError
    ) -> ProxyError:
        """Make both rows of a call that the proxy refuses durable; returns what to answer."""
        result.outcome, result.status, result.error = "rejected", error.status, error.message
        self.services.metrics.refused.labels(error.code).inc()
        try:
            await self.services.log.append([entries.request(), entries.response(result)])
        except QueueError as unavailable:
            return self._unavailable(unavailable)
        return error

    async def _reject_too_large(self) -> None:
        error = errors.body_too_large(self.services.max_body_bytes)
        self._body.forget()
        self._refusal = error
        await self._refuse(await self._log_rejected(self._entries(), CallResult(), error))

    async def _refuse(self, error: ProxyError) -> None:
        """Answer ahead of the body; see request_body.py for what becomes of the body."""
        self._refusal = error
        body, small = self._body, self._body.is_small
        body.forget()
        if small:
            return  # `post` answers once the body was read
        self.set_header("Connection", "close")
        self.answer_error(error)
        if not body.is_coming:
            await self.finish()
            return
        self.set_header("Content-Length", str(sum(map(len, self._write_buffer))))
        await self.flush()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._stop_lingering)

    def _stop_lingering(self) -> None:
        if not self._finished:
            self.finish()
