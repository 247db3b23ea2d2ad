"""Sessions through the real proxy: what its log says is what the transcript says."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from agent_command import REPO, Run
from agent_provider import AgentProvider, asks, call, fails, says
from proxy_process import PROVIDER_KEY, PROXY_KEY, ProxyProcess
from stores import DirectoryStore

pytest_plugins = ("agent_fixtures",)

RANKING = "SELECT state, gap12\nFROM states\nORDER BY gap12 DESC"


@pytest.fixture
def proxy(
    llm: AgentProvider,
    start_proxy: Callable[..., ProxyProcess],
    directory_store: DirectoryStore,
) -> Iterator[ProxyProcess]:
    """The proxy in front of the scripted provider; it serves two models and no other."""
    llm.key = PROVIDER_KEY
    lab = {
        "endpoint": f"{llm.url}/chat/completions",
        "api_key_env": "NRP_API_KEY",
        "models": ["kimi", "nemotron"],
    }
    proxy = start_proxy({"providers": {"lab": lab}}, directory_store.env())
    asyncio.run(proxy.start())
    yield proxy


def query_of_the_documentation(session_id: str) -> str:
    """The query of LOGGING.md that gives a session turn by turn."""
    text = (REPO / "LOGGING.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    [query] = [block for block in blocks if "AS question" in block]
    return str(query.replace("my-session", session_id))


def entries_in(folder: Path) -> str:
    """All rows of the log but the heads of objects, for a FROM."""
    return f"read_ndjson_auto('{folder}/*/*.jsonl') WHERE type <> 'schema'"


def logged_turns(folder: Path, session_id: str) -> list[dict[str, Any]]:
    with duckdb.connect() as database:
        objects = f"SELECT * FROM {entries_in(folder)}"
        database.execute(f"CREATE VIEW log AS {objects}")
        result = database.sql(query_of_the_documentation(session_id))
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def turns_of(transcript: dict[str, Any]) -> list[dict[str, Any]]:
    """The transcript in the columns of the query."""
    turns: list[dict[str, Any]] = []
    question, results = transcript["question"], None
    for turn in transcript["turns"]:
        calls = [{key: c[key] for key in ("id", "name", "arguments")} for c in turn["tool_calls"]]
        turns.append(
            {
                "request_id": turn["proxy_request_id"],
                "question": question,
                "tool_results": results,
                "tool_calls": calls or None,
                "content": turn["content"] or None,
            }
        )
        question = None
        results = [{"tool_call_id": c["id"], "content": c["result"]} for c in turn["tool_calls"]]
    return turns


def test_the_log_rebuilds_the_sessions_that_ran_through_the_proxy(
    run_agent: Run, llm: AgentProvider, proxy: ProxyProcess, directory_store: DirectoryStore
) -> None:
    transcripts = []
    for options in ([], ["--stream"]):
        llm.script(
            asks(
                call("query", sql=RANKING),
                call("query", sql="SELEC"),
                call("query", raw="{oops"),
                call("no_such_tool"),
                content="I look it up.",
                reasoning_content="Several at once.",
            ),
            fails(500, "Busy."),
            asks(call("query", sql="SELECT count(*) AS n FROM states"), call("picture")),
            says("**Nevada** is first, with 41 %."),
        )
        places = ("--proxy-url", f"{proxy.url}/v1", "--api-key", PROXY_KEY)
        done = run_agent("Rank the states", *places, *options)
        assert done.code == 0, done.err
        assert done.transcript["turns"][1]["retries"] == 1
        transcripts.append(done.transcript)
    assert asyncio.run(proxy.stop()) == 0
    for transcript in transcripts:
        logged = logged_turns(directory_store.folder, transcript["session_id"])
        assert logged == turns_of(transcript)
        assert len(logged) == 3
    rows = duckdb.sql(f"SELECT * FROM {entries_in(directory_store.folder)}")
    seen = rows.select("session_id, origin, client, stream").distinct().fetchall()
    client = "open-llm-proxy-agent"
    assert sorted(seen) == sorted(
        (transcript["session_id"], "agent-runner", client, transcript["stream"])
        for transcript in transcripts
    )
    retried = rows.filter("type = 'response' AND status = 500 AND outcome = 'upstream_error'")
    assert len(retried.fetchall()) == 2


def test_what_the_proxy_refuses_is_told_in_its_words(run_agent: Run, proxy: ProxyProcess) -> None:
    url = f"{proxy.url}/v1"
    wrong = run_agent("Hello", "--proxy-url", url, "--api-key", "wrong-key")
    assert wrong.code == 1
    assert wrong.err.startswith(f"agent_runner: {url} refused the key: ")
    unknown = run_agent("Hello", "--proxy-url", url, "--api-key", PROXY_KEY, "--model", "gpt-9")
    assert unknown.code == 1
    assert "gpt-9" in unknown.err
    assert "kimi" in unknown.err
    lost = run_agent("Hello", "--proxy-url", f"{proxy.url}/v2", "--api-key", PROXY_KEY)
    assert lost.code == 1
    for done in (wrong, unknown, lost):
        assert done.err.count("\n") == 1
