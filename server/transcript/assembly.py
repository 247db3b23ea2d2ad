"""The transcript of one answer, and its assembly piece by piece within one cap.

Every text that is collected (content, reasoning, arguments, what could not be understood) draws
on the same budget of bytes, so that an answer without end costs no more memory than the cap.
What does not fit is counted and marked with the length it had: a cut is always visible.
"""

from collections.abc import Callable
from dataclasses import dataclass

from open_llm_proxy.archive.text import cut_mark, shortened, whole_pairs
from open_llm_proxy.server.json_text import NotJSON, compact_json, decode_json
from open_llm_proxy.server.transcript.usage import TokenCounts, read_token_counts

_MAX_CHOICES = 128  # what the OpenAI API allows for n
_MAX_TOOL_CALLS = 1024
_MAX_LABEL_CHARACTERS = 512  # ids, names, finish reasons
_MAX_ERROR_CHARACTERS = 4096
_MAX_USAGE_BYTES = 65536
_MAX_INDEX = 2**31
_PIECES_PER_BLOCK = 64


@dataclass(slots=True)
class ToolCall:
    """A call that the model asked for; ``arguments`` is the JSON text as the model wrote it."""

    id: str | None = None
    name: str | None = None
    arguments: str | None = None


@dataclass(slots=True)
class Transcript:
    """What the model answered. Texts are None, never empty, where nothing came.

    They may hold NUL and lone surrogates, as received. Of several choices the first is the text
    and the others follow, each under a line ``[choice N]``; their tool calls are in one list.
    ``error`` is the provider's error, as text or compact JSON. ``raw_text`` is what could not be
    understood. ``truncated`` says that something was left out for its size, ``saw_done`` that a
    stream reached its completion.
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
    usage_json: str | None = None
    error: str | None = None
    raw_text: str | None = None
    truncated: bool = False
    saw_done: bool = False
    response_id: str | None = None

    @property
    def has_content(self) -> bool:
        return bool(self.content)

    @property
    def has_tool_calls(self) -> bool:
        return bool(self.tool_calls)

    @property
    def has_reasoning_content(self) -> bool:
        return bool(self.reasoning_content)


class Budget:
    """The bytes, as UTF-8, that may still be kept of one answer."""

    def __init__(self, max_bytes: int) -> None:
        self.left = max_bytes
        self.is_exceeded = False


class CappedText:
    """A text that grows by pieces for as long as the budget lasts, and counts the rest.

    A short str takes ten times the room of its text, so the pieces are joined now and then.
    """

    __slots__ = ("_blocks", "_budget", "_characters", "_kept", "_pieces")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._blocks: list[str] = []
        self._pieces: list[str] = []
        self._kept = 0
        self._characters = 0

    def __bool__(self) -> bool:
        return self._characters > 0

    def add(self, piece: str) -> None:
        """Take the next piece, or as much of it as the budget allows, in whole characters."""
        budget, length = self._budget, len(piece)
        self._characters += length
        if length <= budget.left and piece.isascii():
            budget.left -= length
        else:
            piece = self._affordable(piece)
            length = len(piece)
        if length:
            self._kept += length
            self._pieces.append(piece)
            if len(self._pieces) >= _PIECES_PER_BLOCK:
                self._blocks.append("".join(self._pieces))
                self._pieces.clear()

    def value(self) -> str | None:
        """Return the text, None if nothing came; surrogates that came in halves are joined."""
        text = "".join(self._blocks + self._pieces)
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if self._kept < self._characters:
            text = whole_pairs(text) + cut_mark(self._characters, "characters")
        return text or None

    def _affordable(self, piece: str) -> str:
        encoded = piece.encode("utf-8", "surrogatepass")
        left = self._budget.left
        if len(encoded) <= left:
            self._budget.left -= len(encoded)
            return piece
        self._budget.is_exceeded = True
        self._budget.left = 0  # so that no later piece appears behind a gap
        while left > 0 and encoded[left] & 0xC0 == 0x80:
            left -= 1
        return encoded[:left].decode("utf-8", "surrogatepass")


class CallParts:
    """One tool call under way."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, budget: Budget) -> None:
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = CappedText(budget)


class ChoiceParts:
    """One choice under way."""

    __slots__ = ("calls", "calls_by_index", "content", "finish_reason", "reasoning")

    def __init__(self, budget: Budget) -> None:
        self.content = CappedText(budget)
        self.reasoning = CappedText(budget)
        self.calls: list[CallParts] = []
        self.calls_by_index: dict[int, CallParts] = {}
        self.finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Assembly:
    """Everything collected of one answer so far; the shapes write to it, `build` reads it."""

    def __init__(self, max_bytes: int) -> None:
        self.budget = Budget(max_bytes)
        self.choices: dict[int, ChoiceParts] = {}
        self.raw = CappedText(self.budget)
        self.usage: bytes | None = None
        self.error: str | None = None
        self.response_id: str | None = None
        self.saw_done = False
        self.saw_last_event = False
        self.content_seen = False
        self._call_count = 0

    def choice(self, index: int | None, position: int = 0) -> ChoiceParts | None:
        """Return the choice of that index (its place in the list if it names none).

        None if an answer has more choices than any API allows.
        """
        if index is None or not 0 <= index < _MAX_INDEX:
            index = position
        found = self.choices.get(index)
        if found is None:
            if len(self.choices) >= _MAX_CHOICES:
                self.budget.is_exceeded = True
                return None
            found = self.choices[index] = ChoiceParts(self.budget)
        return found

    def add_content(self, choice: ChoiceParts, piece: str) -> None:
        self.content_seen = True
        choice.content.add(piece)

    def add_reasoning(self, choice: ChoiceParts, piece: str) -> None:
        self.content_seen = True
        choice.reasoning.add(piece)

    def add_call(self, choice: ChoiceParts, index: int | None) -> CallParts | None:
        """Begin a tool call, to be found by this index; None where there are far too many."""
        if self._call_count >= _MAX_TOOL_CALLS:
            self.budget.is_exceeded = True
            return None
        self.content_seen = True
        self._call_count += 1
        call = CallParts(self.budget)
        choice.calls.append(call)
        if index is not None:
            choice.calls_by_index[index] = call
        return call

    def name_call(self, call: CallParts, call_id: str | None, name: str | None) -> None:
        """Set what a delta says of a call: the first id stays; a name may come in pieces."""
        if call_id and not call.id:
            call.id = shortened(call_id, _MAX_LABEL_CHARACTERS)
        if name and name != call.name and len(call.name or "") < _MAX_LABEL_CHARACTERS:
            call.name = shortened((call.name or "") + name, _MAX_LABEL_CHARACTERS)

    def set_finish_reason(self, choice: ChoiceParts, reason: str) -> None:
        choice.finish_reason = shortened(reason, _MAX_LABEL_CHARACTERS)

    def set_response_id(self, response_id: str) -> None:
        self.response_id = shortened(response_id, _MAX_LABEL_CHARACTERS)

    def set_error(self, text: str) -> None:
        """Keep the first error: later ones tell of its consequences."""
        if self.error is None:
            self.error = shortened(text, _MAX_ERROR_CHARACTERS)

    def build(self) -> Transcript:
        """Join everything into the transcript."""
        choices = sorted(self.choices.items())
        usage_json, counts = self._usage()
        return Transcript(
            content=_joined(choices, lambda choice: choice.content.value()),
            reasoning_content=_joined(choices, lambda choice: choice.reasoning.value()),
            tool_calls=[
                ToolCall(call.id, call.name, call.arguments.value())
                for _, choice in choices
                for call in choice.calls
            ]
            or None,
            finish_reason=choices[0][1].finish_reason if choices else None,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            total_tokens=counts.total_tokens,
            cached_tokens=counts.cached_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            usage_json=usage_json,
            error=self.error,
            raw_text=self.raw.value(),
            truncated=self.budget.is_exceeded,
            saw_done=self.saw_done,
            response_id=self.response_id,
        )

    def _usage(self) -> tuple[str | None, TokenCounts]:
        """Return the usage as it was sent, and its counts; a huge one is left out."""
        if self.usage is None:
            return None, TokenCounts()
        try:
            counts = read_token_counts(decode_json(self.usage, replace_invalid_utf8=True))
            if len(self.usage) > _MAX_USAGE_BYTES:
                self.budget.is_exceeded = True
                return None, counts
            return compact_json(self.usage), counts
        except NotJSON:
            return None, TokenCounts()


def _joined(
    choices: list[tuple[int, ChoiceParts]], text_of: Callable[[ChoiceParts], str | None]
) -> str | None:
    texts = []
    for position, (index, choice) in enumerate(choices):
        text = text_of(choice)
        if text is not None:
            texts.append(text if position == 0 else f"[choice {index}]\n{text}")
    return "\n\n".join(texts) or None
