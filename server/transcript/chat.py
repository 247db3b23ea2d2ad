"""The answers of chat completions, completions and embeddings: whole ones and stream chunks.

`Answer` is the normal form of both. msgspec decodes straight into it, which is all that an
ordinary chunk needs and skips what the log does not keep (log probabilities, vectors). What has
a field of another type than the API says goes through `json_text` and is fitted into the same
form field by field, so that one odd field costs nothing but itself.
"""

import msgspec

from open_llm_proxy.archive.text import joined
from open_llm_proxy.server.json_text import NotJSON, decode_json, encode_json
from open_llm_proxy.server.transcript.assembly import Assembly, ChoiceParts
from open_llm_proxy.server.transcript.content_parts import content_text, thought_text
from open_llm_proxy.server.transcript.errors_in_answers import (
    error_in,
    error_text,
    is_doubtful,
    is_keep_alive,
)
from open_llm_proxy.server.transcript.reasoning import reasoning_of
from open_llm_proxy.server.transcript.tool_calls import CallPiece

_ABSENT = msgspec.Raw(b"")
_EMPTY = (b"", b"null", b"false", b'""', b"{}", b"[]")
_LEGACY_CALL = -1  # the index under which a function_call is kept


class Function(msgspec.Struct, gc=False):
    """A function call, or a custom tool call, which has ``input`` instead of ``arguments``."""

    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class Call(msgspec.Struct, gc=False):
    """One element of ``tool_calls``."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Function | None = None
    name: str | None = None  # with some providers these two stand here
    arguments: str | None = None


class Audio(msgspec.Struct, gc=False):
    """A spoken answer, as far as it is text."""

    transcript: str | None = None


class Thought(msgspec.Struct, gc=False):
    """An element of ``reasoning_details`` or ``thinking_blocks``, as far as it is text."""

    text: str | None = None
    summary: str | None = None
    thinking: str | None = None


class Message(msgspec.Struct, gc=False):
    """A message, or the delta of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: str | None = None
    thinking: str | None = None
    thought: str | None = None
    thoughts: str | None = None
    reasoning_details: list[Thought] | None = None
    thinking_blocks: list[Thought] | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: Function | None = None
    images: list[msgspec.Raw] | None = None
    audio: Audio | None = None
    error: msgspec.Raw = _ABSENT


class Choice(msgspec.Struct, gc=False):
    """One element of ``choices``; Moonshot puts a stream's usage here.

    Of completions OpenRouter sends reasoning beside the text.
    """

    index: int | None = None
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    finish_reason: str | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class Vector(msgspec.Struct, gc=False):
    """One element of an embeddings answer's ``data``."""

    embedding: msgspec.Raw = _ABSENT


class Answer(msgspec.Struct, gc=False):
    """A JSON object from a provider, as far as the log is interested in it."""

    id: str | None = None
    object: str | None = None
    type: str | None = None
    choices: list[Choice] | None = None
    data: list[Vector] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


_ANSWER_DECODER = msgspec.json.Decoder(Answer)


def read_answer(document: bytes) -> Answer:
    """Read a JSON object into the normal form. Raises `NotJSON`, also for JSON of other types."""
    try:
        return _ANSWER_DECODER.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return fit_answer(decode_json(document, replace_invalid_utf8=True))


def fit_answer(value: object) -> Answer:
    """Fit a decoded object into the normal form, whatever its fields hold."""
    if not isinstance(value, dict):
        raise NotJSON("it is JSON, but no object")
    choices, data = value.get("choices"), value.get("data")
    return Answer(
        id=_text(value.get("id")),
        object=_text(value.get("object")),
        type=_text(value.get("type")),
        choices=_fit_choices(choices) if isinstance(choices, list) else None,
        data=_fit_vectors(data) if isinstance(data, list) else None,
        usage=_raw(value.get("usage")),
        error=_raw(value.get("error")),
    )


def add_answer(assembly: Assembly, answer: Answer, document: bytes) -> bool:
    """Add what an answer or a chunk says to the assembly; False if it said nothing known."""
    if assembly.response_id is None and answer.id:
        assembly.set_response_id(answer.id)
    has_usage = answer.usage is not _ABSENT and _add_usage(assembly, answer.usage)
    choices = answer.choices or ()
    has_numbers = len(choices) < 2 or len({part.index for part in choices}) == len(choices)
    for position, part in enumerate(choices):
        choice = assembly.choice(part.index if has_numbers else None, position)
        if choice is not None:
            _add_choice(assembly, choice, part)
    has_error = answer.error is not _ABSENT and _add_error(assembly, answer.error)
    if answer.choices or has_error:
        return True
    if any(bytes(vector.embedding) not in _EMPTY for vector in answer.data or ()):
        assembly.find("embeddings")
        return True
    return _add_odd(assembly, document) or has_usage or answer.choices is not None


def _add_odd(assembly: Assembly, document: bytes) -> bool:
    """Take an object that holds no answer: an error under another name, or a sign of life."""
    value = decode_json(document, replace_invalid_utf8=True)
    error = error_in(value)
    if error is not None:
        is_notice = assembly.evidence.is_stream and is_doubtful(value)
        (assembly.set_doubt if is_notice else assembly.set_error)(error)
    return error is not None or is_keep_alive(value)


def _add_choice(assembly: Assembly, choice: ChoiceParts, part: Choice) -> None:
    if part.delta is not None:
        _add_message(assembly, choice, part.delta, is_delta=True)
    elif part.message is not None and not choice:  # some streams end with the whole message
        _add_message(assembly, choice, part.message, is_delta=False)
    if reasoning := part.reasoning_content or part.reasoning:
        assembly.add_reasoning(choice, reasoning)
    if part.text:
        assembly.add_content(choice, part.text)
    if part.finish_reason:
        assembly.set_finish_reason(choice, part.finish_reason)
    if part.usage is not _ABSENT:
        _add_usage(assembly, part.usage)
    if part.error is not _ABSENT:
        _add_error(assembly, part.error)


def _add_message(
    assembly: Assembly, choice: ChoiceParts, message: Message, *, is_delta: bool
) -> None:
    reasoning = (
        message.reasoning_content
        or message.reasoning
        or message.reasoning_text
        or message.thinking
        or message.thought
        or message.thoughts
        or _thoughts(message.reasoning_details or message.thinking_blocks)
    )
    if reasoning:
        assembly.add_reasoning(choice, reasoning)
    if message.content:
        assembly.add_content(choice, message.content)
    if message.refusal:
        assembly.add_content(choice, message.refusal)
    if message.audio is not None and message.audio.transcript:
        assembly.add_content(choice, message.audio.transcript)
    if message.images:
        text = content_text([_decoded(image) for image in message.images])
        if text:
            assembly.add_content(choice, f"\n{text}" if choice.content else text)
    if message.tool_calls:
        pieces = map(_piece, message.tool_calls)
        if is_delta:
            choice.calls.add_delta(pieces, is_cut=assembly.reads_reduced)
        else:
            for piece in pieces:
                choice.calls.add(None, piece, is_cut=assembly.reads_reduced)
    if message.function_call is not None and choice.calls.has_only(_LEGACY_CALL):
        _add_legacy_call(assembly, choice, message.function_call)
    if message.error is not _ABSENT:
        _add_error(assembly, message.error)


def _thoughts(blocks: list[Thought] | None) -> str | None:
    if not blocks:
        return None
    texts = [block.text or block.summary or block.thinking for block in blocks]
    return joined((text for text in texts if text), "\n")


def _piece(call: Call) -> CallPiece:
    function = call.function or call.custom
    if function is None:
        return CallPiece(call.index, call.id, call.name, call.arguments)
    arguments = function.arguments if function.input is None else function.input
    return CallPiece(call.index, call.id, function.name, arguments)


def _add_legacy_call(assembly: Assembly, choice: ChoiceParts, function: Function) -> None:
    known = choice.calls.at(_LEGACY_CALL)
    piece = CallPiece(_LEGACY_CALL, None, function.name, function.arguments)
    choice.calls.add(known, piece, is_cut=assembly.reads_reduced)


def _add_usage(assembly: Assembly, usage: msgspec.Raw) -> bool:
    if (document := bytes(usage)) in _EMPTY:
        return False
    assembly.add_usage(document)
    return True


def _add_error(assembly: Assembly, error: msgspec.Raw) -> bool:
    if bytes(error) in _EMPTY:
        return False
    text = error_text(_decoded(error))
    if text is None or text == "true":  # what is true is told beside it
        return False
    assembly.set_error(text)
    return True


def _decoded(raw: msgspec.Raw) -> object:
    try:
        return decode_json(bytes(raw), replace_invalid_utf8=True)
    except NotJSON as error:
        return f"[{error}]"


def _fit_choices(choices: list[object]) -> list[Choice] | None:
    """Return the choices that are some; None where there are elements, but no choice."""
    fitted = [
        Choice(
            index=_index(value.get("index")),
            delta=_fit_message(value.get("delta")),
            message=_fit_message(value.get("message")),
            text=_text(value.get("text")),
            reasoning=reasoning_of(value) or None,
            finish_reason=_text(value.get("finish_reason")),
            usage=_raw(value.get("usage")),
            error=_raw(value.get("error")),
        )
        for value in choices
        if isinstance(value, dict)
    ]
    return fitted if fitted or not choices else None


def _fit_vectors(data: list[object]) -> list[Vector]:
    """Say of the elements only whether they hold a vector."""
    has_vector = any(isinstance(value, dict) and value.get("embedding") for value in data)
    return [Vector(msgspec.Raw(b"1"))] if has_vector else []


def _fit_message(value: object) -> Message | None:
    if not isinstance(value, dict):
        return None if value is None else Message(content=_content(value))
    content, calls = value.get("content"), value.get("tool_calls")
    if isinstance(calls, dict):
        calls = [calls]
    images, audio = value.get("images"), value.get("audio")
    return Message(
        content=_content(content),
        reasoning_content=reasoning_of(value) or _thought(content),
        refusal=_text(value.get("refusal")),
        tool_calls=[_fit_call(call) for call in calls] if isinstance(calls, list) else None,
        function_call=_fit_function(value.get("function_call")),
        images=[_raw(image) for image in images] if isinstance(images, list) else None,
        audio=Audio(_text(audio.get("transcript"))) if isinstance(audio, dict) else None,
        error=_raw(value.get("error")),
    )


def _fit_call(value: object) -> Call:
    if not isinstance(value, dict):
        return Call(function=Function(arguments=_text(value)))
    return Call(
        index=_index(value.get("index")),
        id=_text(value.get("id")),
        function=_fit_function(value.get("function")),
        custom=_fit_function(value.get("custom")),
        name=_text(value.get("name")),
        arguments=_text(value.get("arguments")),
    )


def _fit_function(value: object) -> Function | None:
    if not isinstance(value, dict):
        return None if value is None else Function(name=_text(value))
    return Function(
        name=_text(value.get("name")),
        arguments=_text(value.get("arguments")),
        input=_text(value.get("input")),
    )


def _content(value: object) -> str | None:
    return content_text(value) if isinstance(value, list | dict) else _text(value)


def _thought(value: object) -> str | None:
    return thought_text(value) if isinstance(value, list) else None


def _text(value: object) -> str | None:
    """Return a string as it is, and any other value but null as JSON: an id 7 becomes "7"."""
    return value if value is None or isinstance(value, str) else encode_json(value)


def _index(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _raw(value: object) -> msgspec.Raw:
    return _ABSENT if value is None else msgspec.Raw(encode_json(value).encode())
