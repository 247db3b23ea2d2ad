"""A body that is one document, read at its end.

Nearly every such body is a chat completion with one choice, so that is read by one typed decode
into its transcript. Whatever does not fit goes through the assembly that streams go through:
other kinds of answers, odd types, errors, JSON that breaks off, pages. A body of more than 128
kB is reduced while it comes, which also spreads the work over its pieces.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from open_llm_proxy.server.json_size import has_too_many_values
from open_llm_proxy.server.json_text import NotJSON, compact_json, decode_json
from open_llm_proxy.server.transcript.answer_parts import AnswerParts
from open_llm_proxy.server.transcript.assembly import Assembly, is_bad_finish
from open_llm_proxy.server.transcript.reduced_json import ReducedJSON
from open_llm_proxy.server.transcript.transcript import Evidence, ToolCall, Transcript
from open_llm_proxy.server.transcript.usage import MAX_COUNT, cost_of

_DOCUMENT_BYTES = 1 << 17  # a longer one is reduced while it comes
_MOST_VALUES = 20_000  # a document of more, an object counts as four, is reduced at any length
_ERROR_BODY_BYTES = 4096
_MAX_LABEL_CHARACTERS = 512
_MAX_USAGE_BYTES = 65536
_MAX_CALLS = 1024
_NOTHING = msgspec.Raw(b"null")
_NO_USAGE = (b"null", b"{}")
_SPACE, _LF = b" \n"  # a number is looked for faster than a byte


class DocumentBody:
    """Collects a body; `finish` may be called at any moment."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._reduced: ReducedJSON | None = None

    def feed(self, chunk: bytes) -> Iterable[None]:
        """Take the next bytes; what is returned does the rest of the work, a little at a time."""
        self._size += len(chunk)
        if self._reduced is not None:
            self._reduced.feed(chunk)
            return self._reduced.work()
        self._pieces.append(chunk)
        if self._size <= _DOCUMENT_BYTES:
            return ()
        self._reduced = ReducedJSON(self._max_bytes)
        self._reduced.defer(b"".join(self._pieces))
        self._pieces.clear()
        return self._reduced.work()

    def finish(self) -> Transcript:
        reduced, head = self._reduced, b"".join(self._pieces)
        if reduced is not None:
            for _ in reduced.work():
                pass
        elif has_too_many_values(head, _MOST_VALUES):
            reduced = self._reduce(head)
        elif len(head) <= self._max_bytes:
            transcript = read_completion(head)
            if transcript is not None:
                return transcript
        assembly = Assembly(self._max_bytes)
        if reduced is None and not head.strip():
            return assembly.build()
        parts = AnswerParts(assembly)
        if reduced is not None or not (parts.add_body(head) or _is_json(head)):
            reduced = reduced or self._reduce(head)
            parts.add_body(reduced)
            assembly.evidence.is_cut = reduced.is_json and not reduced.is_whole
            if reduced.behind:
                assembly.evidence.has_stray_text = True
                assembly.add_raw(reduced.behind, len(reduced.behind))
        head = head or (reduced.head if reduced is not None else b"")
        if assembly.error is not None:
            assembly.evidence.error_body = head[:_ERROR_BODY_BYTES].decode("utf-8", "replace")
        elif assembly.evidence.kind is None:
            assembly.add_raw(head, self._size)
        return assembly.build()

    def _reduce(self, head: bytes) -> ReducedJSON:
        reduced = ReducedJSON(self._max_bytes)
        reduced.feed(head)
        return reduced


def _is_json(document: bytes) -> bool:
    try:
        decode_json(document, replace_invalid_utf8=True)
    except NotJSON:
        return False
    return True


_Label = Annotated[str, msgspec.Meta(max_length=_MAX_LABEL_CHARACTERS)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _Function(msgspec.Struct, gc=False):
    name: _Label | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: _Label | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: msgspec.Raw | None = None
    tool_calls: Annotated[list[_Call], msgspec.Meta(max_length=_MAX_CALLS)] | None = None
    # What needs a closer look where it is there.
    refusal: None = None
    function_call: None = None
    reasoning_text: None = None
    thinking: None = None
    thought: None = None
    thoughts: None = None
    thinking_blocks: None = None
    images: None = None
    audio: None = None
    error: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_LABEL_CHARACTERS)]
    index: int = 0
    reasoning: None = None
    reasoning_content: None = None
    error: None = None
    usage: None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


_NO_DETAILS = _Details()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    cost: float | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    # Counts under other names.
    input_tokens: None = None
    output_tokens: None = None
    cached_tokens: None = None
    reasoning_tokens: None = None
    prompt_cache_hit_tokens: None = None
    cache_read_input_tokens: None = None
    input_tokens_details: None = None
    output_tokens_details: None = None


class _Completion(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    id: _Label | None = None
    usage: msgspec.Raw = _NOTHING
    error: None = None


_COMPLETION_DECODER = msgspec.json.Decoder(_Completion)
_USAGE_DECODER = msgspec.json.Decoder(_Usage | None)


def read_completion(document: bytes) -> Transcript | None:
    """Read an ordinary chat completion; None for anything that has something odd about it."""
    try:
        completion = _COMPLETION_DECODER.decode(document)
        usage = _USAGE_DECODER.decode(completion.usage) or _Usage()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    (choice,) = completion.choices
    message, usage_json = choice.message, bytes(completion.usage)
    reasoning = message.reasoning_content or message.reasoning
    if (
        is_bad_finish(choice.finish_reason)
        or len(usage_json) > _MAX_USAGE_BYTES
        or (not reasoning and message.reasoning_details is not None)
    ):
        return None
    calls = message.tool_calls
    return Transcript(
        message.content or None,
        reasoning or None,
        [_tool_call(call) for call in calls] if calls else None,
        choice.finish_reason,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        (usage.prompt_tokens_details or _NO_DETAILS).cached_tokens,
        (usage.completion_tokens_details or _NO_DETAILS).reasoning_tokens,
        None if usage.cost is None else cost_of(usage.cost),
        _usage_text(usage_json),
        response_id=completion.id or None,
        evidence=Evidence("choices"),
    )


def _usage_text(usage: bytes) -> str | None:
    if usage in _NO_USAGE:
        return None
    is_compact = usage.isascii() and _SPACE not in usage and _LF not in usage
    return usage.decode() if is_compact else compact_json(usage)


def _tool_call(call: _Call) -> ToolCall:
    return ToolCall(call.id or None, call.function.name or None, call.function.arguments or None)
