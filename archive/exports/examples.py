"""Conversations with their answers, as they were asked: what a training set is made of.

It takes capture `full`, whose rows hold all messages, tools and parameters. A call repeats the
whole conversation so far, so the last answered call of a session is the session. What cannot be an
example is left out and counted by its reason.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from open_llm_proxy.archive.tables.connection import Tables

COLUMNS = (
    "endpoint", "messages_json", "params_json", "tools_sha256", "text_sha256", "content",
    "tool_calls", "finish_reason", "reasoning_content",
)  # fmt: skip
"""What has to be loaded of raw objects for it."""

CHAT = "/v1/chat/completions"
ROWS_AT_ONCE = 200
NOT_FULL = "without their messages (LOG_CAPTURE was not full)"
_CUT = re.compile(r"…\[cut: \d+ [a-z ]+ in all\]")
_MEDIA = re.compile(r"\[[\w.+-]+(?:/[\w.+-]+)? \d+ bytes\]")


class Unusable(Exception):
    """A call that cannot be an example; the reason is counted."""


@dataclass(frozen=True, slots=True)
class Example:
    """`messages` end with the assistant's answer; `tools` and `params` are what the client sent."""

    session_id: str | None
    request_id: str
    model: str | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    params: dict[str, Any]


@dataclass
class Left:
    """What was left out, by reason, and how many examples there are."""

    reasons: Counter[str] = field(default_factory=Counter)
    written: int = 0


def examples(tables: Tables, per: str, left: Left) -> Iterator[Example]:
    """The examples among the calls that `tables` shows, one a session or one a turn.

    `per` is "session" or "turn". Calls that did not end well are no examples.
    """
    last = "QUALIFY row_number() OVER (PARTITION BY session_key ORDER BY started DESC) = 1"
    statement = (
        "SELECT session_id, request_id, model, endpoint, messages_json, params_json, tools_sha256, "
        f"content, tool_calls FROM turns WHERE outcome = 'ok' AND endpoint = '{CHAT}' "
        f"{last if per == 'session' else ''} ORDER BY started, request_id"
    )
    texts = stored_texts(tables)
    result = tables.connection.cursor().execute(statement)
    names = [column[0] for column in result.description or ()]
    while rows := result.fetchmany(ROWS_AT_ONCE):
        for row in rows:
            try:
                yield _example(dict(zip(names, row, strict=True)), texts)
            except Unusable as reason:
                left.reasons[str(reason)] += 1


def stored_texts(tables: Tables) -> Callable[[str], str | None]:
    """Finds the text of a hash among the `text` rows of the days that are read."""

    @lru_cache(maxsize=512)
    def text(digest: str) -> str | None:
        found = tables.connection.cursor().execute(
            "SELECT content FROM all_rows WHERE type = 'text' AND text_sha256 = ? LIMIT 1", [digest]
        )
        rows = found.fetchall()
        return rows[0][0] if rows else None

    return text


def _example(row: dict[str, Any], texts: Callable[[str], str | None]) -> Example:
    if row["messages_json"] is None:
        raise Unusable(NOT_FULL)

    def named(value: dict[str, Any]) -> Any:
        if list(value) != ["text_sha256"]:
            return value
        text = texts(str(value["text_sha256"]))
        if text is None:
            raise Unusable("with a long text that is not among the days that were read")
        return text

    try:
        messages = json.loads(row["messages_json"], object_hook=named)
        params = json.loads(row["params_json"] or "{}", object_hook=named)
        tools = json.loads(texts(row["tools_sha256"]) or "null") if row["tools_sha256"] else []
    except (ValueError, RecursionError):
        raise Unusable("whose messages or tools were cut") from None
    if tools is None:
        raise Unusable("with tools that are not among the days that were read")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise Unusable("whose messages are no list")
    messages = [_message(item) for item in messages]
    messages.append(_answer(row))
    if _CUT.search(json.dumps(messages, ensure_ascii=False)):
        raise Unusable("whose texts were cut")
    return Example(row["session_id"], row["request_id"], row["model"], messages, tools, params)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its content as one text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        if any(part.get("type") != "text" for part in parts):
            raise Unusable("with images, sounds or files")
        content = "\n".join(str(part.get("text", "")) for part in parts)
    if isinstance(content, str) and _MEDIA.fullmatch(content):
        raise Unusable("with images, sounds or files")
    kept = {"role": message.get("role"), "content": content}
    kept |= {name: message[name] for name in ("name", "tool_call_id") if message.get(name)}
    if message.get("tool_calls"):
        kept["tool_calls"] = message["tool_calls"]
    return kept


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": row["content"]}
    if row["tool_calls"]:
        answer["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"] or "{}"},
            }
            for call in row["tool_calls"]
        ]
    if not answer["content"] and not row["tool_calls"]:
        raise Unusable("without an answer")
    return answer
