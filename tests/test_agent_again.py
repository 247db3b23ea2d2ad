"""A session of the log asked again: recorded through the real proxy, then put to other models."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from agent_command import Run, recording
from agent_provider import AgentProvider, Request, Step, asks, call, says
from proxy_process import PROVIDER_KEY, PROXY_KEY, ProxyProcess
from stores import DirectoryStore

pytest_plugins = ("agent_fixtures",)

RANKING = "SELECT state, gap12\nFROM states\nORDER BY gap12 DESC"
PROMPT = "You answer questions about protected areas. " * 20


@pytest.fixture
def recorded(
    run_agent: Run,
    llm: AgentProvider,
    start_proxy: Callable[..., ProxyProcess],
    directory_store: DirectoryStore,
    tmp_path: Path,
) -> tuple[dict[str, Any], Path]:
    """A session that ran through the proxy with capture `full`: its transcript, and the log."""
    llm.key = PROVIDER_KEY
    lab = {
        "endpoint": f"{llm.url}/chat/completions",
        "api_key_env": "NRP_API_KEY",
        "models": ["kimi"],
    }
    environment = {**directory_store.env(), "LOG_CAPTURE": "full"}
    proxy = start_proxy({"providers": {"lab": lab}}, environment)
    asyncio.run(proxy.start())
    prompt = tmp_path / "prompt.md"
    prompt.write_text(PROMPT)
    llm.script(
        asks(call("query", sql=RANKING), call("next_number")),
        asks(call("next_number")),
        says("Nevada is first."),
    )
    options = ("--model", "kimi", "--temperature", "0.5", "--system-prompt", str(prompt))
    done = run_agent(
        "Rank", *options, "--proxy-url", f"{proxy.url}/v1", "--api-key", PROXY_KEY, "--stream"
    )
    assert done.code == 0, done.err
    assert asyncio.run(proxy.stop()) == 0
    llm.key = "key-of-the-agent-tests"
    return done.transcript, directory_store.folder


def by_model(request: Request) -> Step:
    """One model repeats what was recorded, the other asks something else first."""
    results = request.results
    if not results:
        other = request.body["model"] == "other"
        spelt = json.dumps({"sql": RANKING}, indent=1)
        query = call("query", sql="SELECT 42 AS n") if other else call("query", raw=spelt)
        return asks(query, call("next_number"), call("next_number"), call("next_number"))
    return says(f"Seen: {results[0]}")


def test_a_recorded_session_is_put_to_other_models_side_by_side(
    recorded: tuple[dict[str, Any], Path],
    run_agent: Run,
    llm: AgentProvider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    first, log = recorded
    rows = duckdb.sql(f"SELECT * FROM read_ndjson_auto('{log}/*/*.jsonl') WHERE type='request'")
    [hashes] = rows.select("system_sha256, tools_sha256, proxy_version").distinct().fetchall()
    made_by = first["provenance"]
    assert hashes == (made_by["system_sha256"], made_by["tools_sha256"], made_by["proxy"])
    assert made_by["mcp_server"].startswith("states ")
    assert made_by["libraries"].keys() == {"openai", "mcp"}

    llm.choose(by_model)
    again = ("--from-session", first["session_id"], "--log", str(log))
    options = ("--model", "same", "--model", "other", "--transcript", "again", "--concurrency", "1")
    done = run_agent(*again, *options, "--mcp-url", "http://127.0.0.1:9/mcp")
    assert done.code == 0, done.err

    body = llm.requests[0].body
    assert body["messages"] == [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": "Rank"},
    ]
    assert body["temperature"] == 0.5
    assert "stream" not in body
    assert {t["function"]["name"] for t in body["tools"]} == set(first["tools"])
    table = first["turns"][0]["tool_calls"][0]["result"]
    assert llm.requests[1].results == [table, "1", "2", "2"]  # as recorded; the last one stays
    assert llm.requests[3].results[0] == (
        "The recorded session did not call query with these arguments, "
        "and only recorded results can be given."
    )
    shown = done.out[done.out.index("kimi (recorded)") :]
    heads, answers = shown.split("\n> Rank\n")
    assert heads.splitlines()[0].split() == ["kimi", "(recorded)", "same", "other"]
    assert "1 not" in heads
    assert answers.startswith("Nevada is first.")
    assert all(len(line) <= 100 for line in done.out.splitlines())
    transcript = json.loads(next((tmp_path / "again").glob("*-same.json")).read_text())
    assert transcript["recorded_session"] == first["session_id"]
    assert transcript["tool_server"] == "recorded results"


def test_live_tools_are_called_where_the_server_has_them(
    recorded: tuple[dict[str, Any], Path], run_agent: Run, llm: AgentProvider
) -> None:
    first, log = recorded
    llm.choose(by_model)
    again = ("--from-session", first["session_id"], "--log", str(log), "--tools", "live")
    done = run_agent(*again, "--model", "other", "--json")
    assert done.code == 0, done.err
    assert llm.requests[1].results[0] == "n\n42"
    [recorded_row, row] = [json.loads(line) for line in done.out.splitlines()]
    assert (recorded_row["cell"], recorded_row["answers"]) == ("recorded", ["Nevada is first."])
    assert (recorded_row["turns"], recorded_row["tool_calls"]) == (3, 3)
    assert (row["answers"], row["not_recorded"]) == (["Seen: n\n42"], 0)


def row(kind: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "request_id": str(number),
        "timestamp": f"2026-04-07T02:00:0{number}.000Z",
        "session_id": "s",
        "endpoint": "/v1/chat/completions",
        "model": "kimi",
        **fields,
    }


def asked(number: int, messages: list[Any], **fields: Any) -> dict[str, Any]:
    return row("request", number, messages_json=json.dumps(messages), **fields)


def test_a_conversation_of_several_questions_is_taken_apart() -> None:
    user = [{"role": "user", "content": text} for text in ("One?", "Hint.", "Two?")]
    [tool] = [call("query", sql="SELECT 1")]
    first = [{"role": "system", "content": {"text_sha256": "p"}}, user[0], user[1]]
    second = [
        *first,
        {"role": "assistant", "content": None, "tool_calls": [tool]},
        {"role": "tool", "tool_call_id": tool["id"], "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "content": "It is one."},
        user[2],
    ]
    rows = [
        asked(1, first),
        row("response", 1, tool_calls=[{}], prompt_tokens=5, latency_ms=500),
        asked(2, second, params_json='{"top_p": 0.5, "stream": true}', tools_sha256="t"),
        row("response", 2, content="It is two.", completion_tokens=3),
    ]
    found = recording.make_recording("s", rows, {"p": "Be brief.", "t": "[5, {}]"})
    assert found.opening == [{"role": "system", "content": "Be brief."}]
    assert found.questions == [user[:2], user[2:]]
    assert found.answers == ["It is one.", "It is two."]
    assert found.results == {recording.call_key("query", '{"sql":"SELECT 1"}'): ["1"]}
    assert (found.functions, found.params) == ([{}], {"top_p": 0.5})
    assert (found.turns, found.tool_calls, found.seconds) == (2, 1, 0.5)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row("request", 1)], "was not logged with LOG_CAPTURE=full"),
        ([row("response", 1)], "has no chat completions"),
        ([asked(1, [{"role": "system", "content": "x"}])], "asks no question"),
        ([row("request", 1, messages_json='"cut"')], "asks no question"),
    ],
)
def test_rows_that_are_no_conversation_are_told(rows: list[Any], why: str) -> None:
    with pytest.raises(recording.NoRecording, match=why):
        recording.make_recording("s", rows, {})


def test_a_session_is_found_on_its_days_and_what_is_not_there_is_told(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    """The session goes on over midnight; two later days have others."""
    question = [{"role": "user", "content": "One?"}]
    more = [*question, {"role": "assistant", "content": "1."}, {"role": "user", "content": "Two?"}]
    days = {"07": asked(1, question), "08": asked(2, more), "09": {"session_id": "t"}, "10": {}}
    for day, line in days.items():
        path = tmp_path / "log" / f"2026-04-{day}" / "02-00-00-a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(f"no entry of s\n{json.dumps(line)}\n")
    llm.choose(lambda request: says(f"{len(request.body['messages'])} messages."))
    log = ("--log", str(tmp_path / "log"))
    done = run_agent("--from-session", "s", *log, "--json")
    assert done.code == 0, done.err
    [recorded_row, again] = [json.loads(line) for line in done.out.splitlines()]
    assert recorded_row["turns"] == 2
    assert (again["model"], again["answers"]) == ("kimi", ["1 messages.", "3 messages."])
    missing = run_agent("--from-session", "nobody", *log)
    assert missing.err.endswith("/log has no session nobody.\n")
    nowhere = run_agent("--from-session", "s", "--log", str(tmp_path / "nowhere"))
    assert nowhere.code == 1 and "nowhere" in nowhere.err
    assert run_agent("--from-session", "s").code == 2
    assert run_agent("Rank", "--from-session", "s", *log).code == 2
