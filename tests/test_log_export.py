"""`logs export`: what comes out is what the formats' consumers take, and what was said."""

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import TypeAdapter

import every_kind
from given_answers import Fields
from logs_command import Logs
from open_llm_proxy.archive.exports.examples import Example, Unusable
from open_llm_proxy.archive.exports.openai_format import openai_line
from open_llm_proxy.archive.exports.sharegpt_format import sharegpt_line
from stores import DirectoryStore

pytest_plugins = ("log_fixtures",)
MESSAGES = TypeAdapter(list[ChatCompletionMessageParam])
TOOLS = TypeAdapter(list[ChatCompletionToolParam])
SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"


@pytest.fixture
def folder(every_kind_store: DirectoryStore) -> str:
    return str(every_kind_store.folder)


def call(number: int, messages: Any, answer: Fields, **request: Any) -> list[Fields]:
    """The rows of a call, captured in full."""
    row: Fields = {
        "queue_id": "a" * 16,
        "seq": 2 * number + 1,
        "timestamp": f"2026-04-07T10:00:{number:02}.000Z",
        "request_id": f"{number:016x}",
        "session_id": "s",
        "model": "kimi",
        "endpoint": "/v1/chat/completions",
    }
    asked = {"type": "request", "messages_json": json.dumps(messages, ensure_ascii=False)}
    answered = {"type": "response", "seq": 2 * number + 2, "outcome": "ok"}
    return [{**row, **asked, **request}, {**row, **answered, **answer}]


def write(folder: Path, rows: list[Fields]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "10-00-00-a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def user(text: str) -> Fields:
    return {"role": "user", "content": text}


# The real server's log.


def test_a_session_comes_out_as_it_was_said(logs: Logs, folder: str) -> None:
    done = logs("export", "--format", "openai", folder, "--session", every_kind.SESSION)
    (line,) = done.objects
    messages, answer = every_kind.conversation()[-1]
    said = answer["choices"][0]["message"]["content"]
    assert line["messages"] == [
        *({**m, "content": m.get("content")} for m in messages),
        {"role": "assistant", "content": said},
    ]
    turns = logs(
        "export", "--format", "openai", folder, "--session", every_kind.SESSION, "--per", "turn"
    ).objects
    assert [len(turn["messages"]) for turn in turns] == [3, 6, 8]
    assert turns[0]["messages"][-1]["tool_calls"][0]["function"]["name"] == "query"


def test_every_line_is_what_consumers_take(logs: Logs, folder: str) -> None:
    for per in ("session", "turn"):
        lines = logs("export", "--format", "openai", folder, "--per", per).objects
        assert len(lines) >= 5
        for line in lines:
            MESSAGES.validate_python(line["messages"], strict=True)
            assert line["messages"][-1]["role"] == "assistant"
            TOOLS.validate_python(line.get("tools", []))
        texts = [json.dumps(line, sort_keys=True) for line in lines]
        assert len(set(texts)) == len(texts), "none twice"
        for line in logs("export", "--format", "sharegpt", folder, "--per", per).objects:
            sides = [turn["from"] in ("human", "observation") for turn in line["conversations"]]
            assert sides == [True, False] * (len(sides) // 2)
            assert all(isinstance(turn["value"], str) for turn in line["conversations"])


def test_the_table_has_every_call_that_the_filters_choose(
    logs: Logs, folder: str, tmp_path: Path
) -> None:
    stats = logs("stats", folder, "--by", "model").objects
    calls = sum(group["calls"] for group in stats)
    path = tmp_path / "turns.parquet"
    assert logs("export", "--format", "parquet", folder, "-o", str(path)).returncode == 0
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(calls,)]
    done = logs("export", "--format", "csv", folder, "--session", every_kind.SESSION)
    rows = list(csv.DictReader(done.stdout.decode().splitlines(keepends=True)))
    assert len(rows) == 3
    assert [call["name"] for call in json.loads(rows[0]["tool_calls"])] == ["query", "map"]
    assert logs("export", "--format", "parquet", folder).returncode == 2


# Made rows.


def test_tools_and_long_texts_are_put_back(logs: Logs, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "query", "parameters": {"type": "object"}}}]
    rows: list[Fields] = [
        {
            "timestamp": "2026-04-07T10:00:00.000Z",
            "type": "text",
            "text_sha256": name,
            "content": text,
        }
        for name, text in (("t" * 64, json.dumps(tools)), ("p" * 64, "A long prompt. " * 60))
    ]
    asked = [{"role": "system", "content": {"text_sha256": "p" * 64}}, user("q")]
    rows += call(1, asked, {"tool_calls": [{"id": "c", "name": "query", "arguments": '{"a":1}'}]},
                 tools_sha256="t" * 64, params_json='{"parallel_tool_calls":false}')  # fmt: skip
    place = write(tmp_path / "log", rows)
    (line,) = logs("export", "--format", "openai", place).objects
    assert line["tools"] == tools and line["parallel_tool_calls"] is False
    assert line["messages"][0]["content"] == "A long prompt. " * 60
    (line,) = logs("export", "--format", "sharegpt", place).objects
    assert json.loads(line["conversations"][1]["value"]) == {"name": "query", "arguments": {"a": 1}}
    assert json.loads(line["tools"]) == [tools[0]["function"]]
    write(tmp_path / "log", rows[1:])
    done = logs("export", "--format", "openai", place)
    assert done.returncode == 1 and "left out: 1 with tools that are not among" in done.stderr


def test_what_cannot_be_an_example_is_counted_by_its_reason(logs: Logs, tmp_path: Path) -> None:
    answer = {"content": "a"}
    image = {"type": "image_url", "image_url": {"url": "[image/png 9 bytes]"}}
    rows = [
        *call(1, [user("q")], answer),
        *call(2, [user("q")], answer),
        *call(3, [user("x…[cut: 99999 characters in all]")], answer),
        *call(4, [{"role": "user", "content": [image]}], answer),
        *call(5, "no list", answer),
        *call(6, [user("q")], {"content": ""}),
        *call(7, [user("q")], answer, messages_json=None),
        *call(
            8, [user("q")], answer, messages_json='[{"role": "user", "cont…[cut: 9 bytes in all]'
        ),
        *call(9, [user("failed")], {"outcome": "upstream_error"}),
        *call(10, [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}], answer),
    ]
    done = logs("export", "--format", "openai", "--per", "turn", write(tmp_path / "log", rows))
    assert [line["messages"][0]["content"] for line in done.objects] == ["q", "in parts"]
    left = sorted(line.partition("left out: ")[2] for line in done.stderr.splitlines()[1:])
    assert left == sorted(
        [
            "1 that are equal to another",
            "1 whose texts were cut",
            "1 with images, sounds or files",
            "1 whose messages are no list",
            "1 without an answer",
            "1 without their messages (LOG_CAPTURE was not full)",
            "1 whose messages or tools were cut",
        ]
    )


def test_credentials_are_taken_out_on_demand(logs: Logs, tmp_path: Path) -> None:
    arguments = json.dumps({"sql": f"CREATE SECRET (KEY_ID 'a', SECRET '{SECRET}')"})
    asked = [
        user(f"my key is {SECRET}"),
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "q", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": "c", "content": f"Bearer {SECRET}"},
    ]  # fmt: skip
    place = write(tmp_path / "log", call(1, asked, {"content": f"{SECRET} it is"}))
    for name in ("openai", "sharegpt", "csv"):
        assert SECRET in logs("export", "--format", name, place).stdout.decode()
        done = logs("export", "--format", name, "--redact", place)
        assert done.returncode == 0 and SECRET not in done.stdout.decode()
        assert "[redacted]" in done.stdout.decode()
    path = tmp_path / "turns.parquet"
    logs("export", "--format", "parquet", "--redact", place, "-o", str(path))
    (row,) = duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    assert SECRET not in repr(row) and "[redacted]" in repr(row)


def example(*messages: Fields, tools: Any = ()) -> Example:
    return Example("s", "r", "m", list(messages), list(tools), {})


ASKED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [ASKED]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "42"}
SAID = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "g", "parameters": {}}}


@pytest.mark.parametrize(
    ("messages", "tools", "reason"),
    [
        ([user("q"), RESULT, SAID], [], "no call asked for"),
        ([user("q"), CALLS, SAID], [], "no result"),
        ([user("q"), CALLS, RESULT, RESULT, SAID], [], "no call asked for"),
        ([{"role": "oracle", "content": "x"}, SAID], [], "role"),
        ([{"role": "user", "content": None}, SAID], [], "no text"),
        ([user("q"), {**CALLS, "tool_calls": [{"id": "c"}]}], [], "no JSON"),
        ([user("q"), CALLS], [TOOL], "not offered"),
        ([user("q"), SAID], [{"type": "function"}], "no function with a name"),
    ],
)
def test_what_an_api_would_refuse_is_refused_here(
    messages: list[Fields], tools: list[Fields], reason: str
) -> None:
    with pytest.raises(Unusable, match=reason):
        openai_line(example(*messages, tools=tools))


def test_a_call_in_the_end_and_one_with_its_result_are_fine() -> None:
    openai_line(example(user("q"), CALLS))
    both = sharegpt_line(example(user("q"), CALLS, RESULT, SAID, user("r"), user("s"), SAID))
    assert [(turn["from"], turn["value"]) for turn in both["conversations"]] == [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {}}'),
        ("observation", "42"),
        ("gpt", "a"),
        ("human", "r\n\ns"),
        ("gpt", "a"),
    ]
    with pytest.raises(Unusable, match="alternate"):
        sharegpt_line(example(SAID, user("q"), SAID))
