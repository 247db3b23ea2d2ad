"""MCP servers as they are: odd tools and results, HTTP errors, restarts, endless lists."""

import threading
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_command import Finished, Run, tool_schemas
from agent_provider import AgentProvider, asks, call, says
from scripted_mcp_server import (
    Answer,
    BrokenStream,
    ErrorAnswer,
    Restart,
    ScriptedMcpServer,
    Status,
)

pytest_plugins = ("agent_fixtures",)

TEXT: dict[str, Any] = {"content": [{"type": "text", "text": "3"}]}


@pytest.fixture
def mcp() -> Iterator[ScriptedMcpServer]:
    with ScriptedMcpServer() as server:
        yield server


class Asker:
    """Runs one session that calls `query` once."""

    def __init__(self, run: Run, llm: AgentProvider, mcp: ScriptedMcpServer) -> None:
        self._run, self._llm, self._mcp = run, llm, mcp

    def run(self) -> Finished:
        self._llm.script(asks(call("query")), says("Done."))
        return self._run("Hello", "--mcp-url", self._mcp.url)

    def result(self, *answers: Answer) -> str:
        """What the model is told of a call that the server answers like this."""
        self._mcp.calls = [*answers]
        assert self.run().code == 0
        [result] = self._llm.requests[1].results
        return result


@pytest.fixture
def asker(run_agent: Run, llm: AgentProvider, mcp: ScriptedMcpServer) -> Asker:
    return Asker(run_agent, llm, mcp)


@pytest.mark.parametrize("words", ["Connection closed", "database is gone", "SSE streams only"])
def test_a_tool_s_own_error_is_no_lost_connection(
    asker: Asker, mcp: ScriptedMcpServer, words: str
) -> None:
    assert asker.result(ErrorAnswer(-32000, words)) == f"The call failed: {words}"
    assert mcp.methods.count("initialize") == 1


def test_a_stream_that_breaks_is_told_as_that(asker: Asker) -> None:
    result = asker.result(BrokenStream())
    assert result.startswith("The connection to the tool server broke during this call (SSE ")
    assert result.endswith("The call may have run or not.")


FORGOTTEN = [
    Status(400, "Bad Request: No valid session ID provided"),
    ErrorAnswer(-32000, "Bad Request: Server not initialized", status=400),
    Status(401),
    Status(404),
    ErrorAnswer(-32600, "Session not found", status=404),
    Status(410),
    Status(503),
]


@pytest.mark.parametrize("refusal", FORGOTTEN, ids=repr)
def test_a_restarted_server_gets_a_new_session_and_the_call_once_more(
    asker: Asker, mcp: ScriptedMcpServer, refusal: Answer
) -> None:
    mcp.forgotten = refusal
    assert asker.result(Restart(), TEXT) == "3"
    assert mcp.methods.count("initialize") == 2
    assert mcp.methods.count("tools/call") == 2


def test_calls_that_meet_a_restart_together_share_one_new_session(
    run_agent: Run, llm: AgentProvider, mcp: ScriptedMcpServer
) -> None:
    mcp.calls = [Restart(), TEXT]
    llm.script(asks(*[call("query", n=number) for number in range(4)]), says("Done."))
    assert run_agent("Hello", "--mcp-url", mcp.url).code == 0
    assert llm.requests[1].results == ["3"] * 4
    assert mcp.methods.count("initialize") == 2


def test_a_call_under_way_outlives_the_session_that_another_lost(
    run_agent: Run, llm: AgentProvider, mcp: ScriptedMcpServer
) -> None:
    reconnected = threading.Event()

    def slow() -> Answer:
        assert reconnected.wait(30)
        return {"content": [{"type": "text", "text": "slow"}]}

    def after() -> Answer:
        reconnected.set()
        return TEXT

    mcp.calls = [slow, Status(503), after]
    llm.script(asks(call("query", n=1), call("query", n=2)), says("Done."))
    assert run_agent("Hello", "--mcp-url", mcp.url).code == 0
    assert sorted(llm.requests[1].results) == ["3", "slow"]
    assert mcp.methods.count("initialize") == 2


def test_a_list_that_is_refused_is_told_with_its_status(
    asker: Asker, mcp: ScriptedMcpServer
) -> None:
    mcp.listing = ErrorAnswer(-32001, "token expired", status=401)
    done = asker.run()
    assert done.code == 1
    assert "lists no tools: it answered HTTP 401 Unauthorized (" in done.err
    assert "token expired" in done.err


def test_a_call_that_is_refused_twice_is_told(asker: Asker, mcp: ScriptedMcpServer) -> None:
    result = asker.result(ErrorAnswer(-32602, "no such column", status=400))
    assert result == (
        "The call was not made: the tool server answered HTTP 400 Bad Request: no such column."
    )
    assert mcp.methods.count("tools/call") == 2


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            Status(429, headers={"Retry-After": "7"}),
            "HTTP 429 Too Many Requests (it asks to wait 7 s).",
        ),
        (Status(500), "HTTP 500 Internal Server Error. The call may have run or not."),
        (
            Status(504),
            "HTTP 504 Gateway Timeout (a gateway waited too long for it). "
            "The call may have run or not.",
        ),
        (
            ErrorAnswer(-32603, "out of memory", status=500),
            "HTTP 500 Internal Server Error: out of memory. The call may have run or not.",
        ),
    ],
)
def test_a_status_is_told_as_what_it_is_and_the_call_not_repeated(
    asker: Asker, mcp: ScriptedMcpServer, status: Answer, expected: str
) -> None:
    assert asker.result(status) == f"The tool server answered {expected}"
    assert mcp.methods.count("tools/call") == 1


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (Status(401), "HTTP 401 Unauthorized (it wants credentials"),
        (Status(429), "HTTP 429 Too Many Requests instead of MCP"),
        (Status(504), "HTTP 504 Gateway Timeout (a gateway waited too long for it)"),
        (Status(200, '{"hello": 1}', {"Content-Type": "application/json"}), "does not speak MCP"),
        (Status(200, "<html>", {"Content-Type": "text/html"}), "does not speak MCP (Unexpected"),
        ({"oops": 1}, "does not speak MCP (its answer is not what the protocol asks for)"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_in_a_sentence(
    asker: Asker, mcp: ScriptedMcpServer, opening: Answer, expected: str
) -> None:
    mcp.opening = opening
    done = asker.run()
    assert done.code == 1
    assert expected in done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 300


ODD_TOOLS: list[Any] = [
    {"name": "null", "inputSchema": {"type": "object", "properties": None, "required": None}},
    {"name": "none"},
    {
        "name": "reference",
        "inputSchema": {
            "$ref": "#/$defs/Arguments",
            "$defs": {
                "Arguments": {
                    "type": "object",
                    "properties": {"sql": {"type": "string"}, "any": True, "odd": 5},
                    "required": ["sql", 5],
                }
            },
        },
    },
    {
        "name": "choice",
        "inputSchema": {
            "oneOf": [
                {"properties": {"a": {"type": "string"}, "c": {}}, "required": ["a", "c"]},
                {"properties": {"b": {"type": "string"}, "c": {}}, "required": ["b", "c"]},
            ]
        },
    },
    {"name": "list", "inputSchema": {"type": "array"}},
    {"name": "extras", "inputSchema": {"type": "object"}, "annotations": 5, "outputSchema": []},
    {"title": "nameless"},
    "no tool",
]


def test_an_odd_tool_is_repaired_or_left_out_and_that_is_said(
    run_agent: Run, llm: AgentProvider, mcp: ScriptedMcpServer
) -> None:
    mcp.tools = ODD_TOOLS
    llm.script(says("Done."))
    done = run_agent("Hello", "--mcp-url", mcp.url)
    assert done.code == 0
    functions = [tool["function"] for tool in llm.requests[0].body["tools"]]
    offered = {function["name"]: function["parameters"] for function in functions}
    assert [*offered] == ["null", "none", "reference", "choice", "extras"]
    assert offered["null"] == offered["none"] == {"type": "object", "properties": {}}
    assert offered["reference"]["properties"] == {"sql": {"type": "string"}, "any": True, "odd": {}}
    assert offered["reference"]["required"] == ["sql"]
    assert sorted(offered["choice"]["properties"]) == ["a", "b", "c"]
    assert offered["choice"]["required"] == ["c"]
    assert not any(set(s) & set(tool_schemas.NOT_AT_THE_TOP) for s in offered.values())
    assert done.transcript["notes"] == [
        "The input schema of the tool null was simplified: properties was null, required was null.",
        "The input schema of the tool none was simplified: there was none.",
        "The input schema of the tool reference was simplified: a part was 5, $ref at its top.",
        "The input schema of the tool choice was simplified: oneOf at its top.",
        "The tool list was left out: its input is of the type array, not an object.",
        "A tool without a name was left out.",
        "A tool without a name was left out.",
    ]
    assert "Note: The tool list was left out" in done.out


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#/$defs/Missing"},
        {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ],
)
def test_references_that_lead_nowhere_leave_any_object(schema: dict[str, Any]) -> None:
    usable, changes = tool_schemas.object_schema(schema)
    assert usable["properties"] == {}
    assert "$ref was" in changes or "its references go in circles" in changes


PARTS: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["object", "array", "#", "#/$defs/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", *tool_schemas.KEYWORDS]), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None, database=None, max_examples=100)
@given(PARTS)
def test_whatever_a_schema_is_it_becomes_one_that_is_taken(schema: Any) -> None:
    try:
        usable, changes = tool_schemas.object_schema(schema)
    except tool_schemas.NoObject:
        return
    assert usable["type"] == "object"
    assert not set(usable) & set(tool_schemas.NOT_AT_THE_TOP)
    jsonschema.Draft202012Validator.check_schema(usable)
    again, more = tool_schemas.object_schema(usable)
    assert (again, more) == (usable, ""), changes


@pytest.mark.parametrize("cursor", ["again", "new"])
def test_a_list_of_tools_without_an_end_is_taken_as_far_as_it_goes(
    run_agent: Run, llm: AgentProvider, mcp: ScriptedMcpServer, cursor: str
) -> None:
    class Endless(dict[str | None, Any]):
        def get(self, key: str | None, default: Any = None) -> Any:
            following = "again" if cursor == "again" else f"{key}+"
            return {"tools": [{"name": f"t{len(key or '')}"}], "nextCursor": following}

    mcp.pages = Endless()
    llm.script(says("Done."))
    done = run_agent("Hello", "--mcp-url", mcp.url)
    assert done.code == 0
    pages = mcp.methods.count("tools/list")
    assert pages == (2 if cursor == "again" else 50)
    note = f"The list of tools has no end; the first {pages} are offered."
    assert note in done.transcript["notes"]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": None, "isError": True}, "[the tool reported an error without a text]"),
        ({"content": []}, "[the tool returned nothing]"),
        (
            {"content": [{"type": "hologram"}, {"type": "text", "text": "3"}, "bare", 5, None]},
            "[content of the unknown kind hologram, not shown]\n3\nbare\n"
            "[content that is no object: 5]\n[content that is no object: null]",
        ),
        ({"content": [{"type": "text"}]}, "[content of the unknown kind text, not shown]"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "a://b", "text": "c"}}]},
            "[resource a://b unknown type]\nc",
        ),
        ({"structuredContent": [1, 2]}, "[1, 2]"),
        ({"content": [{"type": "text", "text": "3", "annotations": 5}], "_meta": []}, "3"),
    ],
)
def test_an_odd_result_costs_nothing_but_what_is_odd(
    asker: Asker, result: Answer, expected: str
) -> None:
    assert asker.result(result) == expected


def test_a_result_without_the_declared_structure_is_read_all_the_same(
    asker: Asker, mcp: ScriptedMcpServer
) -> None:
    schema = {"type": "object", "properties": {"rows": {}}, "required": ["rows"]}
    mcp.tools = [{"name": "query", "inputSchema": {"type": "object"}, "outputSchema": schema}]
    assert asker.result(TEXT) == "3"
