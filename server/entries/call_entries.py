"""The rows of one call, built from what is known of it at each moment.

Identity is read once from the request's headers; the request row, the row that says
`interrupted` and the response row all repeat it. Everything is redacted and cut here, before the
first write, and nothing in here can fail for what a client or a provider sent.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from open_llm_proxy.archive.entry import (
    LogEntry,
    LoggedToolCall,
    RowType,
    iso_timestamp,
)
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries.capture import Capture, logged_text
from open_llm_proxy.server.entries.line import encode
from open_llm_proxy.server.entries.log import EntryLog, OpenedCall
from open_llm_proxy.server.entries.question import Question, read_question, unread_question
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.redaction.redactor import Redactor, TextRedactor
from open_llm_proxy.server.transcript.transcript import Transcript

log = logging.getLogger(__name__)

LABEL_MAX_CHARACTERS = 500
RETRIES_MAX_DIGITS = 9
PREVIEW_CHARACTERS = 200
ERROR_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a row: stands in every one, so that results can be traced to a deployment."""

    proxy_version: str
    config_sha256: str
    instance: str

    def row(self, kind: RowType) -> LogEntry:
        return LogEntry(
            type=kind,
            proxy_version=self.proxy_version,
            config_sha256=self.config_sha256,
            instance=self.instance,
        )

    def damaged_body(self) -> bytes:
        """The row that the queue puts in the place of one that it finds damaged."""
        return msgspec.json.encode(self.row("damaged"))


class CallEntries:
    """Makes the entries of one call. `set_request` and `set_route` tell it more of the call."""

    def __init__(
        self,
        provenance: Provenance,
        redactor: Redactor,
        headers: Mapping[str, str],
        *,
        request_id: str,
        key_name: str,
        endpoint: str,
        capture: Capture | None = None,
    ) -> None:
        self._provenance = provenance
        self._redactor = redactor
        self._capture = capture or Capture()
        retries = headers.get("X-Stainless-Retry-Count", "")
        is_count = retries.isascii() and retries.isdigit() and len(retries) <= RETRIES_MAX_DIGITS
        self._identity = msgspec.structs.replace(
            provenance.row("request"),
            request_id=request_id,
            session_id=_label(headers.get("X-Session-Id"), redactor),
            origin=_label(headers.get("Origin") or headers.get("Referer"), redactor),
            client=_label(headers.get("X-Client"), redactor),
            key_name=key_name,
            endpoint=endpoint,
            retry_count=int(retries) if is_count else None,
        )
        self._question = Question()
        self._unread_body = b""
        self._enable_thinking: bool | None = None
        self._thinking_applied: bool | None = None

    def set_unread(self, body: bytes) -> None:
        """The body came; its beginning is logged if nothing better becomes known of it."""
        self._unread_body = body

    def set_request(self, request: ClientRequest) -> None:
        """The body could be read: the rows tell its model, its session and its question."""
        self._identity = msgspec.structs.replace(
            self._identity,
            model=_label(request.model, self._redactor),
            stream=request.stream,
            session_id=self._identity.session_id or _label(request.user, self._redactor),
        )
        self._enable_thinking = request.enable_thinking
        self._unread_body = b""
        try:
            redactor = self._redactor.for_row()
            self._question = read_question(request.fields, redactor, self._capture)
        except Exception:
            # A defect of ours must not cost the call or its entry.
            log.exception("the question of call %s cannot be logged", self._identity.request_id)
            self._question = Question()

    def set_route(self, provider: str, thinking_applied: bool | None) -> None:
        """The call has a provider; whether it took the thinking flag is known."""
        self._identity = msgspec.structs.replace(self._identity, provider=provider)
        self._thinking_applied = thinking_applied

    def open(self, entry_log: EntryLog) -> OpenedCall:
        """Hand the opening entries over to the log; raises `QueueError` as it does."""
        now_ms = _now_ms()
        prompts = self._missing_prompts(now_ms)
        opening = [*prompts.values(), self._request(now_ms)]
        opened = entry_log.open(opening, self._interrupted(now_ms))
        self._capture.prompts.handed_over(prompts, opened.stored, entry_log)
        return opened

    def reject(
        self, entry_log: EntryLog, result: CallResult
    ) -> "asyncio.Future[tuple[bytes, ...]]":
        """Hand over both rows of a call that the proxy itself refuses; raises `QueueError`."""
        now_ms = _now_ms()
        prompts = self._missing_prompts(now_ms)
        rows = [*prompts.values(), self._request(now_ms), self.response(result)]
        stored = entry_log.append(rows)
        self._capture.prompts.handed_over(prompts, stored, entry_log)
        return stored

    def request(self) -> Entry:
        """The request row alone, as of now."""
        return self._request(_now_ms())

    def interrupted(self) -> Entry:
        """The closing entry for the case that the process dies: kept by the queue till then."""
        return self._interrupted(_now_ms())

    def response(self, result: CallResult) -> Entry:
        """The closing entry: how the call went, and what of the answer arrived."""
        now_ms, now = _now_ms(), time.monotonic()
        transcript = result.transcript or Transcript()
        ttft = result.first_content_at
        entry = msgspec.structs.replace(
            self._identity,
            type="response",
            timestamp=iso_timestamp(now_ms),
            outcome=result.outcome,
            deadline=result.deadline,
            status=result.status,
            latency_ms=round((now - result.started) * 1000),
            ttft_ms=None if ttft is None else round((ttft - result.started) * 1000),
            has_content=transcript.has_content,
            has_tool_calls=transcript.has_tool_calls,
            has_reasoning_content=transcript.has_reasoning_content,
            finish_reason=_label(transcript.finish_reason, self._redactor),
            prompt_tokens=transcript.prompt_tokens,
            completion_tokens=transcript.completion_tokens,
            total_tokens=transcript.total_tokens,
            cached_tokens=transcript.cached_tokens,
            reasoning_tokens=transcript.reasoning_tokens,
            upstream_request_id=_label(result.upstream_request_id, self._redactor),
        )
        if self._capture.keeps_text:
            entry = self._with_texts(entry, result, transcript)
        return self._encoded(entry, now_ms)

    def _with_texts(self, entry: LogEntry, result: CallResult, transcript: Transcript) -> LogEntry:
        """What the model said, and what went wrong."""
        caps, redactor = self._capture.caps, self._redactor.for_row()
        error, told = result.error or transcript.error, transcript.error
        if told and error not in (told, transcript.evidence.error_body):
            error = f"{told}\n{error}"  # its own reason, before the connection broke
        content = _text(transcript.content, redactor, caps.content)
        headers = result.upstream_headers
        return msgspec.structs.replace(
            entry,
            content=content,
            content_preview=None if content is None else content[:PREVIEW_CHARACTERS],
            reasoning_content=_text(transcript.reasoning_content, redactor, caps.reasoning),
            tool_calls=_tool_calls(transcript, redactor),
            usage_json=_usage(transcript.usage_json, redactor),
            error=_text(error, redactor, ERROR_MAX_CHARACTERS),
            upstream_headers_json=_text(encode_json(dict(headers)), redactor) if headers else None,
        )

    def _request(self, now_ms: int) -> Entry:
        question = self._question
        if self._unread_body:
            redactor = self._redactor.for_row()
            question = unread_question(self._unread_body, redactor, self._capture)
        entry = msgspec.structs.replace(
            self._identity,
            timestamp=iso_timestamp(now_ms),
            enable_thinking=self._enable_thinking,
            thinking_applied=self._thinking_applied,
            message_count=question.message_count,
            tools_count=question.tools_count,
            user_question=question.user_question,
            user_message_this_turn=question.user_message_this_turn,
            tool_results_this_turn=question.tool_results_this_turn,
            system_sha256=question.system_sha256,
            messages_json=question.messages_json,
        )
        return self._encoded(entry, now_ms)

    def _interrupted(self, now_ms: int) -> Entry:
        entry = msgspec.structs.replace(
            self._identity,
            type="response",
            timestamp=iso_timestamp(now_ms),
            outcome="interrupted",
            error="the process that made this call ended before it was finished",
        )
        return self._encoded(entry, now_ms)

    def _missing_prompts(self, now_ms: int) -> dict[str, Entry]:
        """The rows of the system prompts that the request row needs ahead of it, by hash."""
        texts = self._question.prompts
        missing = self._capture.prompts.missing(texts, now_ms) if texts else []
        return {digest: self._prompt(digest, texts[digest], now_ms) for digest in missing}

    def _prompt(self, digest: str, text: str, now_ms: int) -> Entry:
        entry = msgspec.structs.replace(
            self._provenance.row("system_prompt"),
            timestamp=iso_timestamp(now_ms),
            system_sha256=digest,
            content=text,
        )
        return self._encoded(entry, now_ms)

    def _encoded(self, entry: LogEntry, now_ms: int) -> Entry:
        return encode(self._capture.kept(entry), now_ms)


def _text(text: str | None, redactor: TextRedactor, max_characters: int = 0) -> str | None:
    return None if text is None else logged_text(text, redactor, max_characters)


def _label(value: str | None, redactor: TextRedactor) -> str | None:
    """A name or an id from outside; None, never empty, where there is none."""
    text = (value or "").strip()
    return logged_text(text, redactor, LABEL_MAX_CHARACTERS) if text else None


def _usage(usage_json: str | None, redactor: TextRedactor) -> str | None:
    """Usage holds numbers as a rule, and then there is nothing to look for."""
    is_numbers = usage_json is not None and ':"' not in usage_json and "[" not in usage_json
    return usage_json if is_numbers else _text(usage_json, redactor)


def _tool_calls(transcript: Transcript, redactor: TextRedactor) -> list[LoggedToolCall] | None:
    if not transcript.tool_calls:
        return None
    return [
        LoggedToolCall(
            _label(call.id, redactor), _label(call.name, redactor), _text(call.arguments, redactor)
        )
        for call in transcript.tool_calls
    ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
