"""What a request row says of any body that a client may send."""

import hashlib
from typing import Any

import pytest

from open_llm_proxy.archive.entry import RequestFields, ToolResult
from open_llm_proxy.server.entries.capture import Caps, Capture
from open_llm_proxy.server.entries.question import read_question, unread_question
from open_llm_proxy.server.json_text import decode_json
from open_llm_proxy.server.redaction.redactor import Redactor

DATA_URL = "data:image/png;base64," + "iVBORw0KGgo" * 100


CHAT = "/v1/chat/completions"


def question(fields: dict[str, Any], endpoint: str = CHAT, **changes: Any) -> RequestFields:
    return read_question(fields, endpoint, Redactor(), Capture(**changes)).fields


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "kimi", "messages": list(messages), **fields}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def tool(call_id: Any, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


ASSISTANT = {"role": "assistant", "content": None, "tool_calls": []}


def test_a_chat_tells_its_first_and_last_user_message_and_its_counts() -> None:
    asked = question(
        chat(
            {"role": "system", "content": "be good"},
            user("first"),
            {"role": "assistant", "content": "yes?"},
            user("last"),
            tools=[{}, {}],
        )
    )
    assert asked.user_question == "first"
    assert asked.user_message_this_turn == "last"
    assert (asked.message_count, asked.tools_count) == (4, 2)
    assert asked.system_sha256 == hashlib.sha256(b"be good").hexdigest()
    assert asked.tools_sha256 == hashlib.sha256(b"[{},{}]").hexdigest()
    assert asked.tool_results_this_turn is None
    assert asked.messages_json is asked.params_json is None


def test_tool_results_are_those_since_the_model_last_spoke() -> None:
    asked = question(
        chat(user("q"), ASSISTANT, tool("old", "1"), ASSISTANT, tool("a", "2"), tool("b", "3"))
    )
    assert asked.tool_results_this_turn == [ToolResult("a", "2"), ToolResult("b", "3")]


def test_the_responses_api_has_instructions_items_and_outputs() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "function_call", "call_id": "old", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "out"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": {"rows": [1]}},
    ]
    asked = question({"instructions": "be good", "input": items})
    assert asked.user_question == "q"
    assert asked.system_sha256 == hashlib.sha256(b"be good").hexdigest()
    assert asked.tool_results_this_turn == [
        ToolResult("c", "out"),
        ToolResult("d", '{"rows":[1]}'),
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "once upon"}, "once upon"),
        ({"input": "embed me"}, "embed me"),
        ({"input": ["one", "two"]}, "one\ntwo"),
        ({"prompt": [1, 2, 3]}, "[1,2,3]"),
        ({"messages": "no list"}, "no list"),
        ({"messages": {"role": "user"}}, '{"role":"user"}'),
        ({"messages": 5}, "5"),
        ({"messages": ["a", "b"]}, "a\nb"),
        (chat("bare text", {"role": "user"}), "bare text"),
        (chat(user(42)), "42"),
        (chat(user({"foo": "bar"})), '{"foo":"bar"}'),
        (chat(user(["a", {"type": "text", "text": "b"}, 3])), '["a",{"type":"text","text":"b"},3]'),
        (chat(user(None), user(""), user("x")), "x"),
        (chat(5, None, [user("no")], user("x")), "x"),
        (chat({"role": ["user"], "content": "no"}, user("x")), "x"),
        ({"messages": []}, None),
        ({}, None),
    ],
)
def test_what_is_no_proper_message_is_kept_as_it_came(
    fields: dict[str, Any], text: str | None
) -> None:
    assert question(fields).user_question == text
    assert question(fields, mode="full").user_question == text


def test_images_sounds_and_files_become_descriptions() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg" * 100, "format": "wav"}},
    ]
    asked = question(chat(user(parts)), mode="full")
    assert asked.user_question == (
        "what is this?\n[image/png 825 bytes]\n[image_url https://x.example/a.png]\n"
        "[audio/wav 450 bytes]"
    )
    (message,) = decode_json((asked.messages_json or "").encode())  # type: ignore[misc]
    assert message["content"] == [
        parts[0],
        {"type": "image_url", "image_url": {"url": "[image/png 825 bytes]"}},
        parts[2],
        {"type": "input_audio", "input_audio": {"data": "[audio/wav 450 bytes]", "format": "wav"}},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "data: 42",
        "data:image/png;base64,iVBOR and then a question",
        "data:text/plain,hello",
        "iVBORw0KGgo" * 100,
    ],
)
def test_text_that_only_resembles_data_is_kept(text: str) -> None:
    asked = question(chat(user(text), tool("a", text)), mode="full", caps=Caps(user_question=0))
    messages: Any = decode_json((asked.messages_json or "").encode())
    assert [message["content"] for message in messages] == [text, text]
    assert asked.user_question == text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (tool(7, "x"), ToolResult("7", "x")),
        (tool({"id": 1}, ["x", {"type": "text", "text": "y"}]), ToolResult('{"id":1}', "x\ny")),
        (tool(None, None), ToolResult(None, None)),
        (tool("a", {"rows": 3}), ToolResult("a", '{"rows":3}')),
        ({"role": "function", "name": "f", "content": "x"}, ToolResult(None, "x")),
    ],
)
def test_odd_tool_results_are_kept(message: dict[str, Any], expected: ToolResult) -> None:
    assert question(chat(user("q"), message)).tool_results_this_turn == [expected]


def test_credentials_are_redacted_everywhere() -> None:
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    sql = f"CREATE SECRET (TYPE S3, KEY_ID 'AKIAIOSFODNN7EXAMPLE', SECRET '{secret}')"
    asked = question(
        chat({"role": "system", "content": sql}, user(sql), tool(sql, sql)), mode="full"
    )
    assert secret not in repr(asked)
    assert asked.user_question is not None and "SECRET '[redacted]'" in asked.user_question


def test_a_body_that_is_no_call_is_kept_as_text_up_to_the_cap() -> None:
    capture = Capture(caps=Caps(user_question=10))
    asked = unread_question(b'{"model": \xff "kimi" oops', Redactor(), capture).fields
    assert asked == RequestFields(user_question='{"model": …[cut: 23 characters in all]')
    long = unread_question(b"x" * 1_000_000, Redactor(), capture).fields
    assert long == RequestFields(user_question="xxxxxxxxxx…[cut: 1000000 bytes in all]")
    assert unread_question(b"", Redactor(), capture).fields == RequestFields()


def test_the_number_of_tool_results_and_their_length_together_are_bounded() -> None:
    many = chat(*(tool(str(number), "x") for number in range(5000)))
    results = question(many).tool_results_this_turn
    assert results is not None and len(results) == 1001
    assert results[0] == ToolResult(None, "…[cut: 5000 tool results in all]")
    assert results[-1] == ToolResult("4999", "x")
    large = chat(*(tool(str(number), "x" * 1_000_000) for number in range(8)))
    results = question(large, caps=Caps(tool_result=0)).tool_results_this_turn
    assert results is not None and sum(len(result.content or "") for result in results) < 5_000_000
    assert [len(result.content or "") for result in results][-4:] == [1_000_000] * 4
