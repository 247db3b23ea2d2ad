"""One call, from its opening entry to the end of the client's answer; read `run` top to bottom.

    opening entry durable -> provider called -> answer passed on, but for its end
    -> closing entry durable -> the client gets the end

The opening entry is awaited before anything is sent. An opened call is closed exactly once, in a
``finally`` that begins before the first await, so neither a client that leaves, nor a provider
that breaks, nor a shutdown can skip the closing entry.
"""

import asyncio
import logging
from typing import Literal

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ProviderBody
from open_llm_proxy.server.entries.call_entries import CallEntries
from open_llm_proxy.server.entries.log import OpenedCall
from open_llm_proxy.server.http1.connection import ClientGone
from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.long_work import LONG_BYTES
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.client_response import ClientResponse
from open_llm_proxy.server.relay.masked_answer import MaskedAnswer
from open_llm_proxy.server.relay.provider_answer import ProviderAnswer
from open_llm_proxy.server.routing import Route
from open_llm_proxy.server.services import Services
from open_llm_proxy.server.transcript.judgement import kind_for
from open_llm_proxy.server.upstream.client import (
    FetchTimeout,
    StreamingRequest,
    UpstreamError,
    UpstreamResponse,
)

log = logging.getLogger(__name__)

# How long a provider may take to end a stream that its own last event has declared complete.
# The client waits for that event meanwhile, as it is held back.
END_PATIENCE_SECONDS = 0.5


class RelayedCall:
    """One accepted call; `run` once. `client_left` and `interrupt` end it early, at any time."""

    def __init__(
        self,
        services: Services,
        request: Request,
        path: str,
        entries: CallEntries,
        client: ClientResponse,
        route: Route,
        body: ProviderBody,
    ) -> None:
        provider = route.provider
        assert provider.api_key is not None, "checked when the call was accepted"
        self._services = services
        self._request = request
        self._path = path
        self._entries = entries
        self._client = client
        self._provider = provider
        self._model_label = route.label
        self._api_key = provider.api_key
        self._body = body
        self._result = CallResult()
        self._answer: ProviderAnswer | None = None
        self._closed: asyncio.Future[tuple[bytes, ...]] | None = None
        self._task: asyncio.Task[object] | None = None  # while the call can be ended early
        self._stopped: Literal["client left", "shutdown"] | None = None

    async def run(self) -> None:
        """Make the call and answer the client.

        Returns when the closing entry is durable and the answer complete or visibly broken off.
        """
        try:
            opened = self._entries.open(self._services.log)
        except QueueError as error:
            await self._fail(proxy_errors.log_queue_unavailable(str(error)))
            return
        failure: ProxyError | None = None
        try:
            await opened.stored
            self._result.forwarded()
            failure = await self._call_provider(opened)
        except QueueError as error:
            failure = proxy_errors.log_queue_unavailable(str(error))
            if self._result.forwarded_at is None:
                # The opening may be stored later all the same; then this is how the call ended.
                self._ended_with(failure, "rejected", str(failure))
        finally:
            closed = self._close(opened)
        try:
            if await closed:
                self._services.metrics.count_call(
                    self._provider.name, self._model_label, self._path, self._result
                )
        except QueueError as error:
            failure = proxy_errors.log_queue_unavailable(str(error))
        if failure is not None:
            await self._fail(failure)
        else:
            await self._client.end(self._answer.held() if self._answer is not None else b"")

    def client_left(self) -> None:
        """The client closed its connection: close the provider's, and say so in the entry."""
        self._stop("client left")

    def interrupt(self) -> None:
        """The server shuts down: end the call visibly."""
        self._stop("shutdown")

    def _stop(self, reason: Literal["client left", "shutdown"]) -> None:
        if self._stopped is None:
            self._stopped = reason
            if self._task is not None:
                self._task.cancel()

    async def _call_provider(self, opened: OpenedCall) -> ProxyError | None:
        """Call the provider and pass its answer on, but for the end; `_result` tells of it.

        Returns the error that the client gets instead of the answer, or of the rest of it.
        """
        if self._stopped is not None:
            return self._ended_early()
        self._task = self._client.task
        try:
            async with self._services.client.stream(self._provider_request()) as upstream:
                await self._pass_on(upstream, opened)
        except UpstreamError as error:
            if self._answer is None or not self._answer.is_complete:
                return self._provider_failed(error)
            # The answer was whole, and only its end in HTTP was not.
            log.info("Provider %s, after a complete stream: %s", self._provider.name, error)
        except ProxyError as error:
            return self._ended_with(error, "upstream_error", str(error))
        except ClientGone:
            self._result.ended("client_disconnected")
            return None
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            return self._ended_early()
        except QueueError:
            raise
        except Exception:
            log.exception("Call %s failed by a defect of the proxy", self._client.request_id)
            failure = proxy_errors.internal_error()
            return self._ended_with(failure, "rejected", str(failure))
        finally:
            if self._stopped is not None and self._task is not None:
                self._task.uncancel()
            self._task = None
            self._result.provider_ended()
            self._take_transcript()
        self._judge()
        return None

    def _provider_request(self) -> StreamingRequest:
        provider = self._provider
        url = provider.url(self._path)
        if self._request.query:
            url += "?" + self._request.query
        return StreamingRequest(
            url,
            method="POST",
            headers=header_policy.to_provider(
                self._request.headers,
                self._api_key,
                provider.config,
                self._services.metrics.count_dropped_header,
            ),
            body=self._body.body,
            timeouts=self._services.timeouts,
            attempts=self._result.attempts,
        )

    async def _pass_on(self, upstream: UpstreamResponse, opened: OpenedCall) -> None:
        """Bytes go on as they arrive, each write awaited: a slow client slows the provider."""
        result, client = self._result, self._client
        source = MaskedAnswer(upstream, self._api_key)
        answer = self._answer = self._begin_answer(upstream, source)
        if answer.is_redirect:
            raise proxy_errors.upstream_redirect(
                self._provider.name, upstream.status, self._provider.config.endpoint
            )
        has_begun = answer.is_stream is True
        if has_begun:
            self._begin(source, answer)
        while data := await source.read():
            if answer.takes_long(data):
                for _ in answer.read_ahead(data):
                    await asyncio.sleep(0)
            passed = answer.feed(data)
            if not has_begun and answer.is_stream is not None:
                has_begun = True
                self._begin(source, answer)
            result.bytes_came(len(data))
            if answer.content_seen:
                result.content_came()
            if answer.is_full:
                # The stream goes on behind its own end: close the call now, then pass the rest.
                self._take_transcript()
                self._judge()
                await asyncio.shield(self._close(opened))
                passed += answer.held()
            if passed:
                await client.send(passed)
            if answer.is_complete:
                upstream.end_within(END_PATIENCE_SECONDS)
        if not has_begun:
            self._begin(source, answer)

    def _begin(self, source: MaskedAnswer, answer: ProviderAnswer) -> None:
        """Begin the client's answer, once it is known whether it is a stream."""
        self._client.begin(
            source.status,
            source.reason,
            answer.client_headers(),
            is_stream=answer.is_stream is True,
        )

    def _begin_answer(self, upstream: UpstreamResponse, source: MaskedAnswer) -> ProviderAnswer:
        headers, status = source.headers, source.status
        self._result.answered(
            status,
            header_policy.upstream_request_id(headers),
            header_policy.logged_on_error(headers) if status >= 300 else None,
        )
        return ProviderAnswer(
            status,
            headers,
            kind=kind_for(self._path),
            hide_usage=self._body.asked_for_usage,
            transcript_max_bytes=self._services.transcript_max_bytes,
        )

    def _take_transcript(self) -> None:
        if self._answer is not None:
            self._result.transcript = self._answer.finish()

    def _judge(self) -> None:
        """The answer is whole: choose its outcome from what is in it."""
        if self._answer is not None and self._result.transcript is not None:
            self._result.ended(*self._answer.outcome(self._result.transcript))

    def _provider_failed(self, error: UpstreamError) -> ProxyError:
        name, reason = self._provider.name, str(error)
        if isinstance(error, FetchTimeout):
            if self._client.is_sending:
                reason += " while the client was slow to take it"
            failure = proxy_errors.upstream_timeout(name, reason)
            return self._ended_with(failure, "upstream_timeout", reason, error.deadline)
        if self._answer is not None:
            failure = proxy_errors.upstream_broken(name, reason)
            return self._ended_with(failure, "upstream_error", reason)
        failure = proxy_errors.upstream_unreachable(name, reason)
        return self._ended_with(failure, "upstream_unreachable", reason)

    def _ended_early(self) -> ProxyError | None:
        if self._stopped == "client left":
            self._result.ended("client_disconnected")
            return None
        reason = "the server was shut down before the answer was complete"
        return self._ended_with(proxy_errors.draining(), "interrupted", reason)

    def _ended_with(
        self, failure: ProxyError, outcome: Outcome, error: str, deadline: str | None = None
    ) -> ProxyError:
        """The status in the log is the one that the client sees."""
        status = None if self._client.begun else failure.status
        self._result.ended(outcome, error, status=status, deadline=deadline)
        return failure

    def _close(self, opened: OpenedCall) -> "asyncio.Future[tuple[bytes, ...]]":
        """Hand the closing entry over, once; the future resolves when it is durable."""
        if self._closed is None:
            transcript = self._result.transcript
            if transcript is not None and transcript.characters >= LONG_BYTES:
                self._closed = asyncio.ensure_future(self._close_long(opened))
                return self._closed
            try:
                self._closed = opened.close(self._closing_entry())
                self._result.forget_texts()
            except QueueError as error:
                self._closed = asyncio.get_running_loop().create_future()
                self._closed.set_exception(error)
        return self._closed

    async def _close_long(self, opened: OpenedCall) -> tuple[bytes, ...]:
        entry = await self._services.long_work.run(LONG_BYTES, self._closing_entry)
        self._result.forget_texts()
        return await opened.close(entry)

    def _closing_entry(self) -> Entry:
        try:
            return self._entries.response(self._result)
        except Exception:
            # A defect of ours must not cost the entry: what it says without texts is still true.
            log.exception(
                "The answer of call %s could not be logged; its entry has no texts",
                self._client.request_id,
            )
            bare = self._result.without_texts(
                "the answer could not be logged; see the proxy's stderr"
            )
            return self._entries.response(bare)

    async def _fail(self, failure: ProxyError) -> None:
        if failure.code == "log_queue_unavailable":
            self._services.metrics.count_refusal(failure.code)
        await self._client.fail(failure)
