"""A session of the log as it can be asked again: its questions, tools, parameters and results.

It is made of the rows that `LOG_CAPTURE=full` writes. The longest request of a session holds the
whole conversation; results of tools are taken from all of its requests.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from open_llm_proxy.server.transcript.content_parts import content_text

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
# What of a row is read.
COLUMNS = (
    *("type", "timestamp", "request_id", "session_id", "endpoint", "model", "messages_json"),
    *("params_json", "tools_sha256", "text_sha256", "content", "tool_calls", "prompt_tokens"),
    *("completion_tokens", "latency_ms"),
)
# Parameters that belong to the call and not to what is asked.
NOT_ASKED_AGAIN = frozenset(
    {"stream", "stream_options", "user", "session_id", "n", "store", "metadata", "service_tier"}
)
_TEXT_NAME = re.compile(r'"text_sha256": ?"([0-9a-f]{64})"')


class NoRecording(ValueError):
    """The rows cannot be asked again; the message says why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded session.

    `opening` is what stands before the first question, `questions` the user's messages up to each
    answer, `results` what tools gave back for each call (see `call_key`), in order.
    """

    session_id: str
    model: str
    opening: list[Json]
    questions: list[list[Json]]
    answers: list[str]
    functions: list[Json]
    params: Json
    results: dict[str, list[str]]
    turns: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    started_at: str = ""

    @property
    def question(self) -> str:
        """The first question, for people."""
        return question_text(self.questions[0])

    @property
    def sha256(self) -> str:
        """Equal for two recordings that ask the same."""
        asked = [self.opening, self.questions, self.functions, self.params, self.results]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def record(self) -> Json:
        """The session as a record of a grid, to be set beside others."""
        answer = self.answers[-1] if self.answers else ""
        return {
            "cell": "recorded",
            "question_id": self.session_id,
            "status": "recorded",
            "answer": answer,
            "answers": self.answers,
            "error": None,
            "session_id": self.session_id,
            "model": self.model,
            "question": self.question,
            "turns": self.turns,
            "tool_calls": self.tool_calls,
            "not_recorded": 0,
            "trial": 1,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "seconds": self.seconds,
            "started_at": self.started_at,
        }


def call_key(name: str, arguments: str) -> str:
    """Equal for the same call of a tool, however its arguments are spelt."""
    try:
        arguments = json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = arguments.strip()
    return f"{name} {arguments}"


def question_text(messages: Iterable[Json]) -> str:
    texts = [content_text(m.get("content")) for m in messages if m.get("role") == "user"]
    return next((text for text in reversed(texts) if text), "")


def make_recording(
    session_id: str, rows: Iterable[Mapping[str, Any]], texts: Mapping[str, str]
) -> Recording:
    """The recording of a session's rows; `texts` has what they name by hash.

    Raises NoRecording.
    """
    requests = [r for r in rows if r["type"] == "request" and r.get("endpoint") == CHAT]
    answers = {r.get("request_id"): r for r in rows if r["type"] == "response"}
    if not requests:
        raise NoRecording(f"the session {session_id} has no chat completions")
    full = [r for r in requests if r.get("messages_json")]
    if not full:
        raise NoRecording(
            f"the session {session_id} was not logged with LOG_CAPTURE=full, which keeps what is "
            "needed to ask it again"
        )
    conversations = [_messages(row, texts) for row in full]
    longest = max(range(len(full)), key=lambda n: len(conversations[n]))
    row, messages = full[longest], conversations[longest]
    final = answers.get(row.get("request_id"), {})
    said = {"role": "assistant", "content": final.get("content") or "", **_calls_of(final)}
    opening, questions, replies = _exchanges([*messages, said])
    if not questions:
        raise NoRecording(f"the session {session_id} asks no question")
    own = [answers.get(r.get("request_id"), {}) for r in requests]
    tools = texts.get(row.get("tools_sha256") or "", "[]")
    params = json.loads(row.get("params_json") or "{}", object_hook=_named(texts))
    return Recording(
        session_id=session_id,
        model=str(row.get("model")),
        opening=opening,
        questions=questions,
        answers=replies,
        functions=[t for t in json.loads(tools) if isinstance(t, dict)],
        params={k: v for k, v in params.items() if k not in NOT_ASKED_AGAIN},
        results=_results(conversations),
        turns=len(requests),
        tool_calls=sum(len(a.get("tool_calls") or ()) for a in own),
        prompt_tokens=sum(a.get("prompt_tokens") or 0 for a in own),
        completion_tokens=sum(a.get("completion_tokens") or 0 for a in own),
        seconds=sum(a.get("latency_ms") or 0 for a in own) / 1000,
        started_at=str(requests[0].get("timestamp")),
    )


def text_names(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The hashes of the texts that rows name and that are rows of their own."""
    written = [row.get(name) or "" for row in rows for name in ("messages_json", "params_json")]
    names = {name for text in written for name in _TEXT_NAME.findall(text)}
    return names | {str(row["tools_sha256"]) for row in rows if row.get("tools_sha256")}


def _named(texts: Mapping[str, str]) -> Any:
    """Puts in what a row names by its hash; see LOGGING.md, "Ask a call again"."""

    def put_in(value: Json) -> Any:
        if list(value) == ["text_sha256"]:
            return texts.get(str(value["text_sha256"]), value)
        return value

    return put_in


def _messages(row: Mapping[str, Any], texts: Mapping[str, str]) -> list[Json]:
    messages = json.loads(row["messages_json"], object_hook=_named(texts))
    return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _calls_of(answer: Mapping[str, Any]) -> Json:
    calls = answer.get("tool_calls")
    return {"tool_calls": calls} if calls else {}


def _exchanges(messages: list[Json]) -> tuple[list[Json], list[list[Json]], list[str]]:
    """The messages before the first question, the questions, and the answers to them."""
    opening: list[Json] = []
    questions: list[list[Json]] = []
    answers: list[str] = []
    is_asking = False
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            if questions and not message.get("tool_calls"):
                answers += [""] * (len(questions) - len(answers))
                answers[-1] = content_text(message.get("content")) or ""
            is_asking = False
        elif role == "tool":
            is_asking = False
        elif not questions and role != "user":
            opening.append(message)
        else:
            if not is_asking:
                questions.append([])
            questions[-1].append(message)
            is_asking = True
    return opening, questions, answers


def _results(conversations: Iterable[list[Json]]) -> dict[str, list[str]]:
    """What each call gave back. A call is known by its id; later requests repeat it."""
    results: dict[str, list[str]] = {}
    seen: set[tuple[str, str]] = set()
    for messages in conversations:
        keys: dict[str, str] = {}
        for message in messages:
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                arguments = str(function.get("arguments") or "")
                keys[str(call.get("id"))] = call_key(str(function.get("name")), arguments)
            identity = str(message.get("tool_call_id"))
            if message.get("role") == "tool" and identity in keys:
                key = keys[identity]
                if (identity, key) not in seen:
                    seen.add((identity, key))
                    text = content_text(message.get("content")) or ""
                    results.setdefault(key, []).append(text)
    return results
