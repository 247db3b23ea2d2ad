"""The rows of one call, built from what is known of it at each moment.

Identity is read once from the request's headers; the request row, the row that says
`interrupted` and the response row all repeat it. Everything is redacted here, before the first
write, and nothing in here can fail for what a client or a provider sent.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries import (
    LogEntry,
    LoggedToolCall,
    Outcome,
    encode,
    iso_timestamp,
    outside_id,
)
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.question import Question, read_question
from open_llm_proxy.server.redact import Redactor
from open_llm_proxy.server.transcript import Transcript

HEADER_MAX_CHARACTERS = 500
PREVIEW_CHARACTERS = 200
ERROR_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a row: stands in every one, so that results can be traced to a deployment."""

    proxy_version: str
    config_sha256: str
    instance: str

    def row(self, kind: str) -> LogEntry:
        return LogEntry(
            type=kind,  # type: ignore[arg-type]
            proxy_version=self.proxy_version,
            config_sha256=self.config_sha256,
            instance=self.instance,
        )

    def damaged_body(self) -> bytes:
        """The row that the queue puts in the place of one that it finds damaged."""
        return msgspec.json.encode(self.row("damaged"))


@dataclass(slots=True)
class CallResult:
    """How a call went, filled in while it goes; the default is a call that never got an answer."""

    started: float = field(default_factory=time.monotonic)
    outcome: Outcome = "interrupted"
    status: int | None = None
    deadline: str | None = None
    first_content_at: float | None = None
    error: str | None = None
    upstream_headers: Mapping[str, str] | None = None
    upstream_request_id: str | None = None
    transcript: Transcript | None = None


class CallEntries:
    """Makes the entries of one call. `route` and `question` are set once they are known."""

    def __init__(
        self,
        provenance: Provenance,
        redactor: Redactor,
        headers: Mapping[str, str],
        *,
        request_id: str,
        key_name: str,
        endpoint: str,
    ) -> None:
        self._redactor = redactor
        retries = headers.get("X-Stainless-Retry-Count", "")
        self._identity = msgspec.structs.replace(
            provenance.row("request"),
            request_id=request_id,
            session_id=outside_id(self._header(headers, "X-Session-Id")),
            origin=self._header(headers, "Origin") or self._header(headers, "Referer"),
            client=self._header(headers, "X-Client"),
            key_name=key_name,
            endpoint=endpoint,
            retry_count=int(retries) if retries.isascii() and retries.isdigit() else None,
        )
        self._question = Question()
        self._enable_thinking: bool | None = None
        self._thinking_applied: bool | None = None

    def set_request(self, request: ClientRequest) -> None:
        """The body could be read: the rows tell its model, its session and its question."""
        user = request.user
        session = self._identity.session_id
        if session is None and user is not None:
            session = outside_id(self._redactor.text(user)[:HEADER_MAX_CHARACTERS])
        self._identity = msgspec.structs.replace(
            self._identity,
            model=request.model[:HEADER_MAX_CHARACTERS],
            stream=request.stream,
            session_id=session,
        )
        self._enable_thinking = request.enable_thinking
        self._question = read_question(request.fields, self._redactor)

    def set_route(self, provider: str, thinking_applied: bool | None) -> None:
        """The call has a provider; whether it took the thinking flag is known."""
        self._identity = msgspec.structs.replace(self._identity, provider=provider)
        self._thinking_applied = thinking_applied

    def request(self) -> Entry:
        now_ms = _now_ms()
        question = self._question
        return encode(
            msgspec.structs.replace(
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
            ),
            now_ms,
        )

    def interrupted(self) -> Entry:
        """The closing entry for the case that the process dies: kept by the queue till then."""
        now_ms = _now_ms()
        entry = msgspec.structs.replace(
            self._identity,
            type="response",
            timestamp=iso_timestamp(now_ms),
            outcome="interrupted",
            error="the process that made this call ended before it was finished",
        )
        return encode(entry, now_ms)

    def response(self, result: CallResult) -> Entry:
        """The closing entry: how the call went, and what of the answer arrived."""
        now_ms = _now_ms()
        now = time.monotonic()
        transcript = result.transcript or Transcript()
        content = self._text(transcript.content)
        reasoning = self._text(transcript.reasoning_content)
        error = result.error or transcript.error
        if error is None and result.outcome != "ok":
            error = transcript.raw_text
        elif content is None and transcript.raw_text is not None:
            content = self._text(transcript.raw_text)
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
            content=content,
            content_preview=None if content is None else content[:PREVIEW_CHARACTERS],
            reasoning_content=reasoning,
            tool_calls=self._tool_calls(transcript),
            finish_reason=transcript.finish_reason,
            prompt_tokens=transcript.prompt_tokens,
            completion_tokens=transcript.completion_tokens,
            total_tokens=transcript.total_tokens,
            cached_tokens=transcript.cached_tokens,
            reasoning_tokens=transcript.reasoning_tokens,
            usage_json=transcript.usage_json,
            error=None if error is None else self._redactor.text(error)[:ERROR_MAX_CHARACTERS],
            upstream_headers_json=self._headers_json(result.upstream_headers),
            upstream_request_id=outside_id(result.upstream_request_id),
        )
        return encode(entry, now_ms)

    def _text(self, text: str | None) -> str | None:
        return None if text is None else self._redactor.text(text)

    def _header(self, headers: Mapping[str, str], name: str) -> str | None:
        value = headers.get(name, "").strip()
        return self._redactor.text(value[:HEADER_MAX_CHARACTERS]) if value else None

    def _headers_json(self, headers: Mapping[str, str] | None) -> str | None:
        return self._redactor.text(encode_json(dict(headers))) if headers else None

    def _tool_calls(self, transcript: Transcript) -> list[LoggedToolCall] | None:
        if not transcript.tool_calls:
            return None
        return [
            LoggedToolCall(call.id, call.name, self._text(call.arguments))
            for call in transcript.tool_calls
        ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
