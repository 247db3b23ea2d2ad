"""What is logged of a call's texts: nothing, a summary or everything, and never more than that."""

import json
from pathlib import Path

import jsonschema
import pytest

import log_contract
import wire
from given_answers import (
    Asker,
    Fields,
    completion,
    events,
    logged,
    raw,
    tool_call,
    written_below,
)
from open_llm_proxy.archive.entry import described_fields, in_metadata
from open_llm_proxy.archive.json_schema import json_schema
from open_llm_proxy.server.entries.capture import Caps, logged_text
from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.redaction.redactor import Redactor
from proxy_process import ProxyProcess, one_provider
from raw_server import RawConnection, ok, serving
from stores import DirectoryStore

pytestmark = pytest.mark.timeout(seconds=60)
PROMPT = "You answer questions about protected areas. " * 20
NOON_MS = 1_700_049_600_000


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
        {
            "messages": "leak",
            "user": "leak",
            "path": "/v1/responses",
            "input": "leak",
            "previous_response_id": "a leak",
            "given": {"body": {**said, "id": "a leak"}},
        },
    ]


async def test_metadata_holds_no_text_of_anybody(tmp_path: Path) -> None:
    rows, _ = await logged(tmp_path, telling_calls(), LOG_CAPTURE="metadata")
    assert len(rows) == 2 * len(telling_calls())
    assert "leak" not in json.dumps(rows).lower()
    objects = b"".join(data for _, data in DirectoryStore(tmp_path / "objects").objects())
    assert objects.count(b"\n") >= len(rows) and b"leak" not in objects.lower()
    leaks = {path.name: b"leak" in data.lower() for path, data in written_below(tmp_path).items()}
    assert "stderr.txt" in leaks and not any(leaks.values())
    validator = jsonschema.Draft202012Validator(json_schema())
    for row in rows:
        validator.validate({name: value for name, value in row.items() if value is not None})
    in_summary, _ = await logged(tmp_path / "summary", telling_calls())
    assert all("leak" in json.dumps(row) for row in in_summary), "a call that tells nothing"


async def test_metadata_keeps_counts_tokens_times_and_outcome(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cost": 0.5}
    said = completion("a", usage=usage)
    calls: list[Fields] = [
        {
            "messages": [{"role": "user", "content": "q"}] * 3,
            "tools": [{}],
            "headers": {"Origin": "https://app.example:8443", "X-Session-Id": session},
            "given": {"body": said, "headers": {"x-request-id": "req_123"}},
        }
        for session in ("one", "one", "two")
    ]
    rows, answers = await logged(tmp_path, calls, LOG_CAPTURE="metadata")
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
        "response_id": "chatcmpl-1",
        "upstream_attempts": 1,
        "cost_usd": 0.5,
    }
    assert {name: response[name] for name in expected} == expected
    assert response["latency_ms"] >= response["ttft_ms"] >= 0
    assert response["response_bytes"] == len(answers[0].content)
    assert request["request_bytes"] == int(answers[0].request.headers["Content-Length"])
    sessions = [row["session_id"] for row in rows]
    assert sessions[0] == sessions[1] == sessions[2] != sessions[4]
    assert all(len(session) == 16 and "one" not in session for session in sessions)


def test_every_field_that_may_hold_text_says_what_is_left_of_it() -> None:
    kept = {name for name, kind, meta in described_fields() if in_metadata(meta) == "kept"}
    texts = {name for name, kind, _ in described_fields() if kind not in (int, bool, float)}
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


async def test_the_rows_tell_sizes_times_and_how_often_a_request_was_sent(tmp_path: Path) -> None:
    said = json.dumps(completion("fine")).encode()

    posts: list[wire.Request] = []

    async def script(connection: RawConnection) -> None:
        """A kept connection ends at the second call, which is sent again on another."""
        async for request in connection.more_requests():
            posts.extend([request] if request.method == "POST" else [])
            if request.method == "POST" and len(posts) == 2:
                return
            await connection.send(ok(said))

    async with serving(script) as (server, _):
        proxy = ProxyProcess(tmp_path, one_provider(server.url), {})
        async with proxy, Asker(proxy) as asker:
            for _ in range(2):
                assert (await asker.ask("hi")).content == said
            assert await proxy.stop() == 0
            rows = log_contract.read_rows(proxy.stdout_lines())
    answers = [row for row in rows if row["type"] == "response"]
    assert [row["upstream_attempts"] for row in answers] == [1, 2]
    for row in answers:
        assert row["response_bytes"] == len(said)
        assert 0 <= row["ttft_ms"] <= row["latency_ms"]


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


# Remembered redaction.


def test_a_remembering_redactor_says_what_the_plain_one_says_within_its_room() -> None:
    remembering = RememberingRedactor(("a-key-of-this-process",), max_bytes=20_000)
    plain = Redactor(("a-key-of-this-process",))
    texts = [f"{number} a-key-of-this-process password=hunter2x " + PROMPT for number in range(50)]
    texts += [PROMPT + str(number) for number in range(50)]
    for _ in range(2):
        for text in texts:
            assert remembering.text(text) == remembering.text(text) == plain.text(text)
            assert remembering._seen.held_bytes <= 20_000
    assert "a-key" not in repr(remembering)


def test_caps_have_the_documented_defaults() -> None:
    assert Caps() == Caps(content=0, reasoning=0, tool_result=20_000, user_question=4_000)
