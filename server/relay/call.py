"""The life of one call, from its request entry to its closing entry.

    request entry durable -> provider called -> answer passed on, but for its end
    -> closing entry durable -> `run` returns, and the client may have the end

An opened call is closed exactly once, in a ``finally`` that begins before the first await, so
neither a client that leaves, nor a provider that breaks, nor a shutdown can skip the entry.
"""

import asyncio
import dataclasses
import logging

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError

from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import errors
from open_llm_proxy.server.client_request import ProviderBody
from open_llm_proxy.server.entries.call_entries import CallEntries, CallResult
from open_llm_proxy.server.entries.log import OpenedCall
from open_llm_proxy.server.errors import ProxyError
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.exchange import Answer, Exchange
from open_llm_proxy.server.routing import Provider
from open_llm_proxy.server.services import Services

log = logging.getLogger(__name__)


class RelayedCall:
    """One accepted call; `run` once. `client_left` and `interrupt` end it early, at any time."""

    def __init__(
        self,
        services: Services,
        request_id: str,
        request: HTTPServerRequest,
        entries: CallEntries,
        result: CallResult,
        answer: Answer,
        provider: Provider,
        body: ProviderBody,
    ) -> None:
        assert provider.api_key is not None, "checked when the call was accepted"
        self._services = services
        self._request_id = request_id
        self._entries = entries
        self._result = result
        self._answer = answer
        self._provider = provider
        self._body = body.body
        self._path = request.path
        self._headers = header_policy.to_provider(
            request.headers, provider.api_key, provider.config.extra_headers
        )
        self._exchange = Exchange(
            services.client,
            answer,
            result,
            provider=provider.name,
            api_key=provider.api_key,
            asked_stream=body.stream,
            hide_usage=body.asked_for_usage,
            transcript_max_bytes=services.transcript_max_bytes,
            complete=self._complete,
        )
        self._task: asyncio.Task[None] | None = None
        self._opened: OpenedCall | None = None
        self._closed: asyncio.Future[tuple[bytes, ...]] | None = None
        self._client_left = False
        self._interrupted = False

    def held(self) -> bytes:
        """The end of a complete answer."""
        return self._exchange.held()

    async def run(self) -> ProxyError | None:
        """Make the call; returns when its closing entry is durable.

        None: the provider's answer is complete but for `held`, or the client has left. An error
        is to be told in place of the answer or, where `Answer.begun`, of the rest of it.
        """
        try:
            opened = self._entries.open(self._services.log)
        except QueueError as error:
            return errors.log_queue_unavailable(str(error))
        self._opened = opened
        failure: ProxyError | None = None
        try:
            failure = await self._exchanged(opened)
        finally:
            closed = self._close()
        try:
            if await closed:
                self._services.metrics.count_call(self._provider.name, self._path, self._result)
        except QueueError as error:
            failure = errors.log_queue_unavailable(str(error))
        return failure

    def client_left(self) -> None:
        """The client closed its connection: close the provider's, and say so in the entry."""
        self._client_left = True
        if self._task is not None:
            self._task.cancel()

    def interrupt(self) -> None:
        """The process has to go: end the call visibly."""
        self._interrupted = True
        if self._task is not None:
            self._task.cancel()

    async def _exchanged(self, opened: OpenedCall) -> ProxyError | None:
        """Make the call in a task of its own, which can be cancelled; `result` tells of it."""
        result = self._result
        self._task = asyncio.ensure_future(self._stored_and_exchanged(opened))
        if self._client_left:
            self._task.cancel()
        try:
            await self._task
        except QueueError as error:
            return errors.log_queue_unavailable(str(error))
        except ProxyError as failure:
            return self._told(failure)
        except StreamClosedError:
            result.outcome = "client_disconnected"
        except asyncio.CancelledError:
            if self._client_left:
                result.outcome = "client_disconnected"
            elif self._interrupted:
                result.outcome = "interrupted"
                result.error = "the server was shut down before the answer was complete"
                return self._told(errors.draining())
            else:
                raise
        except Exception:
            log.exception("call %s failed inside the proxy", self._request_id)
            result.outcome = "rejected"
            result.error = "the proxy failed on this call; see its stderr"
            return self._told(errors.internal_error())
        else:
            if self._client_left and result.outcome == "ok":
                result.outcome = "client_disconnected"
        return None

    async def _stored_and_exchanged(self, opened: OpenedCall) -> None:
        # Shielded: who cancels the call must not cancel the queue's own future.
        await asyncio.shield(opened.stored)
        url = self._provider.url(self._path)
        await self._exchange.run(url, self._headers, self._body, self._services.timeouts)

    def _told(self, failure: ProxyError) -> ProxyError:
        """The status in the log is the one that the client sees."""
        if not self._answer.begun:
            self._result.status = failure.status
        return failure

    async def _complete(self) -> None:
        await asyncio.shield(self._close())

    def _close(self) -> "asyncio.Future[tuple[bytes, ...]]":
        """Hand the closing entry over, once; the future resolves when it is durable."""
        if self._closed is None:
            assert self._opened is not None, "only an opened call is closed"
            try:
                self._closed = self._opened.close(self._closing_entry())
                self._result.transcript = None  # The entry has it, and may wait for the disk.
            except QueueError as error:
                self._closed = asyncio.get_running_loop().create_future()
                self._closed.set_exception(error)
        return self._closed

    def _closing_entry(self) -> Entry:
        try:
            return self._entries.response(self._result)
        except Exception:
            # A defect of ours must not cost the entry: what it says without texts is still true.
            log.exception("the answer of call %s cannot be logged", self._request_id)
            bare = dataclasses.replace(
                self._result,
                error="the answer could not be logged; see the proxy's stderr",
                upstream_headers=None,
                upstream_request_id=None,
                transcript=None,
            )
            return self._entries.response(bare)
