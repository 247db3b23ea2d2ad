"""The transcript of one answer: what the log keeps of it, and what it is judged by."""

from dataclasses import dataclass, field
from typing import Literal

AnswerKind = Literal["choices", "embeddings", "response"]


@dataclass(slots=True)
class ToolCall:
    """A call that the model asked for; ``arguments`` is the JSON text as the model wrote it."""

    id: str | None = None
    name: str | None = None
    arguments: str | None = None


@dataclass(slots=True)
class Evidence:
    """What an answer is judged by (`judgement.py`) and the log does not hold.

    ``kind`` is the kind of answer that was found, None for none. ``bad_finish`` is a finish
    reason that says error or abort, of whichever choice. ``is_cut`` says that the body is JSON
    that breaks off, ``has_stray_text`` that a stream brought text that belongs to no event, or
    that something stands behind the end of a document,
    ``is_unread`` that we could not decode the body, so that nothing is known of it.
    ``error_body`` is the beginning of a body that is an error, as it was sent.
    """

    kind: AnswerKind | None = None
    bad_finish: str | None = None
    is_stream: bool = False
    is_cut: bool = False
    is_unread: bool = False
    has_stray_text: bool = False
    error_body: str | None = None


@dataclass(slots=True)
class Transcript:
    """What the model answered. Texts are None, never empty, where nothing came.

    They may hold NUL and lone surrogates, as received. Of several choices the first is the text
    and the others follow, each under a line ``[choice N]``; their tool calls are in one list.
    ``error`` is the provider's error, as text or compact JSON. ``raw_text`` is what could not be
    understood: it may tell why there is no answer, and is never the model's words. ``truncated``
    says that something was left out for its size, ``saw_done`` that a stream reached its
    completion.
    """

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    usage_json: str | None = None
    error: str | None = None
    raw_text: str | None = None
    truncated: bool = False
    saw_done: bool = False
    response_id: str | None = None
    evidence: Evidence = field(default_factory=Evidence, compare=False)

    @property
    def characters(self) -> int:
        """How long the texts are together."""
        arguments = [call.arguments for call in self.tool_calls or ()]
        texts = (self.content, self.reasoning_content, self.error, self.raw_text, *arguments)
        return sum(len(text) for text in texts if text)

    @property
    def has_content(self) -> bool:
        return bool(self.content)

    @property
    def has_tool_calls(self) -> bool:
        return bool(self.tool_calls)

    @property
    def has_reasoning_content(self) -> bool:
        return bool(self.reasoning_content)
