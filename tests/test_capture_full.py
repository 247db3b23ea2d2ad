"""`full` capture: messages and answer come back exactly, system prompts are rows of their own."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from given_answers import (
    Asker,
    Fields,
    GivenAnswers,
    completion,
    events,
    logged,
    rows_of,
    tool_call,
)
from memory_log import MemoryLog
from open_llm_proxy.archive.marks import unmarked
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries.call_entries import CallEntries, Provenance
from open_llm_proxy.server.entries.capture import Capture
from open_llm_proxy.server.entries.stored_messages import restore_messages, store_messages
from open_llm_proxy.server.entries.system_prompts import SystemPrompts
from open_llm_proxy.server.redaction.redactor import Redactor
from proxy_process import ProxyProcess, one_provider

pytestmark = pytest.mark.timeout(seconds=60)
PROMPT = "You answer questions about protected areas. " * 20
NOON_MS = 1_700_049_600_000


def shapes() -> list[list[Any]]:
    """Conversations of many shapes, as clients send them."""
    call = tool_call("call_1", "query", '{"sql": "SELECT \\"a\\""}')
    return [
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": PROMPT}, {"role": "user", "content": "hi", "name": "me"}],
        [
            {"role": "system", "content": PROMPT},
            {"role": "developer", "content": [{"type": "text", "text": PROMPT + "!", "x": [1]}]},
            {"role": "system", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": 'naïve 🌊 \u2028 " \\ \t'}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "extra": {"a": 1.5}},
            {"role": "tool", "tool_call_id": "call_1", "content": "2024-01-02"},
            {"role": "assistant", "content": "10:30", "refusal": None},
            {"role": "user", "content": "text:10:30"},
        ],
        [{"role": "system", "content": None}, {"role": "user", "content": {"odd": [True, None]}}],
        ["a bare string", 5, None, {"role": "user", "content": "x"}],
        [{"role": "system", "content": [PROMPT, {"text": 5}]}, {"role": "user", "content": "x"}],
    ]


async def test_full_capture_rebuilds_messages_and_completion_exactly(tmp_path: Path) -> None:
    said = completion(
        "2024-01-02",
        reasoning_content="10:30",
        tool_calls=[tool_call("550e8400-e29b-41d4-a716-446655440000", "query", "10:30")],
    )
    deltas = [
        {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
        for piece in ("2024-", "01-02")
    ]
    streamed = {"given": events(*deltas), "stream": True}
    calls = [{"messages": shape, "given": {"body": said}} for shape in shapes()]
    calls += [{"messages": shape, **streamed} for shape in shapes()]
    rows, _ = await logged(tmp_path, calls, LOG_CAPTURE="full")
    prompts = {
        row["system_sha256"]: row["content"] for row in rows if row["type"] == "system_prompt"
    }
    requests = [row for row in rows if row["type"] == "request"]
    assert all(PROMPT not in row["messages_json"] for row in requests)
    rebuilt = [restore_messages(row["messages_json"], prompts) for row in requests]
    assert rebuilt == shapes() * 2
    for row in rows:
        if row["type"] == "response":
            assert unmarked(row["content"]) == "2024-01-02"
            if row["stream"] is False:
                (call,) = row["tool_calls"]
                assert unmarked(call["id"]) == "550e8400-e29b-41d4-a716-446655440000"
                assert unmarked(call["arguments"]) == unmarked(row["reasoning_content"]) == "10:30"


SAFE_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | SAFE_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SAFE_TEXT, inner, max_size=3),
    max_leaves=10,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "developer", "tool"]), "content": JSON},
    optional={"name": SAFE_TEXT, "extra": JSON},
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGE | JSON, min_size=1, max_size=5), st.booleans())
def test_any_messages_come_back_as_they_were_redacted(messages: list[Any], long: bool) -> None:
    if long:
        messages = [{"role": "system", "content": PROMPT}, *messages]
    stored = store_messages(messages, Redactor())
    assert restore_messages(stored.json, stored.prompts) == Redactor().value(messages)


def test_messages_with_secrets_come_back_without_them() -> None:
    messages = [
        {"role": "system", "content": PROMPT + "password=hunter2hunter2 " + PROMPT},
        {"role": "user", "content": "my key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"},
    ]
    stored = store_messages(messages, Redactor())
    assert "hunter2" not in repr(stored) and "sk-proj" not in repr(stored)
    assert restore_messages(stored.json, stored.prompts) == Redactor().value(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x " * 10_000_000}],
        [{"role": "user", "content": "x " * 5_000}] * 2_000,
        [{"role": "user", "content": '"\\' * 5_000_000}],
        [{"role": "user", "content": "x"}] * 300_000,
        [{"role": "user", "content": list(range(1_000_000))}],
        [{"role": "user", "content": {"k" * 50_000 + str(number): 1}} for number in range(500)],
        [{"role": "system", "content": "x " * 10_000_000}, {"role": "user", "content": "q"}],
    ],
)
def test_messages_of_any_size_fit_into_a_line_as_json(messages: list[Any]) -> None:
    stored = store_messages(messages, Redactor())
    assert len(json.dumps(stored.json)) < 6_000_000
    assert all(len(text) < 4_500_000 for text in stored.prompts.values())
    kept = restore_messages(stored.json, stored.prompts)
    assert "…[cut: " in json.dumps(kept, ensure_ascii=False)


# System prompts as rows of their own.


async def test_a_prompt_is_stored_once_per_window_ahead_of_its_first_use(tmp_path: Path) -> None:
    async with GivenAnswers() as provider:
        settings = {
            "LOG_DIR": str(tmp_path / "objects"),
            "LOG_CAPTURE": "full",
            "FLUSH_INTERVAL_SECONDS": "1",
        }
        proxy = ProxyProcess(tmp_path / "proxy", one_provider(provider.url), settings)
        async with proxy, Asker(proxy) as asker:
            messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "q"}]
            while len({row["timestamp"][:19] for row in rows_of(proxy.stdout_lines())}) < 3:
                await asyncio.gather(*(asker.ask(messages) for _ in range(20)))
            rows = rows_of(proxy.stdout_lines())
    windows: dict[str, list[Fields]] = {}
    for row in rows:
        windows.setdefault(row["timestamp"][:19], []).append(row)
    for found in windows.values():
        kinds = [row["type"] for row in found]
        if "request" in kinds:
            assert kinds.count("system_prompt") == 1
            assert kinds.index("system_prompt") < kinds.index("request")
    hashes = {row["system_sha256"] for row in rows if row["type"] != "response"}
    assert len(hashes) == 1
    assert not any(row["request_id"] for row in rows if row["type"] == "system_prompt")


class Calls:
    """Makes the entries of calls with one system prompt into a log that a test can break."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.capture = Capture(mode="full", prompts=SystemPrompts(300))

    def entries(self, prompt: str = PROMPT) -> CallEntries:
        entries = CallEntries(
            Provenance("0", "0" * 64, "test"),
            Redactor(),
            {},
            request_id="0" * 16,
            key_name="default",
            endpoint="/v1/chat/completions",
            capture=self.capture,
        )
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": "q"}]
        body = json.dumps({"model": "kimi", "messages": messages}).encode()
        entries.set_request(ClientRequest.parse(body))
        return entries

    def open(self, prompt: str = PROMPT) -> "asyncio.Future[tuple[bytes, ...]]":
        return self.entries(prompt).open(self.log).stored

    @property
    def kinds(self) -> list[str]:
        return [row["type"] for row in self.log.rows]


async def test_a_prompt_whose_append_was_refused_at_once_is_stored_by_the_next_call() -> None:
    calls = Calls()
    calls.log.openings.refusal = QueueFull("full")
    with pytest.raises(QueueFull):
        calls.open()
    calls.log.openings.refusal = None
    await calls.open()
    await calls.open()
    assert calls.kinds == ["system_prompt", "request", "request"]


async def test_a_prompt_whose_append_failed_later_is_stored_by_the_next_call() -> None:
    calls = Calls()
    calls.log.openings.error = QueueFull("full")
    refused = calls.open()
    await asyncio.wait([refused])
    await asyncio.sleep(0)  # what else waits for that future has been told, too
    assert isinstance(refused.exception(), QueueFull)
    calls.log.openings.error = None
    await calls.open()
    assert calls.kinds == ["system_prompt", "request"]


class HeldLog:
    """Takes entries and leaves their fate to the test."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[tuple[bytes, ...]]] = []
        self.kinds: list[list[str]] = []

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]":
        self.kinds.append([json.loads(entry.body)["type"] for entry in entries])
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def open(self, entries: Sequence[Entry], interrupted: Entry) -> Any:
        return SimpleNamespace(stored=self.append(entries))


async def test_a_prompt_is_handed_over_again_for_a_call_that_relied_on_a_refused_one() -> None:
    calls = Calls()
    log: Any = HeldLog()
    for _ in range(2):
        calls.entries().open(log)
    first, second = log.futures
    second.set_result(())
    first.set_exception(QueueFull("full"))
    await asyncio.wait([first, second])
    await asyncio.sleep(0)
    assert log.kinds == [["system_prompt", "request"], ["request"], ["system_prompt"]]
    log.futures[2].set_exception(QueueFull("still full"))
    await asyncio.wait([log.futures[2]])
    await asyncio.sleep(0)
    calls.entries().open(log)
    assert log.kinds[3:] == [["system_prompt", "request"]]


async def test_rejected_calls_bring_their_prompt_too() -> None:
    calls = Calls()
    result = CallResult(outcome="rejected")
    await calls.entries().reject(calls.log, result)  # type: ignore[arg-type]
    await calls.open()
    assert calls.kinds == ["system_prompt", "request", "response", "request"]


def test_windows_and_hashes_decide_what_is_missing() -> None:
    prompts = SystemPrompts(300)
    row = Entry(b"{}", NOON_MS)
    loop = asyncio.new_event_loop()
    log = MemoryLog()
    assert prompts.missing(["a", "b"], NOON_MS) == ["a", "b"]
    prompts.handed_over({"a": row}, loop.create_future(), log)
    assert prompts.missing(["a", "b"], NOON_MS + 299_999) == ["b"]
    assert prompts.missing(["a", "b"], NOON_MS + 300_000) == ["a", "b"]
    loop.close()
