"""Entries as lines: one schema for all rows, and nothing in a text that spoils a folder."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

import log_contract
from given_answers import CHAT, Fields
from open_llm_proxy.archive.entry import (
    INTERRUPTED_TAIL,
    IdentityFields,
    LoggedToolCall,
    RequestFields,
    ResponseFields,
    ToolResult,
    head_body,
    head_line,
    iso_timestamp,
)
from open_llm_proxy.archive.json_schema import json_schema
from open_llm_proxy.queue.damaged_rows import Damage
from open_llm_proxy.queue.entry import Entry, LogFormat
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.entries.call_entries import CallEntries, Provenance
from open_llm_proxy.server.entries.capture import Capture
from open_llm_proxy.server.entries.line import encoded, encoded_within_line, row_of
from open_llm_proxy.server.redaction.redactor import Redactor
from open_llm_proxy.server.transcript.transcript import ToolCall, Transcript

pytest_plugins = ("log_fixtures",)

NOON_MS = 1_700_049_600_000
PROVENANCE = ("proxy_version", "config_sha256", "instance")


@pytest.fixture
def rows(every_kind_rows: list[Fields]) -> list[Fields]:
    """Rows of every kind from the real server, as they are stored."""
    return [sparse(row) for row in every_kind_rows]


def sparse(row: Fields) -> Fields:
    return {name: value for name, value in row.items() if value is not None}


def line_of(part: RequestFields | ResponseFields) -> Fields:
    kind: Any = "request" if isinstance(part, RequestFields) else "response"
    body = row_of(NOON_MS, kind, encoded_within_line(part)).body
    assert b"\n" not in body
    return log_contract.read_row(body)


# Rows and heads.


def test_rows_of_every_kind_keep_the_published_schema(rows: list[Fields]) -> None:
    assert {row["type"] for row in rows} == set(log_contract.TYPES)
    assert {row["outcome"] for row in rows if "outcome" in row} == set(log_contract.OUTCOMES)
    validator = jsonschema.Draft202012Validator(json_schema())
    for row in rows:
        validator.validate(row)


def test_no_row_has_so_few_fields_that_duckdb_makes_a_map_of_the_table(rows: list[Fields]) -> None:
    columns = len(log_contract.FIELDS) + 1  # and `format`
    least = {
        kind: min(len(row) for row in rows if row["type"] == kind) for kind in log_contract.TYPES
    }
    assert not {kind: n for kind, n in least.items() if n < log_contract.LEAST_FIELDS * columns}


def test_a_head_has_every_field_in_order() -> None:
    expected = log_contract.head("0123456789abcdef", "2023-11-15T12:00:00.000Z")
    head = json.loads(head_line("0123456789abcdef", NOON_MS))
    assert list(head.items()) == list(expected.items())
    assert type(head["cost_usd"]) is float
    assert json.loads(head_body()) == {
        name: value
        for name, value in expected.items()
        if name not in ("queue_id", "seq", "timestamp")
    }
    jsonschema.Draft202012Validator(json_schema()).validate(head)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"type": "reply"},
        {"type": "schema"},
        {"outcome": "good"},
        {"status": "200"},
        {"status": None},
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
    assert not validator.is_valid({name: answer[name] for name in answer if name != "outcome"})


def test_every_row_says_what_made_it(rows: list[Fields]) -> None:
    made_by = {tuple(row[name] for name in PROVENANCE) for row in rows}
    assert len(made_by) == 1
    assert all(made_by.pop())


def test_a_damaged_rows_stand_in_is_an_entry_too() -> None:
    row = log_contract.read_row(Provenance("1.2.3", "a" * 64, "pod").log_format().damaged_body)
    assert [row[name] for name in ("type", *PROVENANCE)] == ["damaged", "1.2.3", "a" * 64, "pod"]


def test_a_damaged_row_is_an_entry_also_where_the_stand_in_is_damaged(tmp_path: Path) -> None:
    damage = Damage(tmp_path, Meta(300, 1 << 20, LogFormat(b"", b"", b""), "0123456789abcdef", 1))
    row = json.loads(damage.line(7, NOON_MS, "it is missing"))
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(row)
    assert not validator.is_valid({**row, "type": "response"})


# The rows of one call.


class OpenedEntries:
    """Keeps what an opened call hands over."""

    stored: Any = SimpleNamespace(add_done_callback=lambda _: None)

    def open(self, entries: list[Entry], interrupted_head: bytes) -> "OpenedEntries":
        self.entries, self.interrupted_head = entries, interrupted_head
        return self

    def rows(self) -> list[Fields]:
        interrupted = self.interrupted_head + INTERRUPTED_TAIL
        return [log_contract.read_row(body) for body in (self.entries[-1].body, interrupted)]


def call_entries(
    headers: Fields, mode: Any = "summary", endpoint: str = CHAT
) -> tuple[CallEntries, Any]:
    """The maker of a call's entries, and the log to open it in."""
    entries = CallEntries(
        Provenance("1", "0" * 64, "test"),
        Redactor(),
        headers,
        request_id="0" * 16,
        key_name="default",
        endpoint=endpoint,
        capture=Capture(mode=mode),
    )
    return entries, OpenedEntries()


def opened(headers: Fields, **fields: Any) -> list[Fields]:
    """The request row of a call and the one that says `interrupted`."""
    entries, log = call_entries(headers, endpoint="/v1/responses")
    body = json.dumps({"model": "kimi", **fields}).encode()
    entries.set_unread(body)
    entries.set_request(ClientRequest.parse(body))
    entries.open(log)
    rows: list[Fields] = log.rows()
    assert rows[0]["request_bytes"] == len(body)
    return rows


def test_the_interrupted_row_is_the_calls_identity_and_nothing_more() -> None:
    request, interrupted = opened({"X-Session-Id": "s", "X-Client": "c"}, input="hi", stream=True)
    assert interrupted["outcome"] == "interrupted" and "process" in interrupted["error"]
    same = ("request_id", *log_contract.IDENTITY_FIELDS)
    assert {name: request[name] for name in same} == {name: interrupted[name] for name in same}
    assert interrupted["timestamp"] == request["timestamp"]
    said = {name for name in log_contract.RESPONSE_FIELDS if interrupted[name] is not None}
    assert said == {"outcome", "error"}


@pytest.mark.parametrize(
    ("headers", "fields", "expected"),
    [
        ({"X-Session-Id": " a "}, {"session_id": "b", "user": "c"}, "a"),
        ({"X-Session-Id": " "}, {"session_id": "b", "user": "c"}, "b"),
        ({}, {"session_id": "", "user": "c"}, "c"),
        ({}, {"session_id": 7, "user": "c"}, "c"),
        ({}, {"user": ["c"]}, None),
    ],
)
def test_the_session_is_the_headers_else_the_bodys(
    headers: Fields, fields: Fields, expected: str | None
) -> None:
    for row in opened(headers, **fields):
        assert row["session_id"] == expected


def test_the_answer_that_a_request_goes_on_from_is_logged() -> None:
    request, _ = opened({}, input="and then?", previous_response_id="resp_1")
    assert request["previous_response_id"] == "resp_1"


UUID = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    "text", [UUID, "2024-01-02", "10:30", "infinity", "epoch", "text:1", "id:7"]
)
def test_texts_and_ids_are_logged_as_they_were_sent(text: str) -> None:
    request, _ = opened({"X-Session-Id": text, "X-Client": text, "Origin": text}, input=text)
    for name in ("session_id", "client", "origin", "user_question"):
        assert request[name] == text


def test_a_timestamp_is_iso_8601_in_milliseconds() -> None:
    assert iso_timestamp(NOON_MS + 7) == "2023-11-15T12:00:00.007Z"


# Text that JSON cannot carry, and lines that are too long.


HOSTILE = "a\ud800b\0c 🌊 \\u0000"
SAFE = "a\\ud800b\\u0000c 🌊 \\u0000"


@pytest.mark.parametrize("mode", ["summary", "full"])
def test_lone_surrogates_and_nul_become_their_escapes_as_text_wherever_they_are(mode: Any) -> None:
    entries, log = call_entries({"X-Session-Id": HOSTILE, "Referer": HOSTILE}, mode)
    messages = [
        {"role": "system", "content": HOSTILE * 100},
        {"role": "user", "content": HOSTILE},
        {"role": "tool", "tool_call_id": HOSTILE, "content": HOSTILE},
        {"role": "tool", "tool_call_id": {"odd": HOSTILE}, "content": [HOSTILE]},
    ]
    fields = {"model": HOSTILE, "messages": messages, "tools": [HOSTILE], "x": HOSTILE}
    fields |= {"previous_response_id": HOSTILE}
    entries.set_request(ClientRequest(b"", fields, HOSTILE))
    entries.open(log)
    transcript = Transcript(content=HOSTILE, reasoning_content=HOSTILE, finish_reason=HOSTILE)
    transcript.tool_calls = [ToolCall(HOSTILE, HOSTILE, HOSTILE)]
    transcript.response_id = transcript.error = HOSTILE
    result = CallResult(outcome="ok", transcript=transcript, upstream_request_id=HOSTILE)
    result.upstream_headers = {"x": HOSTILE}
    bodies = [*(entry.body for entry in log.entries), entries.response(result).body]
    for body in [*bodies, log.interrupted_head + INTERRUPTED_TAIL]:
        body.decode()
        assert not UNSAFE.search(body), body
    request, response = (log_contract.read_row(body) for body in bodies[-2:])
    for name in ("session_id", "model", "user_question", "previous_response_id"):
        assert request[name] == SAFE, name
    assert request["tool_results_this_turn"][0] == {"tool_call_id": SAFE, "content": SAFE}
    for name in ("content", "reasoning_content", "finish_reason", "error", "response_id"):
        assert response[name] == SAFE, name
    assert response["tool_calls"] == [{"id": SAFE, "name": SAFE, "arguments": SAFE}]


# NUL or a surrogate in the spelling of JSON.
UNSAFE = re.compile(rb"(?<!\\)(?:\\\\)*\\u(?:0000|[dD][89a-fA-F])")


def hostile_parts() -> dict[str, RequestFields | ResponseFields]:
    quotes, controls, wide = '"' * 9_000_000, "\x01" * 4_000_000, "🌊" * 3_000_000
    results = [ToolResult("\x01" * 500, "\x01" * 50_000) for _ in range(1001)]
    calls = [LoggedToolCall("\x01" * 500, "\x01" * 500, "\x01" * 4_000) for _ in range(1024)]
    return {
        "quotes": RequestFields(user_question=quotes, user_message_this_turn=quotes),
        "controls": ResponseFields(content=controls, reasoning_content=controls),
        "wide": ResponseFields(content=wide, error=wide),
        "surrogates": ResponseFields(content="\ud800" * 3_000_000),
        "results": RequestFields(tool_results_this_turn=results),
        "calls": ResponseFields(tool_calls=calls),
        "named": ResponseFields(content=controls, finish_reason="stop", usage_json=quotes),
        "everything": RequestFields(
            user_question=quotes,
            user_message_this_turn=controls,
            messages_json="x" * 5_000_000,
            params_json="x" * 1_000_000,
            tool_results_this_turn=results,
        ),
    }


@pytest.mark.parametrize("name", sorted(hostile_parts()))
def test_a_line_stays_under_8_mib_whatever_is_in_it(name: str) -> None:
    long = "\ud800" * 500
    identity = encoded(IdentityFields(model=long, session_id=long, origin=long, client=long))
    body = row_of(NOON_MS, "request", identity, encoded_within_line(hostile_parts()[name])).body
    assert len(body) + 64 < log_contract.MAX_LINE_BYTES
    assert "…[cut: ".encode() in body, "it would have fitted"
    log_contract.read_row(body)


def test_a_cut_tells_the_original_length_and_keeps_short_texts_whole() -> None:
    row = line_of(ResponseFields(content="\x01" * 4_000_000, finish_reason="stop"))
    assert row["content"].endswith("…[cut: 4000000 characters in all]")
    assert row["finish_reason"] == "stop"


def test_an_ordinary_line_is_not_touched() -> None:
    fields: dict[str, Any] = {"content": "x" * 8_000_000, "finish_reason": "", "status": 200}
    row = line_of(ResponseFields(**fields))
    assert {name: row[name] for name in fields} == fields


def test_the_schema_file_is_the_one_that_is_tested() -> None:
    path = Path(__file__).resolve().parent.parent / "docs" / "log-entry.schema.json"
    assert json.loads(path.read_text()) == json_schema()
    jsonschema.Draft202012Validator.check_schema(json_schema())
