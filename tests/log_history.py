"""A log of many calls in a folder, as a deployment leaves it: seeded, by the real entry makers.

Sessions of several turns with tools, three apps, three models, failures, calls without usage, calls
over midnight and one that is still open. `write_history` returns what the log holds.
"""

import hashlib
import heapq
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from open_llm_proxy.archive.entry import (
    IdentityFields,
    LoggedToolCall,
    Outcome,
    RequestFields,
    ResponseFields,
    RowType,
    ToolResult,
    head_line,
)
from open_llm_proxy.server.entries.line import encoded, row_of

FIRST_DAY = datetime(2026, 4, 7, tzinfo=UTC)
DAY_MS = 86_400_000
WINDOW_MS = 300_000
APPS = ("https://parks.example", "https://water.example/map", None)
MODELS = ("kimi", "qwen3", "glm-4.7")
OUTCOMES: tuple[Outcome, ...] = ("ok",) * 18 + ("upstream_error", "upstream_timeout")  # type: ignore[assignment]
QUESTIONS = ("How many parks are there?", "Show me the rivers of Oregon", "Où est la forêt ?")


@dataclass
class History:
    """What was written."""

    calls: int = 0
    sessions: set[str] = field(default_factory=set)
    tokens: int = 0
    failed: int = 0
    open: int = 0
    objects: list[Path] = field(default_factory=list)


@dataclass
class _Queue:
    """Rows of one process, and where they go."""

    folder: Path
    queue_id: str
    seq: int = 0
    window: int = -1
    lines: list[bytes] = field(default_factory=list)
    first: int = 1

    def append(self, timestamp_ms: int, kind: RowType, *parts: object) -> Path | None:
        body = row_of(timestamp_ms, kind, *map(encoded, parts)).body  # type: ignore[arg-type]
        written = self.flush() if timestamp_ms // WINDOW_MS != self.window else None
        self.window = timestamp_ms // WINDOW_MS
        self.seq += 1
        start = f'{{"queue_id":"{self.queue_id}","seq":{self.seq},'.encode()
        self.lines.append(start + body[1:] + b"\n")
        return written

    def flush(self) -> Path | None:
        if not self.lines:
            return None
        start_ms = self.window * WINDOW_MS
        data = head_line(self.queue_id, start_ms) + b"".join(self.lines)
        moment = datetime.fromtimestamp(start_ms / 1000, UTC)
        name = f"{moment:%H-%M-%S}-{self.queue_id}-{self.first:010}-{self.seq:010}"
        folder = self.folder / f"{moment:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{hashlib.md5(data).hexdigest()[:12]}.jsonl"
        path.write_bytes(data)
        self.lines, self.first = [], self.seq + 1
        return path


def write_history(
    folder: Path,
    calls: int,
    *,
    days: int = 2,
    queues: int = 2,
    seed: int = 1,
    text: int = 60,
    with_open: bool = True,
) -> History:
    """Write so many calls over so many days; answers have about `text` words."""
    chance = random.Random(seed)
    history = History()
    spans = [_Queue(folder, f"{chance.getrandbits(64):016x}") for _ in range(queues)]
    step_ms = days * DAY_MS // (calls + 1)
    begin_ms = int(FIRST_DAY.timestamp() * 1000)
    sessions = _sessions(chance, text)
    waiting: list[tuple[int, int, int, IdentityFields, ResponseFields]] = []
    for number in range(calls):
        at_ms = begin_ms + number * step_ms
        while waiting and waiting[0][0] <= at_ms:
            due = heapq.heappop(waiting)
            _note(history, spans[due[2]].append(due[0], "response", due[3], due[4]))
        identity, request, response = next(sessions)
        history.calls += 1
        history.sessions.add(identity.session_id or identity.request_id or "")
        place = chance.randrange(queues)
        _note(history, spans[place].append(at_ms, "request", identity, request))
        if with_open and number == calls // 2:
            history.open += 1
            continue
        history.tokens += response.total_tokens or 0
        history.failed += response.outcome != "ok"
        latency_ms = response.latency_ms or 0
        heapq.heappush(waiting, (at_ms + latency_ms, number, place, identity, response))
    for at_ms, _, place, identity, response in sorted(waiting):
        _note(history, spans[place].append(at_ms, "response", identity, response))
    for queue in spans:
        _note(history, queue.flush())
    return history


def _note(history: History, path: Path | None) -> None:
    if path is not None:
        history.objects.append(path)


def _sessions(
    chance: random.Random, text: int
) -> Iterator[tuple[IdentityFields, RequestFields, ResponseFields]]:
    """The calls of one session after the other, without end."""
    number = 0
    while True:
        number += 1
        session = f"{chance.getrandbits(128):032x}" if number % 10 else None
        origin, model = chance.choice(APPS), chance.choice(MODELS)
        question = f"{chance.choice(QUESTIONS)} ({number})"
        results: list[ToolResult] | None = None
        for turn in range(chance.randint(1, 5) if session else 1):
            identity = IdentityFields(
                request_id=f"{chance.getrandbits(64):016x}",
                session_id=session,
                origin=origin,
                client=None if origin else "notebook",
                key_name="team" if number % 3 else "guests",
                provider="nrp",
                model=model,
                endpoint="/v1/chat/completions",
                stream=True,
                proxy_version="0.1.0",
                config_sha256="0" * 64,
                instance="pod-1",
            )
            request = RequestFields(
                request_bytes=900,
                message_count=2 * turn + 2,
                tools_count=2,
                user_question=question,
                user_message_this_turn=question,
                tool_results_this_turn=results,
                system_sha256="1" * 64,
            )
            calls_tool = session is not None and chance.random() < 0.4
            response = _response(chance, turn, calls_tool, text)
            results = [
                ToolResult(call.id, "42 rows" if chance.random() > 0.1 else "error: no such table")
                for call in response.tool_calls or ()
            ] or None
            yield identity, request, response


def _response(chance: random.Random, turn: int, calls_tool: bool, text: int) -> ResponseFields:
    outcome = chance.choice(OUTCOMES)
    latency_ms = int(chance.lognormvariate(7.5, 0.8))
    if outcome != "ok":
        return ResponseFields(
            outcome=outcome,
            status=500 if outcome == "upstream_error" else None,
            latency_ms=latency_ms,
            has_content=False,
            error="the provider's engine is overloaded",
        )
    has_usage = chance.random() > 0.05
    prompt, completion = chance.randint(500, 5000), chance.randint(20, 900)
    words = " ".join(chance.choices(("park", "river", "**oak**", "state", "42", "area"), k=text))
    call = LoggedToolCall(f"call_{chance.getrandbits(32):08x}", "query", '{"sql":"SELECT 1"}')
    return ResponseFields(
        outcome="ok",
        status=200,
        latency_ms=latency_ms,
        ttft_ms=latency_ms // 4,
        response_bytes=2000,
        has_content=not calls_tool,
        has_tool_calls=calls_tool,
        content=None if calls_tool else words,
        content_preview=None if calls_tool else words[:200],
        tool_calls=[call] if calls_tool else None,
        finish_reason="tool_calls" if calls_tool else "stop",
        prompt_tokens=prompt if has_usage else None,
        completion_tokens=completion if has_usage else None,
        total_tokens=prompt + completion if has_usage else None,
        cost_usd=round(completion * 2e-6, 6) if has_usage and turn % 2 == 0 else None,
        upstream_attempts=1,
    )


if __name__ == "__main__":
    print(write_history(Path(sys.argv[1]), int(sys.argv[2]), days=int(sys.argv[3])).calls)
