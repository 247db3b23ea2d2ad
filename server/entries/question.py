"""What a request row says about the question: counts, the user's words, tools' results.

Everything here reads a client's body that nobody has checked: lists that are no lists, content
of odd types. What is understood is logged, what is not is kept as it came, as JSON, and nothing
raises for it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from open_llm_proxy.archive.entry import RequestFields, ToolResult
from open_llm_proxy.archive.text import cut_mark
from open_llm_proxy.server.entries.capture import MAX_TEXT_CHARACTERS, Capture, logged_text
from open_llm_proxy.server.entries.stored_request import (
    SYSTEM_ROLES,
    store_request,
    stored_tools,
    without_data,
)
from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.redaction.redactor import TextRedactor
from open_llm_proxy.server.transcript.content_parts import content_text

_TOOL_ROLES = ("tool", "function")
_MAX_TOOL_RESULTS = 1000
_MAX_RESULTS_CHARACTERS = 4 * 1024 * 1024
_MAX_LABEL_CHARACTERS = 512
_DECODED_BEYOND = 65_536


class ReadQuestion(NamedTuple):
    """The question's part of a request row, redacted and cut to its caps.

    `texts` are those that the row names, by hash.
    """

    fields: RequestFields = RequestFields()
    texts: Mapping[str, str] = MappingProxyType({})


def read_question(
    fields: dict[str, Any],
    endpoint: str,
    redactor: TextRedactor,
    capture: Capture,
    model: str | None = None,
) -> ReadQuestion:
    """Read the question from a decoded body of any of the relayed endpoints.

    `model` is the one that the row tells: the same in the body need not be stored again.
    """
    messages = _messages(fields)
    tools = fields.get("tools")
    message_count = len(messages) or None
    tools_count = len(tools) if isinstance(tools, list) else 0
    previous = fields.get("previous_response_id")
    previous_id = capture.labels.logged(previous if isinstance(previous, str) else None, redactor)
    if not capture.keeps_text:
        return ReadQuestion(
            RequestFields(
                message_count=message_count,
                tools_count=tools_count,
                previous_response_id=previous_id,
            )
        )
    said = _sorted_by_speaker(messages)
    first = last = next(filter(None, map(_text, said.user)), None)
    if len(said.user) > 1:
        last = next(filter(None, map(_text, reversed(said.user))), None)
    question = this_turn = _logged_question(first, redactor, capture)
    if last != first:
        this_turn = _logged_question(last, redactor, capture)
    tools_text = stored_tools(fields, redactor)
    tools_sha256 = capture.hashes.of(tools_text) if tools_text is not None else None
    read = RequestFields(
        message_count=message_count,
        tools_count=tools_count,
        user_question=question,
        user_message_this_turn=this_turn,
        tool_results_this_turn=_tool_results(said.tools, redactor, capture),
        system_sha256=_system_sha256(fields, said.system, redactor, capture),
        tools_sha256=tools_sha256,
        previous_response_id=previous_id,
    )
    if not capture.keeps_messages:
        return ReadQuestion(read)
    stored = store_request(fields, endpoint, model, redactor, capture.hashes)
    if tools_text is not None and tools_sha256 is not None:
        stored.texts[tools_sha256] = tools_text
    return ReadQuestion(
        msgspec.structs.replace(
            read, messages_json=stored.messages_json, params_json=stored.params_json
        ),
        stored.texts,
    )


def unread_question(body: bytes, redactor: TextRedactor, capture: Capture) -> ReadQuestion:
    """What is logged of a body that is no call at all: its beginning, as the user's words."""
    if not body or not capture.keeps_text:
        return ReadQuestion()
    cap = capture.caps.user_question
    head = body[: 4 * (cap or MAX_TEXT_CHARACTERS) + _DECODED_BEYOND]
    length = cut_mark(len(body), "bytes") if len(head) < len(body) else None
    text = head.decode("utf-8", "replace")
    return ReadQuestion(RequestFields(user_question=logged_text(text, redactor, cap, length)))


def _messages(fields: dict[str, Any]) -> list[Any]:
    """The messages of a chat; a prompt or input of the other endpoints as one user message."""
    for name in ("messages", "input", "prompt"):
        value = fields.get(name)
        if isinstance(value, list) and any(isinstance(item, dict) for item in value[:1000]):
            return value
        if value is not None and value != []:
            return [{"role": "user", "content": value}]
    return []


class _Said(NamedTuple):
    """Contents of messages, by who said it; of tools those since the model last spoke."""

    user: list[Any]
    system: list[Any]
    tools: list[tuple[Any, Any]]  # with the ids of their calls


def _sorted_by_speaker(messages: list[Any]) -> _Said:
    said = _Said([], [], [])
    for message in messages:
        if not isinstance(message, dict):
            if isinstance(message, str):
                said.user.append(message)
            continue
        role, kind = message.get("role"), message.get("type")
        if role == "user":
            said.user.append(message.get("content"))
        elif role in SYSTEM_ROLES:
            said.system.append(message.get("content"))
        if not isinstance(kind, str):
            kind = ""
        if role == "assistant" or kind.endswith("_call"):
            said.tools.clear()
        elif role in _TOOL_ROLES:
            said.tools.append((message.get("tool_call_id"), message.get("content")))
        elif kind.endswith("_call_output"):
            said.tools.append((message.get("call_id"), message.get("output")))
    return said


def _logged_question(text: str | None, redactor: TextRedactor, capture: Capture) -> str | None:
    return None if text is None else logged_text(text, redactor, capture.caps.user_question)


def _text(content: Any) -> str | None:
    """A message's content as people read it; content of an unknown shape as JSON."""
    if isinstance(content, str):
        return content
    is_known = content is None or _is_parts(content)
    return content_text(content) if is_known else encode_json(without_data(content))


def _is_parts(content: Any) -> bool:
    parts = content if isinstance(content, list) else [content]
    return all(
        isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("type"), str))
        for part in parts
    )


def _tool_results(
    sent: list[tuple[Any, Any]], redactor: TextRedactor, capture: Capture
) -> list[ToolResult] | None:
    """What tools gave back, the newest first in getting room."""
    if not sent:
        return None
    results: list[ToolResult] = []
    room = _MAX_RESULTS_CHARACTERS
    cap = capture.caps.tool_result or room
    for call_id, content in sent[: -_MAX_TOOL_RESULTS - 1 : -1]:
        text = _text(content)
        logged = logged_text(text, redactor, max(1, min(cap, room))) if text else text
        room -= len(logged or "")
        results.append(ToolResult(_label(call_id, redactor), logged))
    if len(sent) > len(results):
        results.append(ToolResult(None, cut_mark(len(sent), "tool results")))
    return results[::-1]


def _label(value: Any, redactor: TextRedactor) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else encode_json(value)
    return logged_text(text, redactor, _MAX_LABEL_CHARACTERS)


def _system_sha256(
    fields: dict[str, Any], messages: list[Any], redactor: TextRedactor, capture: Capture
) -> str | None:
    """The hash of the system texts as they would be stored, joined by blank lines.

    They are the responses API's `instructions` and the messages of the system.
    """
    instructions = fields.get("instructions")
    if isinstance(instructions, str):
        messages = [instructions, *messages]
    texts: list[str] = []
    room = MAX_TEXT_CHARACTERS
    for text in map(_text, messages):
        if text and room > 0:
            texts.append(logged_text(text, redactor, room))
            room -= len(text)
    return capture.hashes.of("\n\n".join(texts)) if texts else None
