"""Entries as lines: one schema for all rows, and nothing in a text that spoils a folder."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import log_contract
from given_answers import Fields
from open_llm_proxy.archive.entry import LogEntry, LoggedToolCall, ToolResult
from open_llm_proxy.archive.json_schema import json_schema
from open_llm_proxy.archive.marks import unmarked
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.entries.line import encode

pytest_plugins = ("log_fixtures",)

NOON_MS = 1_700_049_600_000
PROVENANCE = ("proxy_version", "config_sha256", "instance")


@pytest.fixture
def rows(every_kind_rows: list[Fields]) -> list[Fields]:
    """Rows of every kind from the real server."""
    return every_kind_rows


def line_of(entry: LogEntry) -> Fields:
    body = encode(entry, NOON_MS).body
    assert b"\n" not in body
    fields: Fields = json.loads(body)
    return fields


def test_rows_of_every_kind_keep_the_published_schema(rows: list[Fields]) -> None:
    assert {row["type"] for row in rows} == set(log_contract.TYPES)
    assert {row["outcome"] for row in rows} - {None} == set(log_contract.OUTCOMES)
    validator = jsonschema.Draft202012Validator(json_schema())
    for row in rows:
        validator.validate(row)
        assert tuple(row) == log_contract.FIELDS


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"type": "reply"},
        {"outcome": "good"},
        {"status": "200"},
        {"timestamp": "yesterday"},
        {"user_question": "in an answer"},
        {"tool_calls": [{"id": "x"}]},
        {"new_field": 1},
    ],
)
def test_the_published_schema_refuses_what_is_no_row(rows: list[Fields], change: Fields) -> None:
    answer = next(row for row in rows if row["type"] == "response")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(answer)
    assert not validator.is_valid({**answer, **change})
    assert not validator.is_valid({name: answer[name] for name in answer if name != "error"})


def test_every_row_says_what_made_it(rows: list[Fields]) -> None:
    made_by = {tuple(row[name] for name in PROVENANCE) for row in rows}
    assert len(made_by) == 1
    assert all(made_by.pop())


def test_a_damaged_rows_stand_in_is_an_entry_too() -> None:
    row = json.loads(Provenance("1.2.3", "a" * 64, "pod").damaged_body())
    assert tuple(row) == log_contract.FIELDS[2:]
    assert [row[name] for name in ("type", *PROVENANCE)] == ["damaged", "1.2.3", "a" * 64, "pod"]


# Marks.


@pytest.mark.parametrize(
    "text",
    [
        "550e8400-e29b-41d4-a716-446655440000",
        "{550E8400-E29B-41D4-A716-446655440000}",
        "550e8400e29b41d4a716446655440000",
        "2024-01-02",
        "1-2-24",
        " 2024-01-02\n",
        "2024-01-02 10:30:00",
        "2024-01-02    10:30:00.123456",
        "2024-01-02T10:30:00Z",
        "2024-01-02T10:30:00+02:00",
        "01-02-2024 10:30:00 PM",
        "10:30",
        "10:30:00.1" + " " * 300,
        "infinity",
        "-Infinity",
        "epoch",
    ],
)
def test_what_duckdb_takes_for_another_type_is_marked(text: str) -> None:
    row = line_of(LogEntry(type="response", session_id=text, content=text))
    assert (row["session_id"], row["content"]) == (f"id:{text}", f"text:{text}")
    assert unmarked(row["session_id"]) == unmarked(row["content"]) == text
    calls = line_of(LogEntry(type="response", tool_calls=[LoggedToolCall(text, text, text)]))
    assert calls["tool_calls"] == [
        {"id": f"id:{text}", "name": f"text:{text}", "arguments": f"text:{text}"}
    ]
    results = line_of(LogEntry(type="request", tool_results_this_turn=[ToolResult(text, text)]))
    assert results["tool_results_this_turn"] == [
        {"tool_call_id": f"id:{text}", "content": f"text:{text}"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "1234567890123456",
        "12345678e1234567",
        "3.5",
        "1e5",
        "true",
        "null",
        "[1, 2]",
        '{"a": 1}',
        "1.2.3",
        "192.168.0.1",
        "20240102",
        "at 10:30",
        "2024-01-02 was a Tuesday",
        "text: see below",
        "id:7",
        "call_550e8400e29b41d4a716446655440000",
    ],
)
def test_all_other_texts_are_written_as_they_are(text: str) -> None:
    row = line_of(LogEntry(type="response", session_id=text, content=text))
    assert (row["session_id"], row["content"]) == (text, text)
    assert unmarked(text) == text


@settings(max_examples=300)
@given(st.text(alphabet="idtex: 0123456789-/.TZ\t", max_size=40), st.integers(0, 3))
def test_a_mark_is_taken_off_exactly(text: str, marks: int) -> None:
    text = "text:" * marks + text
    row = line_of(LogEntry(type="response", content=text, upstream_request_id=text))
    assert unmarked(row["content"]) == text
    assert unmarked(row["upstream_request_id"]) == text


def test_the_timestamp_and_our_own_names_are_never_marked() -> None:
    made = LogEntry(type="request", timestamp="2024-01-02T10:30:00.000Z", proxy_version="1-2-3")
    row = line_of(made)
    assert (row["timestamp"], row["proxy_version"]) == ("2024-01-02T10:30:00.000Z", "1-2-3")


# Text that JSON cannot carry, and lines that are too long.


def test_lone_surrogates_and_nul_become_their_escapes_as_text() -> None:
    text = "a\ud800b\0c 🌊 \\u0000"
    calls = [LoggedToolCall(text, None, text)]
    row = line_of(LogEntry(type="response", content=text, tool_calls=calls))
    safe = "a\\ud800b\\u0000c 🌊 \\u0000"
    assert row["content"] == safe
    assert row["tool_calls"] == [{"id": safe, "name": None, "arguments": safe}]


def hostile_entries() -> dict[str, LogEntry]:
    quotes, controls, wide = '"' * 9_000_000, "\x01" * 4_000_000, "🌊" * 3_000_000
    results = [ToolResult("\x01" * 500, "\x01" * 50_000) for _ in range(1001)]
    calls = [LoggedToolCall("\x01" * 500, "\x01" * 500, "\x01" * 4_000) for _ in range(1024)]
    return {
        "quotes": LogEntry(type="request", user_question=quotes, user_message_this_turn=quotes),
        "controls": LogEntry(type="response", content=controls, reasoning_content=controls),
        "wide": LogEntry(type="response", content=wide, error=wide),
        "surrogates": LogEntry(type="response", content="\ud800" * 3_000_000),
        "results": LogEntry(type="request", tool_results_this_turn=results),
        "calls": LogEntry(type="response", tool_calls=calls),
        "messages": LogEntry(type="request", messages_json="x" * 9_000_000, model="m" * 1000),
        "everything": LogEntry(
            type="request",
            user_question=quotes,
            user_message_this_turn=controls,
            messages_json="x" * 5_000_000,
            tool_results_this_turn=results,
        ),
    }


@pytest.mark.parametrize("name", sorted(hostile_entries()))
def test_a_line_stays_under_8_mib_whatever_is_in_it(name: str) -> None:
    entry = hostile_entries()[name]
    body = encode(entry, NOON_MS).body
    assert len(body) + 64 < log_contract.MAX_LINE_BYTES
    row = json.loads(body)
    if name == "messages":
        assert row["messages_json"] is None
    assert "…[cut: " in json.dumps(row, ensure_ascii=False), "it would have fitted"
    assert tuple(row) == log_contract.FIELDS[2:]


def test_a_cut_tells_the_original_length_and_keeps_short_texts_whole() -> None:
    entry = LogEntry(type="response", content="\x01" * 4_000_000, finish_reason="stop", model="m")
    row = line_of(entry)
    assert row["content"].endswith("…[cut: 4000000 characters in all]")
    assert (row["finish_reason"], row["model"]) == ("stop", "m")


def test_an_ordinary_line_is_not_touched() -> None:
    fields: dict[str, Any] = {"content": "x" * 8_000_000, "model": "kimi", "status": 200}
    row = line_of(LogEntry(type="response", **fields))
    assert {name: row[name] for name in fields} == fields


def test_the_schema_file_is_the_one_that_is_tested() -> None:
    path = Path(__file__).resolve().parent.parent / "docs" / "log-entry.schema.json"
    assert json.loads(path.read_text()) == json_schema()
    jsonschema.Draft202012Validator.check_schema(json_schema())
