"""What the queries of LOGGING.md find, over a folder with every kind of row."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

import every_kind
import log_contract
from duckdb_log import aimed, records, statements
from given_answers import Asker, Fields, GivenAnswers, completion
from open_llm_proxy.archive.json_schema import duckdb_columns
from proxy_process import ProxyProcess, one_provider
from stores import DirectoryStore

pytest_plugins = ("log_fixtures",)
SEED_QUERY = "SELECT * FROM read_ndjson_auto('s3://logs-<ns>/2026-04-07/*.jsonl');"


@dataclass(frozen=True)
class Day:
    """A day of the log in a folder, its rows, and a connection with the documented view."""

    folder: Path
    rows: list[Fields]
    connection: duckdb.DuckDBPyConnection

    def run(self, statement: str) -> list[dict[str, Any]]:
        return records(self.connection, aimed(statement, f"{self.folder}/"))

    def documented(self, words: str) -> list[dict[str, Any]]:
        """What the one query of the documentation finds that has these words."""
        return self.run(block_with(words))


@pytest.fixture
def day(every_kind_store: DirectoryStore) -> Iterator[Day]:
    days = Counter(key.partition("/")[0] for key, _ in every_kind_store.objects())
    folder = every_kind_store.folder / days.most_common(1)[0][0]
    files = sorted(folder.glob("*.jsonl"))
    rows = [row for file in files for row in log_contract.read_rows(file.read_bytes().splitlines())]
    with duckdb.connect() as connection:
        found = Day(folder, rows, connection)
        found.documented("VIEW log")
        yield found


def block_with(words: str) -> str:
    (found,) = (block for block in statements() if words in block)
    return found


def test_the_view_has_every_field_in_its_type(day: Day) -> None:
    described = day.run("DESCRIBE log")
    types = {column["column_name"]: column["column_type"] for column in described}
    assert {name: kind.replace('"', "") for name, kind in types.items()} == duckdb_columns()
    assert len(day.run("SELECT * FROM log")) == len(day.rows)


def test_objects_of_other_versions_do_not_stop_the_view(day: Day, tmp_path: Path) -> None:
    """Rows with fewer fields are read by both; ones with more by the view, or by their names."""
    for file in day.folder.glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = Day(tmp_path, day.rows, day.connection)
    older, newer = tmp_path / "00-00-00-older.jsonl", tmp_path / "23-59-59-newer.jsonl"
    older.write_text(json.dumps(every_kind.OLDER_ROW))
    other.documented("VIEW log")
    assert len(other.run("SELECT * FROM log")) == len(day.rows) + 1
    newer.write_text(json.dumps(every_kind.NEWER_ROW))
    assert len(other.run("SELECT * FROM log")) == len(day.rows) + 2
    by_name = SEED_QUERY.replace("');", "', union_by_name = true) WHERE type <> 'schema'")
    assert len(other.run(by_name)) == len(day.rows) + 2


def test_the_audit_finds_nothing_missing_and_names_what_was_damaged(day: Day) -> None:
    (found,) = day.documented("AS gaps")
    damaged = [row for row in day.rows if row["type"] == "damaged"]
    assert found == {"gaps": 0, "doubles": 0, "unpaired": 1, "damaged": len(damaged)}
    assert day.documented("first_missing") == []
    day.run("CREATE OR REPLACE TEMP TABLE kept AS SELECT * FROM log WHERE seq <> 7")
    (lost,) = records(
        day.connection, re.sub(r"\bFROM log\b", "FROM kept", block_with("first_missing"))
    )
    assert (lost["first_missing"], lost["last_missing"]) == (7, 7)


def test_a_conversation_reads_in_order_with_tools_between_calls_and_answers(
    day: Day,
) -> None:
    found = day.documented("AS speaker")
    assert [(row["speaker"], row["text"]) for row in found] == [
        ("user", "How many parks?"),
        ("call call_1", 'query {"sql": "SELECT 1"}'),
        ("call call_2", "map {}"),
        ("tool call_1", "0 parks"),
        ("tool call_2", "a map"),
        ("reasoning", "so many"),
        ("kimi", "answer 0"),
        ("user", "Thank you"),
        ("reasoning", "so many"),
        ("kimi", "answer 1"),
    ]


def test_tool_calls_find_their_results(day: Day) -> None:
    found = day.documented("call.arguments")
    ours = {
        (row["name"], row["content"]) for row in found if row["session_id"] == every_kind.SESSION
    }
    assert ours == {("query", "0 parks"), ("map", "a map")}


def test_full_capture_gives_messages_with_their_system_prompt(day: Day) -> None:
    found = day.documented("WITH texts")
    (first,) = (row for row in found if row["content"] == "answer 0")
    messages = json.loads(first["messages"])
    assert messages[0] == {"role": "system", "content": every_kind.PROMPT}
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_2", "content": "a map"}


def test_usage_latency_and_errors_add_up(day: Day) -> None:
    answers = [row for row in day.rows if row["type"] == "response"]
    usage = day.documented("AS not_ok")
    assert sum(row["calls"] for row in usage) == len(answers)
    assert sum(row["not_ok"] for row in usage) == sum(row["outcome"] != "ok" for row in answers)
    errors = day.documented("AS example")
    assert sum(row["calls"] for row in errors) == sum(row["outcome"] != "ok" for row in answers)
    latency = day.documented("AS latency_ms")
    assert all(len(row["latency_ms"]) == 3 for row in latency)


async def test_a_quiet_day_answers_every_query_too(tmp_path: Path) -> None:
    """One call, without an error, a tool or a session, read from a folder."""
    objects = DirectoryStore(tmp_path / "objects")
    async with GivenAnswers() as provider:
        config = one_provider(provider.url)
        async with ProxyProcess(tmp_path / "proxy", config, objects.env()) as proxy:
            async with Asker(proxy) as asker:
                await asker.ask("10:30", {"body": completion("2024-01-02")})
            assert await proxy.stop() == 0
    ((key, _), *_) = objects.objects()
    with duckdb.connect() as connection:
        quiet = Day(objects.folder / key.partition("/")[0], [], connection)
        for block in statements():
            if not block.startswith("CREATE SECRET") and "today.jsonl" not in block:
                quiet.run(block)
        (usage,) = quiet.documented("AS not_ok")
    assert (usage["calls"], usage["prompt_tokens"], usage["not_ok"]) == (1, 5, 0)
