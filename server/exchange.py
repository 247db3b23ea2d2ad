"""One call to a provider: its bytes on to the client, its story into a `CallResult`.

Bytes pass as they arrive, each write awaited, so that a slow client slows the provider's socket
and not our memory. The end of the answer is held back: for a stream what tells of its
completion, for any other body the last piece. Whoever runs the exchange makes the closing entry
durable first and then writes `held`.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tornado.httpclient import AsyncHTTPClient
from tornado.httputil import HTTPHeaders, ResponseStartLine

from open_llm_proxy.server import header_policy
from open_llm_proxy.server.call_entries import CallResult
from open_llm_proxy.server.errors import ProxyError, upstream_timeout, upstream_unreachable
from open_llm_proxy.server.sse import StreamGate
from open_llm_proxy.server.transcript import TranscriptReader, make_transcript_reader
from open_llm_proxy.server.upstream import (
    FetchTimeout,
    StreamingRequest,
    UpstreamError,
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to reach a provider, of its silence, and for a whole call; 0 is no limit."""

    connect_seconds: float
    idle_seconds: float
    total_seconds: float


class Answer(Protocol):
    """The client's side of an exchange."""

    async def begin(self, status: int, reason: str, headers: HTTPHeaders, stream: bool) -> None:
        """Set the head of the answer; for a stream, send it."""

    async def send(self, data: bytes) -> None:
        """Send bytes and wait until the client's socket has taken them."""


class Exchange:
    """Runs once. `result` is filled in as far as the exchange got, whatever ends it.

    `complete` makes the closing entry durable ahead of the end, for a provider that goes on
    sending after its stream was complete.
    """

    def __init__(
        self,
        client: AsyncHTTPClient,
        answer: Answer,
        result: CallResult,
        *,
        provider: str,
        hide_usage: bool,
        transcript_max_bytes: int,
        complete: Callable[[], Awaitable[object]],
    ) -> None:
        self._client = client
        self._answer = answer
        self._result = result
        self._provider = provider
        self._hide_usage = hide_usage
        self._transcript_max_bytes = transcript_max_bytes
        self._complete = complete
        self._reader: TranscriptReader | None = None
        self._gate: StreamGate | _LastPiece = _LastPiece()
        self._is_stream = False
        self._is_encoded = False

    def held(self) -> bytes:
        """The end of the answer, to be written once the closing entry is durable."""
        return self._gate.held()

    async def run(self, url: str, headers: HTTPHeaders, body: bytes, timeouts: Timeouts) -> None:
        """Make the call; returns when the provider's answer is complete and passed on.

        Raises `ProxyError` where there is nothing of the provider's to pass on, `BrokenAnswer`
        where its answer broke off, and whatever `answer` raises.
        """
        request = StreamingRequest(
            url,
            method="POST",
            headers=headers,
            body=body,
            on_response=self._on_response,
            streaming_callback=self._on_data,
            connect_timeout=timeouts.connect_seconds,
            idle_timeout=timeouts.idle_seconds or None,
            request_timeout=timeouts.total_seconds,
        )
        try:
            await self._client.fetch(request, raise_error=False)
        except UpstreamError as error:
            self._fail(error)
        finally:
            if self._reader is not None:
                self._result.transcript = self._reader.finish()
        self._judge()

    async def _on_response(self, start_line: ResponseStartLine, headers: HTTPHeaders) -> None:
        result = self._result
        result.status = start_line.code
        result.upstream_request_id = header_policy.upstream_request_id(headers)
        if start_line.code >= 400:
            result.upstream_headers = header_policy.logged_on_error(headers)
        content_type = headers.get("Content-Type", "")
        encoding = headers.get("Content-Encoding", "")
        self._reader = make_transcript_reader(content_type, encoding, self._transcript_max_bytes)
        self._is_stream = content_type.lower().startswith("text/event-stream")
        self._is_encoded = encoding.strip().lower() not in ("", "identity")
        passed = header_policy.to_client(headers)
        if self._is_stream:
            hide_usage = self._hide_usage and not self._is_encoded
            self._gate = StreamGate(hide_usage=hide_usage)
            passed["X-Accel-Buffering"] = "no"
            if "Cache-Control" not in passed:
                passed["Cache-Control"] = "no-cache"
            if hide_usage:
                passed.pop("Content-Length", None)
        await self._answer.begin(start_line.code, start_line.reason, passed, self._is_stream)

    async def _on_data(self, chunk: bytes) -> None:
        reader, gate = self._reader, self._gate
        assert reader is not None, "a body comes after its head"
        reader.feed(chunk)
        if self._result.first_content_at is None and reader.first_content_seen:
            self._result.first_content_at = time.monotonic()
        if self._is_encoded and reader.saw_done and isinstance(gate, StreamGate):
            gate.keep_all()
        passed = gate.pass_on(chunk)
        if gate.is_full:
            self._result.transcript = reader.finish()
            self._judge()
            await self._complete()
            passed += gate.held()
        if passed:
            await self._answer.send(passed)

    def _judge(self) -> None:
        """Say how a complete answer is to be called in the log."""
        result, transcript = self._result, self._result.transcript
        result.outcome = "ok"
        if result.status is None or not 200 <= result.status < 300:
            result.outcome = "upstream_error"
        elif self._is_stream and transcript is not None:
            if transcript.error is not None:
                result.outcome = "upstream_error"
            elif not (transcript.saw_done or transcript.finish_reason):
                result.outcome = "upstream_error"
                result.error = "the stream ended without a finish_reason and without [DONE]"

    def _fail(self, error: UpstreamError) -> None:
        """Turn a fault of the provider into the result and the exception that tell of it."""
        result = self._result
        result.error = str(error)
        if isinstance(error, FetchTimeout):
            result.outcome = "upstream_timeout"
            result.deadline = error.deadline
        elif self._reader is not None:
            result.outcome = "upstream_error"
        else:
            result.outcome = "upstream_unreachable"
        if self._reader is not None:
            raise BrokenAnswer(self._provider, str(error)) from error
        failure: ProxyError
        if isinstance(error, FetchTimeout):
            failure = upstream_timeout(self._provider, str(error))
        else:
            failure = upstream_unreachable(self._provider, str(error))
        result.status = failure.status
        raise failure from error


class BrokenAnswer(Exception):
    """The answer of `provider` broke off after its head; the message says how."""

    def __init__(self, provider: str, message: str) -> None:
        super().__init__(message)
        self.provider = provider


class _LastPiece:
    """Holds back the newest piece of a body that is no stream, so that its end comes last."""

    is_full = False

    def __init__(self) -> None:
        self._piece = b""

    def pass_on(self, chunk: bytes) -> bytes:
        earlier, self._piece = self._piece, chunk
        return earlier

    def held(self) -> bytes:
        return self.pass_on(b"")
