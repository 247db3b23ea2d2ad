"""The demo's history: whole days of a log as a busy proxy would have written them, in seconds.

No call is made. The entries come from the same makers as the server's, the objects from the queue's
rule and format, and only the clock is another one: `CallEntries` is told what time it is. A day is
one queue, whose process ended at midnight; its id and everything else follow from the seed and the
date, so that the same day is the same objects, and a day that is there already is left alone.
"""

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from open_llm_proxy.queue.batches import Batch, object_name
from open_llm_proxy.queue.entry import Entry, finished_line
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.sinks import DirectorySink
from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.commands.demo import answers
from open_llm_proxy.server.commands.demo.sessions import (
    APPS,
    PACES,
    PRICES,
    PROVIDERS,
    TOOLS,
    WORKSHOP,
    App,
    Fault,
    Turn,
    conversation,
    pick_fault,
    pick_model,
)
from open_llm_proxy.server.entries.call_entries import CallEntries, Clock, Provenance
from open_llm_proxy.server.entries.capture import Capture
from open_llm_proxy.server.entries.log import EntryLog
from open_llm_proxy.server.entries.stored_texts import StoredTexts
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.provider_answer import ProviderAnswer

WINDOW_SECONDS = 3600
OBJECT_MAX_BYTES = 16 << 20
TRANSCRIPT_MAX_BYTES = 4 << 20
ENDPOINT = "/v1/chat/completions"
SESSIONS_ON_A_WORKDAY = 24
WORKSHOP_SESSIONS = 60
SERVED = sorted(PROVIDERS)


@dataclass(frozen=True, slots=True)
class History:
    """What was written; days that were there already do not count."""

    first: date
    last: date
    sessions: int
    calls: int
    objects: int


def write_history(folder: Path, last: date, days: int, seed: int = 1) -> History:
    """Write the `days` days up to `last` below `folder`, in the layout of LOG_DIR."""
    return asyncio.run(_write(folder, last, days, seed))


async def _write(folder: Path, last: date, days: int, seed: int) -> History:
    sink = DirectorySink(folder)
    sessions = calls = objects = 0
    every = [last - timedelta(days=back) for back in reversed(range(days))]
    for number, day in enumerate(every):
        history = _Day(day, number / max(1, days - 1), seed, is_workshop=number == days * 2 // 3)
        if not any((folder / day.isoformat()).glob(f"*-{history.log.meta.queue_id}-*")):
            history.live()
            sessions, calls = sessions + history.sessions, calls + history.calls
            objects += history.log.put_to(sink)
    return History(every[0], last, sessions, calls, objects)


@dataclass(frozen=True, slots=True)
class _OpenedCall:
    stored: "asyncio.Future[tuple[bytes, ...]]"


@dataclass(slots=True)
class _QueuedRows:
    """The rows of one queue in the order of their seq; of an `EntryLog` it has the way in."""

    meta: Meta
    entries: list[Entry] = field(default_factory=list)
    open_calls: list[tuple[bytes, int]] = field(default_factory=list)
    last_head: bytes = b""

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> "_OpenedCall":
        self.last_head = interrupted_head
        return _OpenedCall(self.append(entries))

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]":
        self.entries += entries
        stored: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()
        stored.set_result(())
        return stored

    def die(self, timestamp_ms: int) -> None:
        """The process dies with the last call open; who finishes its queue closes that call."""
        self.open_calls.append((self.last_head, timestamp_ms))

    def put_to(self, sink: DirectorySink) -> int:
        """Cut the rows into objects and write these; returns how many they are."""
        meta = self.meta
        ended = [Entry(meta.interrupted_body(head), at_ms) for head, at_ms in self.open_calls]
        lines: list[bytes] = []
        run, first, objects = meta.run(), 1, 0
        for seq, entry in enumerate([*self.entries, *ended], 1):
            line = finished_line(meta.queue_id, seq, entry.body)
            if not run.add(entry.timestamp_ms, len(line)):
                self._put(sink, run.start, first, lines)
                objects += 1
                lines, first, run = [], seq, meta.run()
                run.add(entry.timestamp_ms, len(line))
            lines.append(line)
        if lines:
            self._put(sink, run.start, first, lines)
        return objects + bool(lines)

    def _put(self, sink: DirectorySink, start: int, first: int, lines: list[bytes]) -> None:
        body = self.meta.object_head(start) + b"".join(lines)
        md5, last = hashlib.md5(body).digest(), first + len(lines) - 1
        name = object_name(start, self.meta.queue_id, first, last, md5)
        sink.put(Batch(first, last, name, md5, len(body), sink.identity), body)


class _Day:
    """One day of one process: when which call comes, and what becomes of it."""

    def __init__(self, day: date, share: float, seed: int, *, is_workshop: bool) -> None:
        self.sessions = self.calls = 0
        self._day = day
        self._share = share
        self._is_workshop = is_workshop
        self._name = f"{seed} {day.isoformat()}"
        self._rng = random.Random(self._name)
        self._now_ms = 0
        self._elapsed = 0.0
        configuration = f"{seed} {'new' if share >= 0.5 else 'old'} model".encode()
        self._provenance = Provenance(
            version("open-llm-proxy"),
            hashlib.sha256(configuration).hexdigest(),
            "open-llm-proxy-demo",
        )
        log_format = self._provenance.log_format()
        meta = Meta(WINDOW_SECONDS, OBJECT_MAX_BYTES, log_format, self._digest("queue"))
        self.log = _QueuedRows(meta)
        self._redactor = RememberingRedactor()
        self._capture = Capture(mode="full", texts=StoredTexts(WINDOW_SECONDS))
        self._events: list[tuple[int, int, Callable[[], None]]] = []

    def live(self) -> None:
        """Plan all calls of the day, then let them happen in the order of time."""
        rng = self._rng
        is_weekend = self._day.weekday() >= 5
        for _ in range(SESSIONS_ON_A_WORKDAY // (3 if is_weekend else 1) + rng.randrange(6)):
            app = rng.choices(APPS, [app.weight for app in APPS])[0]
            self._plan_session(app, rng.triangular(7, 22, 16) * 3600)
        for _ in range(WORKSHOP_SESSIONS if self._is_workshop else 0):
            self._plan_session(WORKSHOP, rng.uniform(15, 18) * 3600)
        # A session that fails, each day, so that there is always one to be found.
        self._plan_session(APPS[0], rng.uniform(9, 20) * 3600, faults=["overloaded"] * 3)
        self._plan_rejected(rng.uniform(9, 20) * 3600)
        for at_ms, _, happens in sorted(self._events, key=lambda event: event[:2]):
            self._now_ms = at_ms
            happens()

    def _plan_session(self, app: App, begin_seconds: float, faults: Sequence[Fault] = ()) -> None:
        rng = self._rng
        self.sessions += 1
        session_id = str(uuid.UUID(self._digest(f"session {self.sessions}", 32)))
        model, at = pick_model(rng, app, self._share), begin_seconds
        planned = list(faults)
        for turn in conversation(rng, app, session_id[:6]):
            for retry in range(3):
                fault = pick_fault(rng, model, self._day, int(at // 3600))
                if planned:
                    fault = planned.pop(0)
                at += self._plan_call(app, session_id, model, turn, retry, fault, at)
                if fault is None:
                    break
                at += 2.0 * (retry + 1)
                if fault in ("client_left", "killed") or retry == 2 or rng.random() < 0.3:
                    return
            at += rng.uniform(0.2, 1.5) if "tool_calls" in turn.reply else rng.uniform(8, 90)

    def _plan_call(
        self, app: App, session_id: str, model: str, turn: Turn, retry: int,
        fault: Fault | None, at_seconds: float,
    ) -> float:  # fmt: skip
        """Plan both entries of a call; returns how many seconds it takes."""
        self.calls += 1
        request: dict[str, Any] = {
            "model": model, "messages": turn.messages, "tools": TOOLS, "user": session_id,
            "temperature": 0,
        }  # fmt: skip
        if app.streams:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        if app.thinks:
            request["enable_thinking"] = True
        headers = {"X-Client": app.client} | ({"Origin": app.origin} if app.origin else {})
        if retry:
            headers["X-Stainless-Retry-Count"] = str(retry)
        entries = self._entries(app.key_name, headers)
        entries.set_request(ClientRequest.parse(json.dumps(request).encode()))
        entries.set_route(PROVIDERS[model], True if app.thinks else None)
        result, seconds = self._result(turn, model, app.streams, fault)
        if fault is None and self._rng.random() < 0.0008:
            fault = "killed"

        def begin() -> None:
            entries.open(cast(EntryLog, self.log))
            if fault == "killed":
                self.log.die(self._now_ms)

        def end() -> None:
            self._elapsed = seconds
            self.log.append([entries.response(result)])

        self._at(at_seconds, begin)
        if fault != "killed":
            self._at(at_seconds + seconds, end)
        return seconds

    def _plan_rejected(self, at_seconds: float) -> None:
        """A call for a model that nobody serves, as after a slip of the finger."""
        self.calls += 1
        error = proxy_errors.model_not_found("kimi-k2", SERVED)
        messages = [{"role": "user", "content": "Is anybody there?"}]
        request = {"model": "kimi-k2", "messages": messages}
        entries = self._entries("evaluation", {"X-Client": "curl/8.5.0"})
        entries.set_request(ClientRequest.parse(json.dumps(request).encode()))
        result = CallResult(started=0.0, outcome="rejected", status=404, error=error.message)

        def happens() -> None:
            self._elapsed = 0.001
            entries.reject(cast(EntryLog, self.log), result)

        self._at(at_seconds, happens)

    def _entries(self, key_name: str, headers: dict[str, str]) -> CallEntries:
        return CallEntries(
            self._provenance,
            self._redactor,
            Headers(headers.items()),
            request_id=self._digest(f"call {self.calls}"),
            key_name=key_name,
            endpoint=ENDPOINT,
            capture=self._capture,
            clock=Clock(lambda: self._now_ms, lambda: self._elapsed),
        )

    def _result(
        self, turn: Turn, model: str, stream: bool, fault: Fault | None
    ) -> tuple[CallResult, float]:
        """How the call goes, and how many seconds it takes."""
        rng, result = self._rng, CallResult(started=0.0)
        tokens_per_second, wait = PACES.get(model, (60, 0.8))
        wait *= rng.lognormvariate(0, 0.7)
        usage = answers.usage(json.dumps(turn.messages), turn.reply)
        usage["prompt_tokens_details"]["cached_tokens"] = usage["prompt_tokens"] // 2
        if model in PRICES:
            per_prompt, per_answer = PRICES[model]
            cost = usage["prompt_tokens"] * per_prompt + usage["completion_tokens"] * per_answer
            usage["cost"] = round(cost / 1e6, 6)
        seconds = wait + usage["completion_tokens"] / tokens_per_second
        if fault == "unreachable":
            reason = "nimbus.example:443: the name cannot be resolved (Temporary failure)"
            result.ended("upstream_unreachable", reason, status=502)
            result.attempts.connects = 9
            return result, 10.0 * rng.uniform(0.9, 1.0)
        status, body = self._body(turn, usage, model, stream, fault)
        answer = ProviderAnswer(
            status,
            Headers([("Content-Type", _content_type(stream and status == 200))]),
            kind="choices",
            hide_usage=False,
            transcript_max_bytes=TRANSCRIPT_MAX_BYTES,
        )
        limited = Headers([("Retry-After", "7"), ("Server", "demo")])
        logged = header_policy.logged_on_error(limited) if status >= 300 else None
        result.attempts.connects = int(rng.random() < 0.1)
        result.attempts.sends = 1
        result.answered(status, f"req-{rng.randrange(16**12):012x}", logged)
        answer.feed(body)
        result.bytes_came(len(body))
        if stream or status == 200:
            result.first_content_at = wait if stream else seconds
        result.transcript = answer.finish()
        assert result.transcript is not None, "asked for once"
        if fault == "client_left":
            result.ended("client_disconnected")
        elif fault == "silent":
            reason = (
                f"{PROVIDERS[model]}.example:443: the answer stopped: nothing received for 300 s"
            )
            result.ended("upstream_timeout", f"{reason} (idle time-out)", deadline="idle")
            seconds += 300
        elif fault == "cut":
            reason = f"{PROVIDERS[model]}.example:443: the connection was closed within the answer"
            result.ended("upstream_error", reason)
        else:
            result.ended(*answer.outcome(result.transcript))
        return result, seconds if status == 200 else 0.4

    def _body(
        self, turn: Turn, usage: dict[str, Any], model: str, stream: bool, fault: Fault | None
    ) -> tuple[int, bytes]:
        """Status and body of the provider's answer, as far as it comes."""
        if fault in ("rate_limited", "overloaded"):
            status = 429 if fault == "rate_limited" else 503
            message = "Too many requests" if status == 429 else "The model is overloaded"
            error = {"message": message, "type": fault, "code": status}
            return status, json.dumps({"error": error}).encode()
        if fault == "empty":
            return 200, b"data: [DONE]\n\n" if stream else b"{}"
        envelope = {"id": f"chatcmpl-{self._rng.randrange(16**12):012x}", "model": model}
        if not stream:
            body = json.dumps(envelope | answers.chat_completion(turn.reply, usage)).encode()
            return 200, body if fault is None else b""
        events = [envelope | chunk for chunk in answers.chat_chunks(turn.reply, usage)]
        if fault is not None:
            return 200, _events(events[: len(events) // 2])
        return 200, _events(events) + b"data: [DONE]\n\n"

    def _at(self, seconds: float, happens: Callable[[], None]) -> None:
        midnight = datetime.combine(self._day, time(), UTC).timestamp()
        at_ms = round((midnight + min(seconds, 86_399.0)) * 1000)
        self._events.append((at_ms, len(self._events), happens))

    def _digest(self, what: str, digits: int = 16) -> str:
        return hashlib.sha256(f"{self._name} {what}".encode()).hexdigest()[:digits]


def _events(events: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def _content_type(is_stream: bool) -> str:
    return "text/event-stream" if is_stream else "application/json"
