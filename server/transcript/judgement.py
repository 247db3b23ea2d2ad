"""What an answer of a provider is called in the log: ``ok`` means that it is one.

A status of 2xx alone says nothing: providers send errors, pages, empty bodies and streams without
an end under 200. What counts as an answer depends on the route: choices (an empty text with a
finish reason is one), the vectors of embeddings, the output or the status of a response. Where it
is none, the reason is told in the provider's own words, as far as it has any.
"""

from dataclasses import dataclass
from typing import Literal

from open_llm_proxy.server.transcript.transcript import AnswerKind, Transcript


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a call whose answer came whole; ``error`` is None where nobody says why."""

    outcome: Literal["ok", "upstream_error"]
    error: str | None = None


_OK = Judgement("ok")


def kind_for(path: str) -> AnswerKind:
    """Say what answers are made of on a route of the proxy."""
    if path.endswith("/embeddings"):
        return "embeddings"
    return "response" if path.endswith("/responses") else "choices"


def judge(status: int, kind: AnswerKind, transcript: Transcript) -> Judgement:
    """Judge an answer that has come to its end in HTTP."""
    evidence = transcript.evidence
    if not 200 <= status < 300:
        return Judgement(
            "upstream_error", evidence.error_body or transcript.error or transcript.raw_text
        )
    if transcript.error is not None:
        return Judgement("upstream_error", transcript.error)
    if evidence.is_unread:
        return _OK
    reason = _defect(kind, transcript)
    if reason is None:
        return _OK
    return Judgement("upstream_error", transcript.raw_text or reason)


def _defect(kind: AnswerKind, transcript: Transcript) -> str | None:
    """Say why something that reports no error is no answer all the same."""
    evidence = transcript.evidence
    if evidence.bad_finish is not None:
        return f"the provider ended the answer with finish_reason {evidence.bad_finish!r}"
    if evidence.is_stream and kind != "embeddings":
        if not transcript.saw_done and transcript.finish_reason is None:
            return "the stream ended without a finish_reason and without [DONE]"
        if evidence.has_stray_text and transcript.finish_reason is None:
            return "the stream brought text that is no event"
    if evidence.is_cut:
        return "the answer is JSON that breaks off"
    if evidence.has_stray_text and not evidence.is_stream:
        return "the answer is JSON with something else behind it"
    if evidence.kind == kind:
        return None
    if evidence.is_stream:
        return "the stream holds no answer"
    if evidence.kind is not None:
        return f"the answer holds {evidence.kind} where {kind} belong"
    return "the answer is empty"
