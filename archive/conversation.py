"""A session's rows as the conversation that they are: who said what, tools included.

Each call repeats the whole conversation so far, and its row says what is new in it: the user's
last message, or what tools gave back. The answer follows in the response row. Put in order, with
what was shown already left out, they read as the conversation went.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from open_llm_proxy.archive.rows import LogRow

Speaker = Literal["user", "tool", "reasoning", "assistant", "tool_call", "error"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One thing said. `name` is the tool of a `tool_call` and of the `tool` that answers it."""

    speaker: Speaker
    text: str
    row: LogRow
    name: str | None = None
    tool_call_id: str | None = None

    def as_fields(self) -> dict[str, Any]:
        """The utterance as one object of JSON."""
        return {
            "timestamp": self.row.timestamp,
            "request_id": self.row.request_id,
            "session_id": self.row.session_id,
            "model": self.row.model,
            "speaker": self.speaker,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "text": self.text,
        }


def conversation(rows: Iterable[LogRow]) -> Iterator[Utterance]:
    """What the rows of one session say, in order.

    A call whose answer is not there yet ends with its question.
    """
    calls = sorted(rows, key=lambda row: row.order)
    answers = {row.request_id: row for row in calls if row.type == "response"}
    tools: dict[str, str] = {}
    last_user_message: str | None = None
    for row in calls:
        if row.type == "request":
            yield from _tool_results(row, tools)
            message = row.user_message_this_turn
            if message and (message != last_user_message or not row.tool_results_this_turn):
                yield Utterance("user", message, row)
            last_user_message = message
            answer = answers.pop(row.request_id, None)
            if answer is not None:
                yield from _answer(answer, tools)
    for row in answers.values():  # their requests lie on a day that is not read
        yield from _answer(row, tools)


def _tool_results(row: LogRow, tools: dict[str, str]) -> Iterator[Utterance]:
    for result in row.tool_results_this_turn or ():
        name = tools.get(result.tool_call_id or "")
        yield Utterance("tool", result.content or "", row, name, result.tool_call_id)


def _answer(row: LogRow, tools: dict[str, str]) -> Iterator[Utterance]:
    if row.reasoning_content:
        yield Utterance("reasoning", row.reasoning_content, row)
    if row.content:
        yield Utterance("assistant", row.content, row)
    for call in row.tool_calls or ():
        name = call.name or "?"
        tools[call.id or ""] = name
        yield Utterance("tool_call", call.arguments or "", row, name, call.id)
    if row.outcome != "ok":
        text = row.error or ""
        yield Utterance("error", f"{row.outcome}: {text}" if text else str(row.outcome), row)
