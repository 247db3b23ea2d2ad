"""`full` capture: messages and answer come back exactly, system prompts are rows of their own."""

import asyncio
import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import log_contract
from duckdb_log import script
from given_answers import (
    CHAT,
    Asker,
    Fields,
    GivenAnswers,
    completion,
    rows_of,
    tool_call,
)
from memory_log import MemoryLog
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueFull
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries.call_entries import CallEntries, Provenance
from open_llm_proxy.server.entries.capture import Capture
from open_llm_proxy.server.entries.stored_request import (
    StoredRequest,
    store_request,
    stored_tools,
)
from open_llm_proxy.server.entries.stored_texts import StoredTexts, TextHashes
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


def requests() -> list[Fields]:
    """Bodies of all routes with tools and parameters, as `Asker.send` takes them."""
    tool = {"type": "function", "function": {"name": "query", "parameters": {"type": "object"}}}
    chat = {
        "model": "kimi",
        "temperature": 0.0,
        "seed": 7,
        "n": None,
        "stop": ["\n"],
        "x": {"y": []},
    }
    bodies: list[tuple[str, Fields]] = [
        (CHAT, {**chat, "messages": shape, "tools": [tool] * count, "tool_choice": "auto"})
        for count, shape in enumerate(shapes())
    ]
    bodies += [
        (CHAT, {**chat, "messages": "no list", "tools": {"no": "list"}}),
        (
            CHAT,
            {**chat, "messages": [{"role": "user", "content": "q"}], "input": "i", "prompt": "p"},
        ),
        (CHAT, {**chat, "model": " kimi ", "messages": [], "user": "u", "session_id": "s"}),
        ("/v1/completions", {"model": "kimi", "prompt": "say", "suffix": "!"}),
        ("/v1/completions", {"model": "kimi", "prompt": [[1, 2], [3]]}),
        ("/v1/embeddings", {"model": "kimi", "input": ["a", "b"], "dimensions": 8}),
        (
            "/v1/responses",
            {"model": "kimi", "input": "hi", "instructions": PROMPT, "tools": [tool]},
        ),
        ("/v1/responses", {"model": "kimi", "input": shapes()[2], "previous_response_id": "r"}),
    ]
    return [{"path": path, "body": body} for path, body in bodies]


def rebuilt(folder: Path) -> dict[str, tuple[str, Fields]]:
    """What the documented script makes of the objects in a folder: request_id → route, body."""
    code = script('"params_json" in row').replace('"2026-04-07"', repr(str(folder)))
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(code, "LOGGING.md", "exec"), {})
    found = (line.split(" ", 2) for line in output.getvalue().splitlines())
    return {request_id: (route, json.loads(body)) for request_id, route, body in found}


async def test_full_capture_rebuilds_every_request_and_completion_exactly(tmp_path: Path) -> None:
    said = completion(
        "2024-01-02",
        reasoning_content="10:30",
        tool_calls=[tool_call("550e8400-e29b-41d4-a716-446655440000", "query", "10:30")],
    )
    async with GivenAnswers() as provider:
        environment = {"LOG_DIR": str(tmp_path / "objects"), "LOG_CAPTURE": "full"}
        config = one_provider(provider.url)
        config["providers"]["nrp"]["models"] += [" kimi "]
        proxy = ProxyProcess(tmp_path / "proxy", config, environment)
        async with proxy, Asker(proxy) as asker:
            asked = {}
            for request in requests():
                body = {**request["body"], "given": {"body": said}}
                answer = await asker.send(json.dumps(body).encode(), path=request["path"])
                assert answer.json() == said
                asked[answer.headers["X-Proxy-Request-Id"]] = (request["path"], body)
            assert await proxy.stop() == 0
        rows = rows_of(proxy.stdout_lines())
    (folder,) = (tmp_path / "objects").iterdir()
    assert rebuilt(folder) == asked
    assert all(PROMPT not in json.dumps(row) for row in rows if row["type"] == "request")
    for row in rows:
        if row["type"] == "response":
            (call,) = row["tool_calls"]
            assert call["id"] == "550e8400-e29b-41d4-a716-446655440000"
            assert (row["content"], row["reasoning_content"]) == ("2024-01-02", "10:30")


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


def stored(body: Fields, endpoint: str = CHAT) -> StoredRequest:
    return store_request(body, endpoint, body.get("model"), Redactor(), TextHashes())


def asked_again(body: Fields, folder: Path, endpoint: str = CHAT) -> Fields:
    """The body that the documented script makes of its rows."""
    kept = stored(body, endpoint)
    tools = stored_tools(body, Redactor())
    texts = dict(kept.texts)
    row = {"type": "request", "request_id": "0", "endpoint": endpoint, "model": body["model"]}
    row |= {"params_json": kept.params_json}
    if kept.messages_json is not None:
        row["messages_json"] = kept.messages_json
    if tools is not None:
        row["tools_sha256"] = TextHashes().of(tools)
        texts[row["tools_sha256"]] = tools
    rows = [{"type": "text", "text_sha256": name, "content": text} for name, text in texts.items()]
    lines = [json.dumps(line) for line in [log_contract.head("0" * 16, "-"), row, *rows]]
    (folder / "00.jsonl").write_text("\n".join(lines) + "\n")
    ((_, again),) = rebuilt(folder).values()
    return again


@settings(max_examples=150, deadline=None)
@given(
    st.lists(MESSAGE | JSON, max_size=4) | JSON,
    st.lists(JSON, max_size=2) | JSON,
    st.dictionaries(SAFE_TEXT, JSON, max_size=4),
    st.booleans(),
)
def test_any_body_comes_back_as_it_was_redacted(
    messages: Any, tools: Any, params: Fields, long: bool
) -> None:
    if long and isinstance(messages, list):
        messages = [{"role": "system", "content": PROMPT}, *messages]
    body = {**params, "model": "kimi", "messages": messages, "tools": tools}
    with tempfile.TemporaryDirectory() as folder:
        assert asked_again(body, Path(folder)) == Redactor().value(body)


def test_messages_with_secrets_come_back_without_them(tmp_path: Path) -> None:
    secret = "password=hunter2hunter2 "
    messages = [
        {"role": "system", "content": PROMPT + secret + PROMPT},
        {"role": "user", "content": "my key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": secret}}]
    body = {"model": "kimi", "messages": messages, "tools": tools, "metadata": {"note": secret}}
    again = asked_again(body, tmp_path)
    written = (tmp_path / "00.jsonl").read_text()
    assert "hunter2" not in written and "sk-proj" not in written
    assert again == Redactor().value(body)


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
        "x " * 10_000_000,
    ],
)
def test_bodies_of_any_size_fit_into_a_line_as_json(messages: Any) -> None:
    kept = stored({"model": "kimi", "messages": messages, "other": messages})
    assert kept.messages_json is not None and kept.params_json is not None
    assert len(json.dumps(kept.messages_json)) < 6_000_000
    assert len(json.dumps(kept.params_json)) < 1_100_000
    assert all(len(text) < 4_500_000 for text in kept.texts.values())
    for text in (kept.messages_json, kept.params_json):
        value = json.loads(text)
        assert "…[cut: " in json.dumps([value, kept.texts], ensure_ascii=False)


# Texts as rows of their own.


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
            assert kinds.count("text") == 1
            assert kinds.index("text") < kinds.index("request")
    hashes = {
        row["system_sha256"] or row["text_sha256"] for row in rows if row["type"] != "response"
    }
    assert hashes == {hashlib.sha256(PROMPT.encode()).hexdigest()}
    assert not any(row["request_id"] for row in rows if row["type"] == "text")


class Calls:
    """Makes the entries of calls with one system prompt into a log that a test can break."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.capture = Capture(mode="full", texts=StoredTexts(300))

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
    assert calls.kinds == ["text", "request", "request"]


async def test_a_prompt_whose_append_failed_later_is_stored_by_the_next_call() -> None:
    calls = Calls()
    calls.log.openings.error = QueueFull("full")
    refused = calls.open()
    await asyncio.wait([refused])
    await asyncio.sleep(0)  # what else waits for that future has been told, too
    assert isinstance(refused.exception(), QueueFull)
    calls.log.openings.error = None
    await calls.open()
    assert calls.kinds == ["text", "request"]


class HeldLog:
    """Takes entries and leaves their fate to the test."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[tuple[bytes, ...]]] = []
        self.kinds: list[list[str]] = []

    def append(self, entries: Sequence[Entry]) -> "asyncio.Future[tuple[bytes, ...]]":
        self.kinds.append([json.loads(entry.body)["type"] for entry in entries])
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def open(self, entries: Sequence[Entry], interrupted_head: bytes) -> Any:
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
    assert log.kinds == [["text", "request"], ["request"], ["text"]]
    log.futures[2].set_exception(QueueFull("still full"))
    await asyncio.wait([log.futures[2]])
    await asyncio.sleep(0)
    calls.entries().open(log)
    assert log.kinds[3:] == [["text", "request"]]


async def test_rejected_calls_bring_their_prompt_too() -> None:
    calls = Calls()
    result = CallResult(outcome="rejected")
    await calls.entries().reject(calls.log, result)  # type: ignore[arg-type]
    await calls.open()
    assert calls.kinds == ["text", "request", "response", "request"]


def test_windows_and_hashes_decide_what_is_missing() -> None:
    texts = StoredTexts(300)
    row = Entry(b"{}", NOON_MS)
    loop = asyncio.new_event_loop()
    log = MemoryLog()
    assert texts.missing(["a", "b"], NOON_MS) == ["a", "b"]
    texts.handed_over({"a": row}, loop.create_future(), log)
    assert texts.missing(["a", "b"], NOON_MS + 299_999) == ["b"]
    assert texts.missing(["a", "b"], NOON_MS + 300_000) == ["a", "b"]
    loop.close()
