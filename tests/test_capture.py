"""What is logged of a call's texts: nothing, a summary or everything, and never more than that."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from given_answers import (
    Asker,
    Fields,
    GivenAnswers,
    completion,
    events,
    raw,
    rows_of,
    tool_call,
)
from memory_log import MemoryLog
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.server.call_entries import CallEntries, CallResult, Provenance
from open_llm_proxy.server.capture import Caps, Capture, logged_text
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries import described_fields, in_metadata
from open_llm_proxy.server.entry_line import unmarked
from open_llm_proxy.server.redact import Redactor
from open_llm_proxy.server.remembered_redaction import RememberingRedactor
from open_llm_proxy.server.stored_messages import restore_messages, store_messages
from open_llm_proxy.server.system_prompts import SystemPrompts
from proxy_process import ProxyProcess, one_provider
from stores import DirectoryStore

pytestmark = pytest.mark.timeout(seconds=60)
PROMPT = "You answer questions about protected areas. " * 20
NOON_MS = 1_700_049_600_000


async def logged(
    folder: Path, calls: Sequence[Fields], **environment: str
) -> tuple[list[Fields], list[httpx.Response]]:
    """The rows that the real server logs of some calls, and their answers."""
    async with GivenAnswers() as provider:
        settings = {"LOG_DIR": str(folder / "objects"), **environment}
        config = one_provider(provider.url)
        async with ProxyProcess(folder / "proxy", config, settings) as proxy:
            async with Asker(proxy) as asker:
                answers = [await asker.ask(**call) for call in calls]
            assert await proxy.stop() == 0
            return rows_of(proxy.stdout_lines()), answers


# metadata


def telling_calls() -> list[Fields]:
    """Calls that say `leak` wherever a client or a provider can say something."""
    said = completion(
        "a leak",
        reasoning_content="a leak",
        tool_calls=[tool_call("a leak", "leak now", '{"leak": "leak"}')],
        finish_reason="a leak",
        usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "note": "leak"},
    )
    headers = {"X-Session-Id": "leak", "X-Client": "a leak", "Referer": "https://app.example/leak"}
    messages = [
        {"role": "system", "content": "leak " * 200},
        {"role": "user", "content": "leak"},
        {"role": "tool", "tool_call_id": "leak", "content": "leak"},
    ]
    asked: Fields = {"messages": messages, "headers": headers, "tools": [{"leak": 1}]}
    delta = {"choices": [{"index": 0, "delta": {"content": "leak"}, "finish_reason": "leak it"}]}
    refusal = {
        "status": 429,
        "headers": {"Retry-After": "a leak", "x-request-id": "a leak", "Server": "leak"},
        "body": {"error": {"message": "you asked for a leak", "code": "leak"}},
    }
    return [
        {**asked, "given": {"body": said}},
        {**asked, "given": events(delta), "stream": True},
        {**asked, "given": events(delta, done=False), "stream": True},
        {**asked, "given": refusal},
        {**asked, "given": raw(b"leak is no JSON")},
        {**asked, "given": raw(b"leak", "text/html", status=502)},
        {**asked, "model": "a model to leak"},
        {**asked, "enable_thinking": "leak"},
        {"messages": "leak", "user": "leak", "path": "/v1/responses", "input": "leak"},
    ]


async def test_metadata_holds_no_text_of_anybody(tmp_path: Path) -> None:
    rows, _ = await logged(tmp_path, telling_calls(), LOG_CAPTURE="metadata")
    assert len(rows) == 2 * len(telling_calls())
    assert "leak" not in json.dumps(rows).lower()
    objects = b"".join(data for _, data in DirectoryStore(tmp_path / "objects").objects())
    assert objects.count(b"\n") >= len(rows) and b"leak" not in objects.lower()
    in_summary, _ = await logged(tmp_path / "summary", telling_calls())
    assert all("leak" in json.dumps(row) for row in in_summary), "a call that tells nothing"


async def test_metadata_keeps_counts_tokens_times_and_outcome(tmp_path: Path) -> None:
    calls: list[Fields] = [
        {
            "messages": [{"role": "user", "content": "q"}] * 3,
            "tools": [{}],
            "headers": {"Origin": "https://app.example:8443", "X-Session-Id": session},
            "given": {"body": completion("a"), "headers": {"x-request-id": "req_123"}},
        }
        for session in ("one", "one", "two")
    ]
    rows, _ = await logged(tmp_path, calls, LOG_CAPTURE="metadata")
    request, response = rows[0], rows[1]
    assert (request["message_count"], request["tools_count"]) == (3, 1)
    expected = {
        "outcome": "ok",
        "status": 200,
        "has_content": True,
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "finish_reason": "stop",
        "model": "kimi",
        "provider": "nrp",
        "origin": "https://app.example:8443",
        "upstream_request_id": "req_123",
        "key_name": "default",
    }
    assert {name: response[name] for name in expected} == expected
    assert response["latency_ms"] >= 0
    sessions = [row["session_id"] for row in rows]
    assert sessions[0] == sessions[1] == sessions[2] != sessions[4]
    assert all(len(session) == 16 and "one" not in session for session in sessions)


def test_every_field_that_may_hold_text_says_what_is_left_of_it() -> None:
    kept = {name for name, kind, meta in described_fields() if in_metadata(meta) == "kept"}
    texts = {name for name, kind, _ in described_fields() if kind not in (int, bool)}
    assert texts & kept == {
        "timestamp",
        "type",
        "request_id",
        "key_name",
        "provider",
        "endpoint",
        "proxy_version",
        "config_sha256",
        "instance",
        "outcome",
        "deadline",
    }


# Caps.


async def test_caps_cut_each_text_and_tell_its_length(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "q" * 50},
        {"role": "tool", "tool_call_id": "a", "content": "t" * 50},
        {"role": "tool", "tool_call_id": "b", "content": "t" * 20},
    ]
    said = completion("c" * 50, reasoning_content="r" * 50)
    rows, (answer,) = await logged(
        tmp_path,
        [{"messages": messages, "given": {"body": said}}],
        LOG_CONTENT_MAX="10",
        LOG_REASONING_MAX="11",
        LOG_TOOL_RESULT_MAX="20",
        LOG_USER_QUESTION_MAX="12",
    )
    mark = "…[cut: 50 characters in all]"
    request, response = rows
    assert request["user_question"] == request["user_message_this_turn"] == "q" * 12 + mark
    assert [result["content"] for result in request["tool_results_this_turn"]] == [
        "t" * 20 + mark,
        "t" * 20,
    ]
    assert response["content"] == "c" * 10 + mark
    assert response["reasoning_content"] == "r" * 11 + mark
    assert answer.json() == said, "what the client gets is whole"


async def test_the_default_caps_are_those_of_the_documentation(tmp_path: Path) -> None:
    long = "x" * 100_000
    messages = [{"role": "user", "content": long}, {"role": "tool", "content": long}]
    said = completion(long, reasoning_content=long)
    rows, _ = await logged(tmp_path, [{"messages": messages, "given": {"body": said}}])
    request, response = rows
    mark = "…[cut: 100000 characters in all]"
    assert request["user_question"] == "x" * 4_000 + mark
    assert request["tool_results_this_turn"][0]["content"] == "x" * 20_000 + mark
    assert response["content"] == response["reasoning_content"] == long


@pytest.mark.parametrize("at", [9_970, 9_990, 9_999, 10_000])
def test_no_half_of_a_credential_is_left_before_a_cut(at: int) -> None:
    secret = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
    text = "x" * (at - 1) + " " + secret + " y" * 20_000
    cut = logged_text(text, Redactor(), 10_000)
    assert "sk-proj" not in cut and cut.endswith(f"…[cut: {len(text)} characters in all]")


# full


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


# Remembered redaction.


def test_a_remembering_redactor_says_what_the_plain_one_says_within_its_room() -> None:
    remembering = RememberingRedactor(("a-key-of-this-process",), max_characters=20_000)
    plain = Redactor(("a-key-of-this-process",))
    texts = [f"{number} a-key-of-this-process password=hunter2x " + PROMPT for number in range(50)]
    texts += [PROMPT + str(number) for number in range(50)]
    for _ in range(2):
        for text in texts:
            assert remembering.text(text) == remembering.text(text) == plain.text(text)
            assert remembering._characters <= 20_000
    assert "a-key" not in repr(remembering)


def test_caps_have_the_documented_defaults() -> None:
    assert Caps() == Caps(content=0, reasoning=0, tool_result=20_000, user_question=4_000)
