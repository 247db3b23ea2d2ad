"""A session's turns as the conversation that they are: who said what, tools included.

Each call repeats the whole conversation so far, and its row says what is new in it: the user's
last message, or what tools gave back. The answer stands beside it. Put in order, with what was
shown already left out, they read as the conversation went.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Speaker = Literal["user", "tool", "reasoning", "assistant", "tool_call", "error"]
Turn = Mapping[str, Any]
"""A row of the view `turns`."""

COLUMNS = (
    "user_question", "user_message_this_turn", "tool_results_this_turn", "reasoning_content",
    "content", "tool_calls", "error", "status", "ttft_ms", "prompt_tokens", "completion_tokens",
    "total_tokens", "cost_usd", "finish_reason", "provider", "endpoint",
)  # fmt: skip
"""What has to be loaded of raw objects for it."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One thing said. `name` is the tool of a `tool_call` and of the `tool` that answers it."""

    speaker: Speaker
    text: str
    turn: Turn
    name: str | None = None
    tool_call_id: str | None = None

    def as_fields(self) -> dict[str, Any]:
        """The utterance as one object of JSON."""
        is_asked = self.speaker in ("user", "tool")
        return {
            "timestamp": self.turn["started" if is_asked else "ended"],
            "request_id": self.turn["request_id"],
            "session_id": self.turn["session_id"],
            "model": self.turn["model"],
            "speaker": self.speaker,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "text": self.text,
        }


def conversation(turns: Iterable[Turn]) -> Iterator[Utterance]:
    """What the turns of one session say, in their order.

    A call whose answer is not there yet ends with its question.
    """
    tools: dict[str, str] = {}
    last_message: str | None = None
    for turn in turns:
        results = turn["tool_results_this_turn"] or ()
        for result in results:
            call_id = result["tool_call_id"]
            yield Utterance(
                "tool", result["content"] or "", turn, tools.get(call_id or ""), call_id
            )
        message = turn["user_message_this_turn"]
        if message and (message != last_message or not results):
            yield Utterance("user", message, turn)
        last_message = message
        yield from _answer(turn, tools)


def _answer(turn: Turn, tools: dict[str, str]) -> Iterator[Utterance]:
    if turn["reasoning_content"]:
        yield Utterance("reasoning", turn["reasoning_content"], turn)
    if turn["content"]:
        yield Utterance("assistant", turn["content"], turn)
    for call in turn["tool_calls"] or ():
        name = call["name"] or "?"
        tools[call["id"] or ""] = name
        yield Utterance("tool_call", call["arguments"] or "", turn, name, call["id"])
    if turn["outcome"] not in ("ok", "open"):
        text = turn["error"] or ""
        yield Utterance(
            "error", f"{turn['outcome']}: {text}" if text else str(turn["outcome"]), turn
        )
