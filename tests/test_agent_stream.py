"""Streams: put together as an unstreamed answer, shown as they come, never silently cut."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_command import Run, reply
from agent_provider import AgentProvider, Whole, asks, call, says

pytest_plugins = ("agent_fixtures",)


def test_a_stream_gives_the_same_transcript_as_an_unstreamed_answer(
    run_agent: Run, llm: AgentProvider
) -> None:
    steps = [
        asks(
            call("query", sql="SELECT max(gap12) AS best FROM states"),
            call("query", sql="SELECT min(gap12) AS worst FROM states"),
            content="I look it up.",
            reasoning_content="Two queries will do.",
        ),
        says("Between **0.02** and **0.41**."),
    ]
    turns = []
    for options in ([], ["--stream"]):
        llm.script(*steps)
        done = run_agent("How far apart?", *options)
        assert done.code == 0
        for turn in done.transcript["turns"]:
            for varying in ("started_at", "seconds", "proxy_request_id"):
                del turn[varying]
            for tool_call in turn["tool_calls"]:
                del tool_call["seconds"]
        turns.append(done.transcript["turns"])
    assert turns[0] == turns[1]
    assert llm.requests[0].body["stream_options"] == {"include_usage": True}


def test_a_stream_that_ends_in_the_middle_is_a_failure(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("Half of this answer is missing.", break_after=3))
    done = run_agent("Hello", "--stream")
    assert done.code == 1
    assert done.err == (
        f"agent_runner: {llm.url} did not send a complete answer: the stream ended in the middle.\n"
    )
    assert done.transcript["answer"] == ""


def test_a_connection_that_is_lost_in_a_stream_is_a_failure(
    run_agent: Run, llm: AgentProvider
) -> None:
    event = 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'
    lost = {"Content-Type": "text/event-stream", "Content-Length": "9999"}
    llm.script(Whole(200, event, lost))
    done = run_agent("Hello", "--stream")
    assert done.code == 1
    assert done.err.startswith(f"agent_runner: The connection to {llm.url} failed: ")


def test_an_error_event_in_a_stream_is_told(run_agent: Run, llm: AgentProvider) -> None:
    event = (
        'event: error\ndata: {"error": {"message": "The provider broke off.", "code": null}}\n\n'
    )
    llm.script(Whole(200, event, {"Content-Type": "text/event-stream"}))
    done = run_agent("Hello", "--stream")
    assert done.code == 1
    assert "The provider broke off." in done.err


def test_a_stream_of_nonsense_is_a_failure(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(Whole(200, "data: {oops\n\n", {"Content-Type": "text/event-stream"}))
    done = run_agent("Hello", "--stream")
    assert done.code == 1
    assert "is no JSON" in done.err


class Chunks:
    """Deltas as the SDK would hand them over."""

    def __init__(self, *deltas: dict[str, Any]) -> None:
        ends = [(delta, None) for delta in deltas] + [({}, "tool_calls")]
        self._chunks = [{"choices": [{"delta": d, "finish_reason": f}]} for d, f in ends]

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for chunk in self._chunks:
            yield chunk

    async def close(self) -> None:
        pass


def part(arguments: str, **more: Any) -> dict[str, Any]:
    """A delta with one part of a tool call."""
    name = more.pop("name", None)
    return {"tool_calls": [{**more, "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    "deltas",
    [
        (
            part("{", index=0, id="a", name="query"),
            part("[", index=1, id="b", name="size"),
            part("]", index=1),
            part("}", index=0),
        ),
        (part("{}", index=0, id="a", name="query"), part("[]", index=0, id="b", name="size")),
        (
            part("{", id="a", name="query"),
            part("}"),
            part("[", id="b", name="size"),
            part("]"),
        ),
        (
            part("{", index=0, id="a", name="query"),
            part("}", index=0, id="a", name="query"),
            part("[]", index=1, id="b", name="size"),
        ),
    ],
    ids=["as OpenAI does", "all numbered 0", "without numbers", "id and name repeated"],
)
async def test_tool_calls_are_put_together_however_a_provider_numbers_them(
    deltas: tuple[dict[str, Any], ...],
) -> None:
    whole = await reply.read_stream(Chunks(*deltas), lambda kind, text: None)
    calls = [(c.id, c.name, c.arguments) for c in whole.tool_calls]
    assert calls == [("a", "query", "{}"), ("b", "size", "[]")]


async def test_tool_calls_without_ids_get_some() -> None:
    deltas = (part("{}", index=0, name="query"), part("{}", index=1, name="query"))
    whole = await reply.read_stream(Chunks(*deltas), lambda kind, text: None)
    assert [c.id for c in whole.tool_calls] == ["call_1", "call_2"]


def test_answers_with_unusual_shapes_are_read() -> None:
    function = {"name": "query", "arguments": {"sql": "SELECT 1"}}
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"content": content, "tool_calls": [{"id": "x", "function": function}]}
    whole = reply.read_completion({"choices": [{"message": message}]})
    assert whole.content == "a\nb"
    assert whole.tool_calls[0].arguments == '{"sql": "SELECT 1"}'
    assert whole.usage is None
