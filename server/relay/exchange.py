"""One call to a provider: its bytes on to the client, its story into a `CallResult`.

Bytes pass as they arrive, each write awaited, so that a slow client slows the provider's socket
and not our memory. The end of the answer is held back: for a stream what tells of its
completion, for any other body the last piece. Whoever runs the exchange makes the closing entry
durable first and then writes `held`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httputil import HTTPHeaders, ResponseStartLine

from open_llm_proxy.server import errors
from open_llm_proxy.server.entries.call_entries import CallResult
from open_llm_proxy.server.errors import ProxyError
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.held_end import StreamGate
from open_llm_proxy.server.transcript.assembly import Transcript
from open_llm_proxy.server.transcript.reader import TranscriptReader, make_transcript_reader
from open_llm_proxy.server.upstream.client import FetchTimeout, StreamingRequest, UpstreamError

log = logging.getLogger(__name__)

# How long a provider may take to end a stream that its own last event has declared complete.
# The client waits for that event meanwhile, as it is held back.
END_PATIENCE_SECONDS = 0.5
ERROR_BODY_BYTES = 4096
_NO_CODING = ("", "identity")
# The codings that a transcript can be read through.
_READ_CODINGS = (*_NO_CODING, "gzip", "x-gzip", "deflate")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to reach a provider, of its silence, and for a whole call; 0 is no limit."""

    connect_seconds: float
    idle_seconds: float
    total_seconds: float


class Answer(Protocol):
    """The client's side of an exchange."""

    @property
    def begun(self) -> bool:
        """Whether the head was sent, so that no other answer can be given any more."""

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
        api_key: str,
        asked_stream: bool,
        hide_usage: bool,
        transcript_max_bytes: int,
        complete: Callable[[], Awaitable[object]],
    ) -> None:
        self._client = client
        self._answer = answer
        self._result = result
        self._provider = provider
        self._api_key = api_key
        self._asked_stream = asked_stream
        self._hide_usage = hide_usage
        self._transcript_max_bytes = transcript_max_bytes
        self._complete = complete
        self._reader: TranscriptReader | None = None
        self._gate: StreamGate | LastPiece = LastPiece()
        self._error_body = b""
        self._coding = ""
        self._is_stream = False
        self._is_sending = False
        self._is_given_up = False
        self._patience: asyncio.TimerHandle | None = None
        self._fetch: asyncio.Future[HTTPResponse] | None = None

    def held(self) -> bytes:
        """The end of the answer, to be written once the closing entry is durable."""
        return self._gate.held()

    async def run(self, url: str, headers: HTTPHeaders, body: bytes, timeouts: Timeouts) -> None:
        """Make the call; returns when the provider's answer is complete and passed on.

        Raises `ProxyError` for a fault of the provider, and whatever `answer` or `complete`
        raises. Cancelling it closes the provider's connection at once.
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
            await self._fetched(request)
        finally:
            if self._patience is not None:
                self._patience.cancel()
            self._take_transcript()
        self._judge()

    def _take_transcript(self) -> None:
        """Let the reader go with it, which holds the same texts in pieces."""
        if self._reader is not None:
            self._result.transcript = self._reader.finish()
            self._reader = None

    async def _fetched(self, request: StreamingRequest) -> None:
        self._fetch = asyncio.ensure_future(self._client.fetch(request, raise_error=False))
        try:
            await self._fetch
        except UpstreamError as error:
            if not self._is_complete:
                raise self._failure(error) from error
            # The answer was whole, and only its end in HTTP was not.
            log.info("after a complete stream: %s", error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_given_up or (task is not None and task.cancelling()):
                raise

    async def _on_response(self, start_line: ResponseStartLine, headers: HTTPHeaders) -> None:
        result = self._result
        result.status = start_line.code
        result.upstream_request_id = header_policy.upstream_request_id(headers)
        if start_line.code >= 400:
            result.upstream_headers = header_policy.logged_on_error(headers)
        content_type = headers.get("Content-Type", "")
        self._coding = headers.get("Content-Encoding", "").strip().lower()
        self._reader = make_transcript_reader(
            content_type, self._coding, self._transcript_max_bytes
        )
        self._is_stream = content_type.lower().startswith("text/event-stream")
        passed = header_policy.to_client(headers, start_line.code, self._api_key)
        if self._is_stream:
            hide_usage = self._hide_usage and not self._is_coded
            self._gate = StreamGate(hide_usage=hide_usage)
            passed["X-Accel-Buffering"] = "no"
            if "Cache-Control" not in passed:
                passed["Cache-Control"] = "no-cache"
            # With a length the last byte would be the end, and there would be nothing to hold.
            passed.pop("Content-Length", None)
        elif not self._is_coded:
            if start_line.code >= 400:
                self._gate = LastPiece(masked_key=self._api_key)
            elif self._asked_stream:
                self._gate = LastPiece(StreamGate())
        await self._answer.begin(start_line.code, start_line.reason, passed, self._is_stream)

    async def _on_data(self, chunk: bytes) -> None:
        reader, gate = self._reader, self._gate
        assert reader is not None, "a body comes after its head"
        reader.feed(chunk)
        if self._result.first_content_at is None and reader.first_content_seen:
            self._result.first_content_at = time.monotonic()
        if not self._is_success and len(self._error_body) < ERROR_BODY_BYTES:
            self._error_body += chunk[:ERROR_BODY_BYTES]
        # Where no line tells of the completion in time, the end of its event does.
        is_complete = self._is_complete and (reader.saw_last_event or self._is_coded)
        passed = gate.pass_on(chunk, is_complete=is_complete)
        if gate.is_full:
            self._result.transcript = reader.finish()
            self._judge()
            await self._complete()
            passed += gate.held()
        if passed:
            self._is_sending = True
            await self._answer.send(passed)
            self._is_sending = False
        if self._is_complete and self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(END_PATIENCE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """The stream said that it is complete, and the provider does not end it."""
        if self._fetch is not None and not self._fetch.done():
            self._is_given_up = True
            self._fetch.cancel()

    @property
    def _is_complete(self) -> bool:
        """Whether a stream has told of its completion, so that no fault can undo it."""
        return self._is_stream and self._reader is not None and self._reader.saw_done

    @property
    def _is_coded(self) -> bool:
        return self._coding not in _NO_CODING

    @property
    def _is_success(self) -> bool:
        return self._result.status is not None and 200 <= self._result.status < 300

    def _judge(self) -> None:
        """Say how a complete answer is to be called in the log."""
        result, transcript = self._result, self._result.transcript
        result.outcome = "ok"
        if not self._is_success:
            result.outcome = "upstream_error"
            if transcript is not None and transcript.error and not self._is_coded:
                # More than its message: codes, and whose limit it was.
                result.error = self._error_body[:ERROR_BODY_BYTES].decode("utf-8", "replace")
        elif transcript is not None and transcript.error is not None:
            result.outcome = "upstream_error"
        elif self._is_stream and not self._is_finished(transcript):
            result.outcome = "upstream_error"
            result.error = "the stream ended without a finish_reason and without [DONE]"

    def _is_finished(self, transcript: Transcript | None) -> bool:
        """Whether a stream reached its end, as far as its content coding lets us see."""
        if transcript is None or self._coding not in _READ_CODINGS:
            return True
        if isinstance(self._gate, StreamGate) and self._gate.saw_completion:
            return True
        return transcript.saw_done or transcript.finish_reason is not None

    def _failure(self, error: UpstreamError) -> ProxyError:
        """What a fault of the provider means for the log and for the client."""
        result, provider, reason = self._result, self._provider, str(error)
        if isinstance(error, FetchTimeout):
            if self._is_sending:
                reason += " while the client was slow to take it"
            result.outcome, result.deadline = "upstream_timeout", error.deadline
            failure = errors.upstream_timeout(provider, reason)
        elif self._reader is not None:
            result.outcome = "upstream_error"
            failure = errors.upstream_broken(provider, reason)
        else:
            result.outcome = "upstream_unreachable"
            failure = errors.upstream_unreachable(provider, reason)
        result.error = reason
        return failure


class LastPiece:
    """Holds back the newest piece of a body that is no stream, so that its end comes last.

    With `gate`, for a body that may be a stream and does not say so, the end of that is held as
    well. An error's body may quote the key that it refuses: `masked_key` is masked in what
    passes, at the same length, also where it is cut in two.
    """

    def __init__(self, gate: StreamGate | None = None, *, masked_key: str = "") -> None:
        masks = len(masked_key) >= header_policy.MASKED_KEY_CHARACTERS
        self._key = masked_key.encode() if masks else b""
        self._gate = gate
        self._piece = b""

    @property
    def is_full(self) -> bool:
        return self._gate is not None and self._gate.is_full

    def pass_on(self, chunk: bytes, *, is_complete: bool = False) -> bytes:
        """Take the next piece and return what may be written to the client."""
        if self._gate is not None:
            chunk = self._gate.pass_on(chunk, is_complete=is_complete)
        if not chunk:
            return b""
        data = self._piece + chunk
        if self._key:
            data = data.replace(self._key, b"*" * len(self._key))
        passed = max(0, len(data) - max(len(chunk), len(self._key) - 1))
        self._piece = data[passed:]
        return data[:passed]

    def held(self) -> bytes:
        """The end of the body."""
        rest, self._piece = self._piece, b""
        return rest if self._gate is None else rest + self._gate.held()
