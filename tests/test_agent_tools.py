"""MCP servers: every kind of content, both transports, and servers that break or come back."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import wire
from agent_command import Run, content, mcp_command, mcp_server, mcp_tools
from agent_provider import AgentProvider, Request, Step, asks, call, says

pytest_plugins = ("agent_fixtures",)


def test_every_kind_of_content_becomes_text(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("picture"), call("recording"), call("documents")), says("Seen."))
    run_agent("Show me")
    assert llm.requests[1].results == [
        "The map:\n[image image/png, 60 bytes, not shown]",
        "[audio audio/wav, 100 bytes, not shown]",
        "[resource data://note text/plain]\nRead me.\n"
        "[resource data://tile image/tiff, 6 bytes, not shown]\n"
        "[link to a resource: full, https://example.org/full.parquet, All]",
    ]


def text_result(*texts: str, structured: object = None) -> dict[str, Any]:
    parts = [{"type": "text", "text": text} for text in texts]
    return {"content": parts, "structuredContent": structured}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (text_result('{"rows": 3}', structured={"rows": 3}), '{"rows": 3}'),
        (text_result("three", structured={"result": "three"}), "three"),
        (text_result("a", "b", structured={"result": ["a", "b"]}), "a\nb"),
        (text_result("1", "2", structured={"result": [1, 2]}), "1\n2"),
        (text_result("Three rows.", structured={"rows": 3}), 'Three rows.\n{"rows": 3}'),
        (text_result(structured={"rows": 3}), '{"rows": 3}'),
        (text_result(), "[the tool returned nothing]"),
        ({"isError": True}, "[the tool reported an error without a text]"),
    ],
)
def test_structured_content_is_added_where_the_text_does_not_say_it(
    result: dict[str, Any], expected: str
) -> None:
    assert content.result_text(result) == expected


def test_tool_names_become_valid_and_stay_different() -> None:
    names: dict[str, mcp_tools.Tool] = {}
    for name in ("data.size", "data/size", "x" * 80, "x" * 90):
        valid = mcp_tools.function_name(name, names)
        names[valid] = mcp_tools.Tool(valid, name, "", {})
    assert [*names] == ["data_size", "data_size_2", "x" * 64, "x" * 62 + "_2"]


def test_a_server_over_stdio_works_and_its_death_ends_one_call(
    run_agent: Run, llm: AgentProvider, states: Path
) -> None:
    size = call("query", sql="SELECT count(*) AS n FROM states")
    llm.script(asks(size), asks(call("die")), asks(size), says("Three."))
    done = run_agent("How many?", "--mcp-command", mcp_command(states))
    assert done.code == 0
    results = llm.requests[3].results
    assert results[0] == results[2] == "n\n3"
    assert "broke during this call" in results[1]
    assert done.transcript["system_prompt_source"] == "mcp server"


def test_a_key_in_the_environment_does_not_reach_a_stdio_server(
    run_agent: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_DATA", "here")
    seen = tmp_path / "environment.txt"
    done = run_agent("Hello", "--mcp-command", f"sh -c 'env > {seen}; echo no server >&2'")
    assert done.code == 1
    assert done.err == "agent_runner: The MCP command sh does not work: no server.\n"
    assert "MY_DATA=here" in seen.read_text()
    assert "OPENAI_API_KEY" not in seen.read_text()


def test_a_restarted_server_is_found_again_and_one_that_stays_away_ends_the_session(
    run_agent: Run, llm: AgentProvider, states: Path
) -> None:
    """After the first call another process serves the port; the third call kills that one too."""
    here = ("--port", str(wire.free_port()), "--legacy")
    with ExitStack() as servers:
        url = servers.enter_context(mcp_server(states, *here))

        def step(request: Request) -> Step:
            if len(llm.requests) == 2:
                servers.close()
                servers.enter_context(mcp_server(states, *here))
            if len(llm.requests) == 1:
                return asks(call("next_number"), call("long", characters=3_000_000))
            return asks(call("die" if len(llm.requests) == 3 else "next_number"))

        llm.choose(step)
        done = run_agent("Hello", "--mcp-url", url, "--max-result-chars", "0")
    first, long, second, broken = llm.requests[3].results
    # Both say 1: each process counts for itself, and the second call was made once.
    assert (first, second) == ("1", "1")
    assert long == "x" * 3_000_000  # three times what the SDK takes in one event by default
    assert "broke during this call (SSE stream ended" in broken
    assert done.code == 1
    assert done.err.startswith(f"agent_runner: The MCP server {url} cannot be reached: ")
    assert done.err.count("\n") == 1
    assert done.transcript["status"] == "failed"
    assert len(done.transcript["turns"]) == 4


def test_a_server_that_does_not_speak_mcp_is_told(run_agent: Run, llm: AgentProvider) -> None:
    url = llm.url.replace("/v1", "/mcp")
    done = run_agent("Hello", "--mcp-url", url)
    assert done.code == 1
    assert done.err == (
        f"agent_runner: {url} answered HTTP 404 Not Found (there is nothing at this URL) instead "
        "of MCP: check --mcp-url, which usually ends in /mcp.\n"
    )


def test_a_server_that_is_down_is_told(run_agent: Run, llm: AgentProvider) -> None:
    url = f"http://127.0.0.1:{wire.free_port()}/mcp"
    done = run_agent("Hello", "--mcp-url", url)
    assert done.code == 1
    assert done.err.startswith(f"agent_runner: The MCP server {url} cannot be reached: ")
    assert done.err.count("\n") == 1
    assert not llm.requests
    assert done.transcript["status"] == "failed"


def test_a_command_that_does_not_exist_is_told(run_agent: Run) -> None:
    done = run_agent("Hello", "--mcp-command", "no-such-program --stdio")
    assert done.code == 1
    assert "The MCP command no-such-program does not work: " in done.err
    assert "No such file" in done.err


def test_secrets_in_the_mcp_url_stay_out_of_what_is_written(
    run_agent: Run, llm: AgentProvider, mcp_url: str
) -> None:
    llm.script(says("Hello."))
    url = mcp_url.replace("://", "://user:hidden@") + "?token=hidden"
    done = run_agent("Hello", "--mcp-url", url)
    assert done.code == 0
    assert "hidden" not in done.out + json.dumps(done.transcript)
