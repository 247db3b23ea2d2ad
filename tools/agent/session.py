"""The loop of one session: ask the model, run the tools it asks for, until it answers.

A session ends in one of five ways, which the transcript's `status` names: `answered`;
`turn_limit`, when the last turn that is allowed still asks for tools; `no_progress`, when turns
repeat calls and results that were all seen before; `failed`, with the sentence in `error`; and
`interrupted`.
"""

import asyncio
import json
import time
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from open_llm_proxy.server.transcript.content_parts import content_text

from .content import capped
from .llm import Model, ModelError
from .mcp_connection import ToolServerError
from .mcp_tools import ToolResult, ToolServer
from .provenance import sha256, tools_sha256
from .recorded_tools import RecordedTools, names_of
from .reply import PieceKind
from .settings import InputError, SessionSettings, SystemPrompt
from .transcript import ToolCall, Transcript, Turn, now

# Turns in a row that brought nothing new: with two, the same call has been made three times.
MAX_STALLED_TURNS = 2

Messages = list[dict[str, Any]]


class View(Protocol):
    """Who watches a session: `render` shows it to a person, a grid counts it."""

    def started(self, transcript: Transcript) -> None: ...
    def waiting(self, turn: Turn) -> None: ...
    def piece(self, kind: PieceKind, text: str) -> None: ...
    def replied(self, turn: Turn) -> None: ...
    def tool_finished(self, turn: Turn, call: ToolCall) -> None: ...
    def finished(self, transcript: Transcript) -> None: ...


async def run_session(settings: SessionSettings, view: View, path: Path | None) -> Transcript:
    """Run one session to its end and return its record, saved to `path` after every turn.

    Failures of the model or of the tool server are in the record. Raises InputError if `path`
    cannot be written, before anything is sent; cancellation is recorded and passed on.
    """
    transcript = Transcript(settings, path, started_at=now())
    save_first(transcript)
    async with aclosing(Model(settings)) as model:
        await run_recorded(settings, model, view, transcript)
    return transcript


async def run_recorded(
    settings: SessionSettings, model: Model, view: View, transcript: Transcript
) -> None:
    """Run the session; however it ends, that is in the transcript, saved and shown."""
    begun = time.monotonic()
    try:
        async with tools_of(settings) as server:
            transcript.provenance.proxy = await model.proxy_version()
            await Session(settings, model, server, view, transcript).run()
    except (ModelError, ToolServerError) as error:
        transcript.status, transcript.error = "failed", str(error)
    except asyncio.CancelledError:
        transcript.status, transcript.error = "interrupted", "Interrupted."
        raise
    except BaseException as error:
        transcript.status, transcript.error = "failed", f"The runner broke off: {error!r}."
        raise
    finally:
        transcript.seconds = time.monotonic() - begun
        transcript.save()
        view.finished(transcript)


def tools_of(settings: SessionSettings) -> ToolServer | RecordedTools:
    """Where the session's calls of tools go."""
    if settings.recording is None:
        return ToolServer(settings)
    live = ToolServer(settings) if settings.live_tools else None
    return RecordedTools(settings.recording, live)


def save_first(transcript: Transcript) -> None:
    try:
        transcript.save()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--transcript: cannot write {transcript.path}: {reason}.") from error


class Session:
    """One conversation. `run` fills the transcript and tells the view."""

    def __init__(
        self,
        settings: SessionSettings,
        model: Model,
        server: ToolServer | RecordedTools,
        view: View,
        transcript: Transcript,
    ) -> None:
        self._settings = settings
        self._model = model
        self._server = server
        self._view = view
        self._transcript = transcript

    async def run(self) -> None:
        """Raises ModelError and ToolServerError."""
        messages = self._opening()
        recording = self._settings.recording
        asked = {"role": "user", "content": self._settings.question}
        questions = recording.questions if recording is not None else [[asked]]
        self._view.started(self._transcript)
        for question in questions:
            messages += question
            answer = await self._answer(messages)
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer})
            self._transcript.answers.append(answer)
            self._transcript.save()
        self._transcript.status = "answered"

    async def _answer(self, messages: Messages) -> str | None:
        """The answer to what `messages` end with, None where the session stops without one."""
        seen: set[tuple[str, str, str | None]] = set()
        stalled = 0
        for number in range(1, self._settings.max_turns + 1):
            turn = await self._ask(messages)
            if not turn.tool_calls:
                if turn.content.strip():
                    return turn.content
                ended = f" (finish reason: {turn.finish_reason})" if turn.finish_reason else ""
                self._stop("failed", f"The model gave neither an answer nor a tool call{ended}.")
                return None
            if number == self._settings.max_turns:
                break
            await self._run_tools(turn)
            self._transcript.save()
            messages += turn_messages(turn)
            fresh = {signature(call) for call in turn.tool_calls} - seen
            stalled = 0 if fresh else stalled + 1
            seen |= fresh
            if stalled == MAX_STALLED_TURNS:
                why = f"The last {stalled} turns only repeated tool calls whose results were known."
                self._stop("no_progress", why)
                return None
        self._stop("turn_limit", f"No answer within {self._settings.max_turns} turns.")
        return None

    def _opening(self) -> Messages:
        """What stands before the first question; it and the tools go into the transcript."""
        transcript, server, recording = self._transcript, self._server, self._settings.recording
        transcript.tools = names_of(server.functions)
        transcript.notes = server.notes
        transcript.provenance.mcp_server = server.version
        transcript.provenance.tools_sha256 = tools_sha256(server.functions)
        prompt = self._settings.system_prompt
        if prompt is None and recording is not None:
            transcript.system_prompt_source = "recorded session"
            texts = [content_text(message.get("content")) or "" for message in recording.opening]
            transcript.system_prompt = "\n".join(texts)
            messages: Messages = [*recording.opening]
        else:
            if prompt is None and server.instructions:
                prompt = SystemPrompt(server.instructions, "mcp server")
            transcript.system_prompt = prompt.text if prompt else None
            transcript.system_prompt_source = prompt.source if prompt else None
            messages = [{"role": "system", "content": prompt.text}] if prompt else []
        if transcript.system_prompt:
            transcript.provenance.system_sha256 = sha256(transcript.system_prompt)
        return messages

    async def _ask(self, messages: Messages) -> Turn:
        turn = Turn(number=len(self._transcript.turns) + 1, started_at=now())
        self._view.waiting(turn)
        begun = time.monotonic()
        reply = await self._model.reply(messages, self._server.functions, self._view.piece)
        turn.seconds = round(time.monotonic() - begun, 3)
        turn.content, turn.reasoning = reply.content, reply.reasoning
        turn.finish_reason, turn.usage = reply.finish_reason, reply.usage
        turn.tool_calls, turn.retries = reply.tool_calls, reply.retries
        turn.proxy_request_id = reply.proxy_request_id
        turn.proxy_warning = reply.proxy_warning
        self._transcript.turns.append(turn)
        self._view.replied(turn)
        return turn

    async def _run_tools(self, turn: Turn) -> None:
        """All calls of a turn at once; one that ends the session takes the others with it."""
        try:
            async with asyncio.TaskGroup() as calls:
                for call in turn.tool_calls:
                    calls.create_task(self._run_tool(turn, call))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run_tool(self, turn: Turn, call: ToolCall) -> None:
        begun = time.monotonic()
        try:
            result = await self._server.call(call.name, parsed_arguments(call.arguments))
        except ValueError as error:
            result = ToolResult(f"The call was not made: {error}", True)
        call.seconds = round(time.monotonic() - begun, 3)
        call.result = capped(result.text, self._settings.max_result_chars)
        call.result_chars = len(result.text)
        call.is_error, call.not_recorded = result.is_error, result.not_recorded
        self._view.tool_finished(turn, call)

    def _stop(self, status: Any, why: str) -> None:
        self._transcript.status, self._transcript.error = status, why


def parsed_arguments(text: str) -> dict[str, Any]:
    """The arguments that a model wrote. Raises ValueError with what the model needs to know."""
    if not text.strip():
        return {}  # how many models call a tool without parameters
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its arguments are not valid JSON ({error}): {text[:200]}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"its arguments are not a JSON object: {text[:200]}")
    return arguments


def turn_messages(turn: Turn) -> Messages:
    """A turn as it goes back to the model: no reasoning, and one result for every call.

    Arguments that are no JSON object go back as ``{}``: common servers read them again for
    their chat template and would refuse every further call of the conversation.
    """
    assistant = {
        "role": "assistant",
        "content": turn.content or None,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": sendable_arguments(call.arguments)},
            }
            for call in turn.tool_calls
        ],
    }
    return [assistant, *result_messages(turn.tool_calls)]


def result_messages(calls: Iterable[ToolCall]) -> Messages:
    return [{"role": "tool", "tool_call_id": c.id, "content": c.result} for c in calls]


def sendable_arguments(text: str) -> str:
    try:
        parsed_arguments(text)
    except ValueError:
        return "{}"
    return text.strip() or "{}"


def signature(call: ToolCall) -> tuple[str, str, str | None]:
    """Equal for the same call with the same result, however its arguments are spelt."""
    try:
        arguments = json.dumps(parsed_arguments(call.arguments), sort_keys=True)
    except ValueError:
        arguments = call.arguments
    return call.name, arguments, call.result
