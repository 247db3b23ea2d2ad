"""The assembly of one answer, piece by piece, within one cap.

Every text that is collected (content, reasoning, arguments) draws on the same budget of bytes, so
that an answer without end costs no more memory than the cap. What does not fit is counted and
marked with the length it had: a cut is always visible.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from open_llm_proxy.archive.text import cut_mark, shortened
from open_llm_proxy.server.json_text import (
    NotJSON,
    compact_json,
    decode_json,
    encode_json,
    whole_characters,
)
from open_llm_proxy.server.transcript.capped_text import Budget, CappedText
from open_llm_proxy.server.transcript.tool_calls import CallList, CallParts
from open_llm_proxy.server.transcript.transcript import AnswerKind, Evidence, ToolCall, Transcript
from open_llm_proxy.server.transcript.usage import Usage, read_usage

_MAX_CHOICES = 128  # what the OpenAI API allows for n
_MAX_TOOL_CALLS = 1024
_MAX_LABEL_CHARACTERS = 512  # ids, names, finish reasons
_MAX_ERROR_CHARACTERS = 4096
_MAX_USAGE_BYTES = 65536
_MAX_RAW_BYTES = 16384  # of one thing that could not be understood
_RAW_BYTES = 65536  # of all, as UTF-8
_MAX_INDEX = 2**31
_NO_FINISH = ("null", "none")  # DashScope sends the word with each piece
_BAD_FINISH = re.compile(
    r"error|abort|fail|cancell?ed|interrupt|insufficient|malformed|exception|crash"
    r"|time.?out|timed.?out|overload|unavailable|rate.?limit|quota",
    re.IGNORECASE,
)


class ChoiceParts:
    """One choice under way."""

    __slots__ = ("calls", "content", "finish_reason", "reasoning")

    def __init__(self, budget: Budget, begin_call: Callable[[], CallParts | None]) -> None:
        self.content = CappedText(budget)
        self.reasoning = CappedText(budget)
        self.calls = CallList(begin_call)
        self.finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Assembly:
    """Everything collected of one answer so far; the shapes write to it, `build` reads it.

    ``reads_reduced`` says that texts come out of a `ReducedJSON` and may end in marks.
    """

    def __init__(self, max_bytes: int) -> None:
        self.budget = Budget(max_bytes)
        self.choices: dict[int, ChoiceParts] = {}
        self.raw = CappedText(Budget(_RAW_BYTES))
        self._usage_sent: bytes | None = None
        self.error: str | None = None
        self._doubt: str | None = None
        self.response_id: str | None = None
        self.evidence = Evidence()
        self.saw_done = False
        self.saw_last_event = False
        self.content_seen = False
        self.reads_reduced = False
        self._choice_count = 0
        self._call_count = 0

    def choice(self, index: int | None, position: int = 0) -> ChoiceParts | None:
        """Return the choice of that index (its place in the list if it names none).

        None if an answer has more choices than any API allows.
        """
        if index is None or not 0 <= index < _MAX_INDEX:
            index = position
        found = self.choices.get(index)
        if found is None:
            self._choice_count = max(self._choice_count, index + 1, len(self.choices) + 1)
            if len(self.choices) >= _MAX_CHOICES:
                self.budget.is_exceeded = True
                return None
            found = self.choices[index] = self.new_choice()
        return found

    def new_choice(self) -> ChoiceParts:
        return ChoiceParts(self.budget, self.begin_call)

    def add_content(self, choice: ChoiceParts, piece: str) -> None:
        if not self.content_seen:
            self._see()
        if self.reads_reduced:
            choice.content.add_cut(piece)
        else:
            choice.content.add(piece)

    def add_reasoning(self, choice: ChoiceParts, piece: str) -> None:
        if not self.content_seen:
            self._see()
        if self.reads_reduced:
            choice.reasoning.add_cut(piece)
        else:
            choice.reasoning.add(piece)

    def begin_call(self) -> CallParts | None:
        """Begin a tool call; None where there are far too many."""
        self._see()
        self._call_count += 1
        if self._call_count > _MAX_TOOL_CALLS:
            self.budget.is_exceeded = True
            return None
        return CallParts(self.budget)

    def set_finish_reason(self, choice: ChoiceParts, reason: str) -> None:
        if reason.lower() in _NO_FINISH:
            return
        reason = choice.finish_reason = shortened(reason, _MAX_LABEL_CHARACTERS)
        self.find("choices")
        if is_bad_finish(reason):
            self.evidence.bad_finish = reason

    def set_response_id(self, response_id: str) -> None:
        if self.response_id is None and response_id:
            self.response_id = shortened(response_id, _MAX_LABEL_CHARACTERS)

    def set_error(self, text: str) -> None:
        """Keep the first error: later ones tell of its consequences."""
        if self.error is None and text.strip():
            self.error = shortened(text, _MAX_ERROR_CHARACTERS)

    def set_doubt(self, text: str) -> None:
        """Keep what may be an error: it is one where the answer comes to no end of its own."""
        if self._doubt is None and text.strip():
            self._doubt = shortened(text, _MAX_ERROR_CHARACTERS)

    def add_raw(self, head: bytes, size: int) -> None:
        """Keep the beginning of what could not be understood, and was so many bytes."""
        if self.raw:
            self.raw.add("\n")
        is_cut = size > min(len(head), _MAX_RAW_BYTES)
        head = head[:_MAX_RAW_BYTES]
        self.raw.add(whole_characters(head) if is_cut else head.decode("utf-8", "replace"))
        if is_cut:
            self.raw.mark_document(size)
            self.budget.is_exceeded = True

    def mark_gaps(self, size: int) -> None:
        """Say in the text that parts of a document of so many bytes were left out of it."""
        if self.choices:
            self.choices[min(self.choices)].content.mark_document(size)

    def add_usage(self, usage: bytes) -> None:
        """Keep the last usage of a stream, unless it counts less than the one before."""
        sent = self._usage_sent
        if sent is None or usage == sent or _counted(usage) >= _counted(sent):
            self._usage_sent = usage

    def find(self, kind: AnswerKind) -> None:
        """Note that there is an answer, and of which kind."""
        if self.evidence.kind is None:
            self.evidence.kind = kind

    def build(self) -> Transcript:
        """Join everything into the transcript."""
        choices = sorted(self.choices.items())
        if self._doubt is not None and not any(c.finish_reason for _, c in choices):
            self.set_error(self._doubt)
        usage_json, usage = self._usage()
        return Transcript(
            content=self._content(choices),
            reasoning_content=_joined(choices, lambda choice: choice.reasoning.value()),
            tool_calls=self._tool_calls(choices) or None,
            finish_reason=choices[0][1].finish_reason if choices else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cost_usd=usage.cost_usd,
            usage_json=usage_json,
            error=self.error,
            raw_text=self.raw.value(),
            truncated=self.budget.is_exceeded,
            saw_done=self.saw_done,
            response_id=self.response_id,
            evidence=self.evidence,
        )

    def _see(self) -> None:
        self.content_seen = True
        if self.evidence.kind is None:
            self.evidence.kind = "choices"

    def _content(self, choices: list[tuple[int, ChoiceParts]]) -> str | None:
        content = _joined(choices, lambda choice: choice.content.value())
        if self._choice_count > len(self.choices):
            content = f"{content or ''}\n\n{cut_mark(self._choice_count, 'choices')}"
        return content

    def _tool_calls(self, choices: list[tuple[int, ChoiceParts]]) -> list[ToolCall]:
        calls = [
            ToolCall(call.id, call.name, call.arguments.value())
            for _, choice in choices
            for call in choice.calls.calls
        ]
        if self._call_count > len(calls):
            calls.append(ToolCall(name=cut_mark(self._call_count, "tool calls")))
        return calls

    def _usage(self) -> tuple[str | None, Usage]:
        """Return the usage as it was sent, and its counts; a huge one leaves a mark."""
        sent = self._usage_sent
        if sent is None:
            return None, Usage()
        try:
            usage = read_usage(decode_json(sent, replace_invalid_utf8=True))
            if len(sent) > _MAX_USAGE_BYTES:
                self.budget.is_exceeded = True
                return encode_json(cut_mark(len(sent), "bytes")), usage
            return compact_json(sent), usage
        except NotJSON:
            return None, Usage()


def _joined(
    choices: list[tuple[int, ChoiceParts]], text_of: Callable[[ChoiceParts], str | None]
) -> str | None:
    texts = []
    for position, (index, choice) in enumerate(choices):
        text = text_of(choice)
        if text is not None:
            texts.append(text if position == 0 else f"[choice {index}]\n{text}")
    return "\n\n".join(texts) or None


def _counted(usage: bytes) -> int:
    """How many tokens a usage tells of."""
    try:
        found = read_usage(decode_json(usage, replace_invalid_utf8=True))
    except NotJSON:
        return 0
    both = (found.prompt_tokens or 0) + (found.completion_tokens or 0)
    return max(both, found.total_tokens or 0)


@lru_cache(maxsize=64)
def is_bad_finish(reason: str) -> bool:
    """Whether a finish reason says that the provider failed."""
    return _BAD_FINISH.search(reason) is not None
