"""The loop of a session, against a scripted provider and a real MCP server."""

import json
from pathlib import Path

import pytest

from agent_command import Run
from agent_provider import AgentProvider, asks, call, fails, says

pytest_plugins = ("agent_fixtures",)

RANKING = "SELECT state, gap12\nFROM states ORDER BY gap12 DESC"


def test_a_question_is_answered_with_the_results_of_a_tool(
    run_agent: Run, llm: AgentProvider
) -> None:
    first = call("query", sql=RANKING)
    llm.script(asks(first), says("Nevada is first."))
    done = run_agent("Rank states by fraction that is GAP 1+2")
    assert done.code == 0
    assert "Nevada is first." in done.out
    table = "state | gap12\nNevada | 0.41\nHawaii | 0.38\nIowa | 0.02"
    system, user, assistant, tool = llm.requests[1].body["messages"]
    assert system["content"].startswith("Answer from the table states")
    assert user == {"role": "user", "content": "Rank states by fraction that is GAP 1+2"}
    assert assistant == {"role": "assistant", "content": None, "tool_calls": [first]}
    assert tool == {"role": "tool", "tool_call_id": first["id"], "content": table}
    assert done.transcript["status"] == "answered"
    assert done.transcript["answer"] == "Nevada is first."
    [record] = done.transcript["turns"][0]["tool_calls"]
    assert (record["id"], record["arguments"]) == (first["id"], first["function"]["arguments"])
    assert (record["result"], record["is_error"]) == (table, False)
    assert done.transcript["usage"]["total_tokens"] == 220


def test_the_tools_of_the_server_are_offered_under_valid_names(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.script(asks(call("data_size")), says("Three."))
    done = run_agent("How many?")
    functions = {tool["function"]["name"]: tool for tool in llm.requests[0].body["tools"]}
    assert functions["query"]["type"] == "function"
    assert functions["query"]["function"]["description"] == "Run SQL over the table states."
    assert functions["query"]["function"]["parameters"]["required"] == ["sql"]
    assert functions["hang"]["function"]["parameters"]["properties"] == {}
    assert json.loads(done.transcript["turns"][0]["tool_calls"][0]["result"]) == {"rows": 3}


def test_calls_of_one_turn_run_together(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("meet", count=3), call("meet", count=3), call("meet", count=3)))
    done = run_agent("Meet", "--max-turns", "2", "--tool-timeout", "20")
    results = [c["result"] for c in done.transcript["turns"][0]["tool_calls"]]
    assert results == ["met", "met", "met"]


def test_what_goes_wrong_with_a_call_goes_back_to_the_model(
    run_agent: Run, llm: AgentProvider
) -> None:
    wrong = [
        call("query", raw='{"sql": "SELECT'),
        call("query", raw="[1]"),
        call("drop_everything"),
        call("query", sql="SELEC 1"),
        call("query", nonsense=1),
        call("hang"),
    ]
    right = call("query", sql="SELECT count(*) AS n FROM states")
    llm.script(asks(*wrong, right), says("Sorry."))
    done = run_agent("Do it wrong", "--tool-timeout", "1")
    assert done.code == 0
    results = llm.requests[1].results
    assert "not valid JSON" in results[0]
    assert '{"sql": "SELECT' in results[0]
    assert "not a JSON object" in results[1]
    assert results[2].startswith("There is no tool 'drop_everything'. The tools are: query, ")
    assert "syntax error" in results[3]
    assert "sql" in results[4]
    assert results[5] == "No result within 1 seconds; it was given up."
    assert results[6] == "n\n3"
    errors = [c["is_error"] for c in done.transcript["turns"][0]["tool_calls"]]
    assert errors == [True] * 6 + [False]


def test_arguments_that_are_no_object_are_sent_back_as_an_empty_one(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.script(asks(call("query", raw="{oops"), call("next_number", raw="")), says("Done."))
    done = run_agent("Do it wrong")
    sent = llm.requests[1].body["messages"][2]["tool_calls"]
    assert [c["function"]["arguments"] for c in sent] == ["{}", "{}"]
    written = [c["arguments"] for c in done.transcript["turns"][0]["tool_calls"]]
    assert written == ["{oops", ""]
    assert not done.transcript["turns"][0]["tool_calls"][1]["is_error"]


def test_long_results_are_cut_with_a_mark(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("long", characters=5000)), says("Long."))
    done = run_agent("Long?", "--max-result-chars", "1000")
    [result] = llm.requests[1].results
    assert result.startswith("x" * 1000 + "\n[cut: the first 1,000 of 5,000 characters are shown")
    record = done.transcript["turns"][0]["tool_calls"][0]
    assert (record["result"], record["result_chars"]) == (result, 5000)
    assert "5,000 characters, cut" in done.out


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_reasoning_is_shown_and_not_sent_back(
    run_agent: Run, llm: AgentProvider, name: str, options: list[str]
) -> None:
    thought = {name: "First look at the table."}
    llm.script(asks(call("next_number"), **thought), says("One.", **thought))
    done = run_agent("Think", *options)
    assert "~ First look at the table." in done.out
    assert "First look" not in json.dumps(llm.requests[1].body)
    assert [turn["reasoning"] for turn in done.transcript["turns"]] == [*thought.values()] * 2


def test_the_turn_limit_ends_the_session_with_code_3(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("next_number")), asks(call("next_number")))
    done = run_agent("Go on", "--max-turns", "2")
    assert done.code == 3
    assert done.err == "agent_runner: No answer within 2 turns.\n"
    assert done.transcript["status"] == "turn_limit"
    assert done.transcript["turns"][1]["tool_calls"][0]["result"] is None
    assert len(llm.requests) == 2


def test_repeating_the_same_call_ends_the_session(run_agent: Run, llm: AgentProvider) -> None:
    llm.choose(lambda _: asks(call("query", sql="SELECT 1")))
    done = run_agent("Loop")
    assert done.code == 1
    assert done.transcript["status"] == "no_progress"
    assert len(llm.requests) == 3


def test_a_cycle_of_calls_is_no_progress_either(run_agent: Run, llm: AgentProvider) -> None:
    one, two = call("query", sql="SELECT 1"), call("query", raw='{"sql":  "SELECT 2"}')
    llm.choose(lambda _: asks(one if len(llm.requests) % 2 else two))
    assert run_agent("Loop").transcript["status"] == "no_progress"
    assert len(llm.requests) == 4


def test_the_same_call_with_another_result_is_progress(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(*[asks(call("next_number")) for _ in range(6)], says("Six."))
    assert run_agent("Count").transcript["status"] == "answered"


def test_server_errors_and_rate_limits_are_tried_again(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(fails(500, "oops"), fails(429, "slow down"), says("At last."))
    done = run_agent("Hello")
    assert done.code == 0
    assert done.transcript["turns"][0]["retries"] == 2
    counts = [r.headers["x-stainless-retry-count"] for r in llm.requests]
    assert counts == ["0", "1", "2"]
    assert "after 2 retries" in done.out


def test_a_failure_in_mid_session_keeps_the_turns_before_it(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.script(asks(call("next_number")), *[fails(503, "The log queue is full.")] * 3)
    done = run_agent("Hello")
    assert done.code == 1
    assert done.err == f"agent_runner: {llm.url} answered 503: The log queue is full.\n"
    assert done.transcript["status"] == "failed"
    assert len(done.transcript["turns"]) == 1


def test_the_whole_run_is_one_session_in_the_log(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("next_number")), says("One."))
    done = run_agent("Hello", "--origin", "https://app.example.org")
    sent = {
        (r.headers["x-session-id"], r.body["user"], r.headers["origin"], r.headers["x-client"])
        for r in llm.requests
    }
    session = done.transcript["session_id"]
    assert sent == {(session, session, "https://app.example.org", "open-llm-proxy-agent")}
    identities = [turn["proxy_request_id"] for turn in done.transcript["turns"]]
    assert identities == ["request-1", "request-2"]


def test_each_run_is_a_session_of_its_own_unless_one_is_given(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.choose(lambda _: says("Hello."))
    sessions = [run_agent("Hello").transcript["session_id"] for _ in range(2)]
    assert sessions[0] != sessions[1]
    assert run_agent("Hello", "--session-id", "mine").transcript["session_id"] == "mine"


def test_only_what_the_user_set_is_sent(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("Hello."), says("Hello."), says("Hello."))
    run_agent("Hello")
    run_agent("Hello", "--temperature", "0", "--enable-thinking", "--model", "kimi")
    run_agent("Hello", "--no-enable-thinking")
    bodies = [request.body for request in llm.requests]
    assert bodies[0].keys() == {"model", "messages", "user", "tools"}
    assert bodies[0]["model"] == "nemotron"
    assert (bodies[1]["model"], bodies[1]["temperature"]) == ("kimi", 0)
    assert [body.get("enable_thinking") for body in bodies] == [None, True, False]


def test_the_system_prompt_comes_from_a_file_or_a_url(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    path = tmp_path / "system-prompt.md"
    path.write_text("You are a ranger.\n")
    llm.script(says("Hello."), says("Hello."))
    done = run_agent("Hello", "--system-prompt", str(path))
    run_agent("Hello", "--system-prompt", llm.url.replace("/v1", "/prompt.md"))
    prompts = [request.body["messages"][0]["content"] for request in llm.requests]
    assert prompts == ["You are a ranger.\n", "You are terse."]
    assert done.transcript["system_prompt"] == "You are a ranger.\n"


def test_an_empty_answer_is_a_failure(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("", finish_reason="length"))
    done = run_agent("Hello")
    assert done.code == 1
    assert "neither an answer nor a tool call (finish reason: length)" in done.err


def test_an_answer_that_was_cut_off_says_so(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("The first is", finish_reason="length"))
    done = run_agent("Hello")
    assert done.code == 0
    assert "cut off at the token limit" in done.out


def test_text_that_is_not_valid_unicode_does_not_stop_a_session(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.script(asks(call("next_number"), content="\ud800"), says("One \udfff."))
    done = run_agent("Hello")
    assert done.code == 0
    assert done.transcript["answer"] == "One ?."
