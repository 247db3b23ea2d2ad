"""The rows of one call, built from what is known of it at each moment.

A call's identity is encoded once: the request row, the beginning of the row that says
`interrupted` and the response row all have the same bytes. Everything is redacted and cut here,
before the first write, and nothing in here can fail for what a client or a provider sent.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from open_llm_proxy.archive.entry import (
    INTERRUPTED_TAIL,
    IdentityFields,
    LoggedToolCall,
    ResponseFields,
    TextFields,
    head_body,
    row_start,
)
from open_llm_proxy.queue.entry import Entry, LogFormat
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries.capture import Capture, logged_text
from open_llm_proxy.server.entries.line import encoded, encoded_within_line, row_of, writable
from open_llm_proxy.server.entries.log import EntryLog, OpenedCall
from open_llm_proxy.server.entries.question import ReadQuestion, read_question, unread_question
from open_llm_proxy.server.header_text import header_text
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.redaction.redactor import Redactor, TextRedactor
from open_llm_proxy.server.transcript.transcript import Transcript

log = logging.getLogger(__name__)

RETRIES_MAX_DIGITS = 9
PREVIEW_CHARACTERS = 200
ERROR_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a row: stands in every one, so that results can be traced to a deployment."""

    proxy_version: str
    config_sha256: str
    instance: str

    def fields(self) -> IdentityFields:
        return IdentityFields(
            proxy_version=self.proxy_version,
            config_sha256=self.config_sha256,
            instance=self.instance,
        )

    def log_format(self) -> LogFormat:
        """What the queue fixes at birth: heads, ends of interrupted calls, and damaged rows."""
        damaged = ResponseFields(has_content=False)
        return LogFormat(
            head=head_body(),
            interrupted_tail=INTERRUPTED_TAIL,
            damaged_body=row_of(0, "damaged", encoded(self.fields()), encoded(damaged)).body,
        )


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of day, in ms since the epoch, and a monotonic one, in seconds."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic: Callable[[], float] = time.monotonic


SYSTEM_CLOCK = Clock()
_NO_QUESTION = ReadQuestion()
_NO_TRANSCRIPT = Transcript()


class CallEntries:
    """Makes the entries of one call. `set_request` and `set_route` tell it more of the call."""

    def __init__(
        self,
        provenance: Provenance,
        redactor: Redactor,
        headers: Headers | Mapping[str, str],
        *,
        request_id: str,
        key_name: str,
        endpoint: str,
        capture: Capture | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._provenance = provenance
        self._redactor = redactor
        self._capture = capture or Capture()
        self._request_id = request_id
        self._key_name = key_name
        self._endpoint = endpoint
        self._session_id = self._label(header_text(headers.get("X-Session-Id")))
        self._origin = self._label(header_text(headers.get("Origin") or headers.get("Referer")))
        self._client = self._label(header_text(headers.get("X-Client")))
        self._retry_count = _retry_count(headers.get("X-Stainless-Retry-Count"))
        self._provider: str | None = None
        self._model: str | None = None
        self._stream: bool | None = None
        self._identity = b""  # encoded once for all rows, as soon as one is made
        self._question = _NO_QUESTION
        self._unread_body = b""
        self._request_bytes: int | None = None
        self._enable_thinking: bool | None = None
        self._thinking_applied: bool | None = None
        self._warning: str | None = None

    def set_unread(self, body: bytes) -> None:
        """The body came; its beginning is logged if nothing better becomes known of it."""
        self._unread_body = body
        self._request_bytes = len(body)

    def set_request(self, request: ClientRequest) -> None:
        """The body could be read: the rows tell its model, its session and its question."""
        self._model = self._label(request.model)
        self._stream = request.stream
        if self._session_id is None:
            session_id = request.fields.get("session_id")
            named = session_id if isinstance(session_id, str) else None
            self._session_id = self._label(named) or self._label(request.user)
        self._enable_thinking = request.enable_thinking
        self._unread_body = b""
        try:
            redactor = self._redactor.for_row()
            self._question = read_question(
                request.fields, self._endpoint, redactor, self._capture, self._model
            )
        except Exception:
            # A defect of ours must not cost the call or its entry.
            log.exception("the question of call %s cannot be logged", self._request_id)
            self._question = _NO_QUESTION

    def set_route(
        self, provider: str, thinking_applied: bool | None, warning: str | None = None
    ) -> None:
        """The call has a provider; whether it took the thinking flag is known.

        `warning` is what the client is told of changes in `X-Proxy-Warning`.
        """
        self._provider = provider
        self._thinking_applied = thinking_applied
        self._warning = warning

    def open(self, entry_log: EntryLog) -> OpenedCall:
        """Hand the opening entries over to the log; raises `QueueError` as it does."""
        now_ms = self._clock.wall_ms()
        texts = self._missing_texts(now_ms)
        opened = entry_log.open([*texts.values(), self._request(now_ms)], self._interrupted(now_ms))
        self._capture.texts.handed_over(texts, opened.stored, entry_log)
        return opened

    def reject(
        self, entry_log: EntryLog, result: CallResult
    ) -> "asyncio.Future[tuple[bytes, ...]]":
        """Hand over both rows of a call that the proxy itself refuses; raises `QueueError`."""
        now_ms = self._clock.wall_ms()
        texts = self._missing_texts(now_ms)
        stored = entry_log.append([*texts.values(), self._request(now_ms), self.response(result)])
        self._capture.texts.handed_over(texts, stored, entry_log)
        return stored

    def response(self, result: CallResult) -> Entry:
        """The closing entry: how the call went, and what of the answer arrived."""
        now_ms, now = self._clock.wall_ms(), self._clock.monotonic()
        transcript, attempts = result.transcript or _NO_TRANSCRIPT, result.attempts
        ttft = result.first_content_at
        is_rejected = result.outcome == "rejected"
        fields = ResponseFields(
            outcome=result.outcome,
            deadline=result.deadline,
            status=result.status,
            latency_ms=round((now - result.started) * 1000),
            ttft_ms=None if ttft is None else round((ttft - result.started) * 1000),
            response_bytes=result.response_bytes,
            has_content=transcript.has_content,
            has_tool_calls=transcript.has_tool_calls,
            has_reasoning_content=transcript.has_reasoning_content,
            finish_reason=self._label(transcript.finish_reason),
            prompt_tokens=transcript.prompt_tokens,
            completion_tokens=transcript.completion_tokens,
            total_tokens=transcript.total_tokens,
            cached_tokens=transcript.cached_tokens,
            reasoning_tokens=transcript.reasoning_tokens,
            cost_usd=transcript.cost_usd,
            upstream_request_id=self._label(result.upstream_request_id),
            response_id=self._label(transcript.response_id),
            upstream_connects=None if is_rejected else attempts.connects,
            upstream_attempts=None if is_rejected else attempts.sends,
            proxy_warning=self._warning,
        )
        if self._capture.keeps_text:
            fields = self._with_texts(fields, result, transcript)
        part = encoded_within_line(self._capture.kept(fields))
        return row_of(now_ms, "response", self._identity_bytes(), part)

    def _with_texts(
        self, fields: ResponseFields, result: CallResult, transcript: Transcript
    ) -> ResponseFields:
        """The fields with what the model said, and what went wrong."""
        caps, redactor = self._capture.caps, self._redactor.for_row()
        error, told = result.error or transcript.error, transcript.error
        if told and error not in (told, transcript.evidence.error_body):
            error = f"{told}\n{error}"  # its own reason, before the connection broke
        content = _text(transcript.content, redactor, caps.content)
        headers = result.upstream_headers
        return msgspec.structs.replace(
            fields,
            content=content,
            content_preview=None if content is None else content[:PREVIEW_CHARACTERS],
            reasoning_content=_text(transcript.reasoning_content, redactor, caps.reasoning),
            tool_calls=self._tool_calls(transcript, redactor),
            usage_json=_usage(transcript.usage_json, redactor),
            error=_text(error, redactor, ERROR_MAX_CHARACTERS),
            upstream_headers_json=_text(encode_json(dict(headers)), redactor) if headers else None,
        )

    def _tool_calls(
        self, transcript: Transcript, redactor: TextRedactor
    ) -> list[LoggedToolCall] | None:
        if not transcript.tool_calls:
            return None
        return [
            LoggedToolCall(
                self._label(call.id), self._label(call.name), _text(call.arguments, redactor)
            )
            for call in transcript.tool_calls
        ]

    def _request(self, now_ms: int) -> Entry:
        question = self._question
        if self._unread_body:
            redactor = self._redactor.for_row()
            question = unread_question(self._unread_body, redactor, self._capture)
        fields = msgspec.structs.replace(
            question.fields,
            request_bytes=self._request_bytes,
            enable_thinking=self._enable_thinking,
            thinking_applied=self._thinking_applied,
        )
        part = encoded_within_line(self._capture.kept(fields))
        return row_of(now_ms, "request", self._identity_bytes(), part)

    def _interrupted(self, now_ms: int) -> bytes:
        """The beginning of the row that closes the call if this process dies."""
        return b"%b,%b" % (row_start(now_ms, "response"), self._identity_bytes())

    def _identity_bytes(self) -> bytes:
        """The call's identity, as it stands in all of its rows."""
        if not self._identity:
            provenance = self._provenance
            identity = IdentityFields(
                request_id=self._request_id,
                session_id=self._session_id,
                origin=self._origin,
                client=self._client,
                key_name=self._key_name,
                provider=self._provider,
                model=self._model,
                endpoint=self._endpoint,
                stream=self._stream,
                retry_count=self._retry_count,
                proxy_version=provenance.proxy_version,
                config_sha256=provenance.config_sha256,
                instance=provenance.instance,
            )
            self._identity = encoded(self._capture.kept(identity))
        return self._identity

    def _missing_texts(self, now_ms: int) -> dict[str, Entry]:
        """The rows of the texts that the request row needs ahead of it, by hash."""
        texts = self._question.texts
        missing = self._capture.texts.missing(texts, now_ms) if texts else []
        return {digest: self._text_row(digest, texts[digest], now_ms) for digest in missing}

    def _text_row(self, digest: str, text: str, now_ms: int) -> Entry:
        return row_of(
            now_ms,
            "text",
            encoded(self._provenance.fields()),
            encoded(TextFields(text_sha256=digest)),
            encoded(ResponseFields(content=writable(text))),
        )

    def _label(self, value: str | None) -> str | None:
        return self._capture.labels.logged(value, self._redactor)


def _text(text: str | None, redactor: TextRedactor, max_characters: int = 0) -> str | None:
    return None if text is None else logged_text(text, redactor, max_characters)


def _usage(usage_json: str | None, redactor: TextRedactor) -> str | None:
    """Usage holds numbers as a rule, and then there is nothing to look for."""
    is_numbers = usage_json is not None and ':"' not in usage_json and "[" not in usage_json
    return usage_json if is_numbers else _text(usage_json, redactor)


def _retry_count(value: str | None) -> int | None:
    if not value:
        return None
    is_count = value.isascii() and value.isdigit() and len(value) <= RETRIES_MAX_DIGITS
    return int(value) if is_count else None
