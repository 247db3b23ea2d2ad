"""DuckDB reads the log as the documentation says, whatever its rows hold."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

import every_kind
import wire
from duckdb_log import aimed, connect, records, secret, statements
from given_answers import Asker, Fields, GivenAnswers, completion
from open_llm_proxy.server.entries import LogEntry
from open_llm_proxy.server.entry_line import encode, unmarked
from open_llm_proxy.server.entry_schema import duckdb_columns
from proxy_process import ProxyProcess, one_provider
from stores import DirectoryStore, S3Server, S3Store

pytestmark = pytest.mark.timeout(seconds=120)
SAMPLED_FILES = 32
SEED_QUERY = "SELECT * FROM read_ndjson_auto('s3://logs-<ns>/2026-04-07/*.jsonl');"


PIECES: list[Callable[[random.Random], str]] = [
    lambda chance: str(chance.randint(0, 10 ** chance.randint(1, 6))),
    lambda chance: chance.choice("-/.: T,_+"),
    lambda chance: chance.choice(["Z", "UTC", "AM", "pm", "  ", "\t", "+02:00", " (BC)"]),
    lambda chance: chance.choice(["infinity", "epoch", "-infinity"]),
    lambda chance: f"2024-{chance.randint(1, 12):02}-{chance.randint(1, 28)}",
    lambda chance: f"{chance.randint(0, 24):02}:{chance.randint(0, 60):02}",
    lambda chance: f"{chance.randint(0, 24)}:{chance.randint(0, 60)}:{chance.random() * 60:.3f}",
]


@dataclass(frozen=True)
class Queried:
    """A day of the log in a bucket: its folder there, its rows, and a connection to query it."""

    folder: str
    rows: list[Fields]
    connection: duckdb.DuckDBPyConnection

    def run(self, statement: str) -> list[dict[str, Any]]:
        return records(self.connection, aimed(statement, self.folder))


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("duckdb")


@pytest.fixture(scope="module")
def written_store(
    moto_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Store]:
    """A bucket into which the server has written every kind of row, and another an older one."""
    store = S3Store(moto_server, "every-kind")
    dead_url = f"http://127.0.0.1:{wire.free_port()}"
    asyncio.run(every_kind.fill(store, tmp_path_factory.mktemp("proxy"), dead_url))
    put(store, f"{day_of(store)}/00-00-00-older.jsonl", every_kind.OLDER_ROW)
    yield store
    store.close(remove=True)


@pytest.fixture(scope="module", params=["moto", pytest.param("rgw", marks=pytest.mark.rgw)])
def store(request: pytest.FixtureRequest, written_store: S3Store) -> Iterator[S3Store]:
    """That bucket, and a real RGW with the same objects."""
    if request.param == "moto":
        yield written_store
        return
    store = S3Store(request.getfixturevalue("rgw").server, "every-kind")
    for key, body in written_store.objects():
        store.client.put_object(Bucket=store.bucket, Key=key, Body=body)
    yield store
    store.close(remove=True)


@pytest.fixture(scope="module")
def queried(store: S3Store, extensions: Path) -> Iterator[Queried]:
    connection = connect(extensions)
    connection.execute(secret(store.server))
    day = day_of(store)
    rows = [
        json.loads(line)
        for key, data in store.objects()
        if key.startswith(day)
        for line in data.splitlines()
    ]
    yield Queried(f"s3://{store.bucket}/{day}/", rows, connection)
    connection.close()


def put(store: S3Store, key: str, row: Fields) -> None:
    body = json.dumps(row).encode() + b"\n"
    store.client.put_object(Bucket=store.bucket, Key=key, Body=body)


def day_of(store: S3Store) -> str:
    """The day with most objects: a test may run at midnight."""
    days = Counter(key.partition("/")[0] for key, _ in store.objects())
    return days.most_common(1)[0][0]


def test_the_log_holds_every_kind_of_row(queried: Queried) -> None:
    kinds = {row["type"] for row in queried.rows}
    assert kinds == {"request", "response", "system_prompt", "damaged"}
    outcomes = {row["outcome"] for row in queried.rows if row.get("outcome")}
    assert outcomes == {
        "ok",
        "upstream_error",
        "upstream_unreachable",
        "upstream_timeout",
        "client_disconnected",
        "rejected",
        "interrupted",
    }


def test_the_two_statements_of_the_seed_read_everything(queried: Queried) -> None:
    found = queried.run(SEED_QUERY)
    assert len(found) == len(queried.rows) > 2 * SAMPLED_FILES
    texts = ("session_id", "content", "user_question", "model", "finish_reason", "client")
    for name in texts:
        stored = Counter(row.get(name) for row in queried.rows)
        assert Counter(row[name] for row in found) == stored, name


def test_the_first_files_hold_nothing_but_strings_that_look_typed(
    queried: Queried, tmp_path: Path
) -> None:
    """What the marks are for: without them the same rows cannot be read."""
    sampled = queried.rows[1 : 1 + SAMPLED_FILES]
    assert all(row["model"].startswith("text:") for row in sampled)
    for number, row in enumerate(queried.rows):
        plain = {
            name: unmarked(value) if isinstance(value, str) else value
            for name, value in row.items()
        }
        (tmp_path / f"{number:04}.jsonl").write_text(json.dumps(plain))
    with pytest.raises(duckdb.InvalidInputException, match="JSON transform error"):
        records(queried.connection, f"SELECT * FROM read_ndjson_auto('{tmp_path}/*.jsonl')")


def test_whatever_duckdb_does_not_read_as_text_is_marked(extensions: Path, tmp_path: Path) -> None:
    """Random strings near dates and times, each in a file of its own."""
    chance = random.Random(20240501)
    connection = connect(extensions)
    file = tmp_path / "one.jsonl"
    typed = 0
    for _ in range(600):
        text = "".join(chance.choice(PIECES)(chance) for _ in range(chance.randint(1, 5)))
        file.write_text(json.dumps({"text": text}))
        ((_, kind, *_),) = connection.execute(
            f"DESCRIBE FROM read_ndjson_auto('{file}')"
        ).fetchall()
        if kind != "VARCHAR":
            typed += 1
            row = json.loads(encode(LogEntry(type="response", content=text), 0).body)
            assert row["content"] == f"text:{text}", kind
    connection.close()
    assert typed > 30, "the strings are not near enough"


def test_every_statement_of_the_documentation_runs_and_finds_something(queried: Queried) -> None:
    blocks = statements()
    assert len(blocks) >= 10
    for block in blocks:
        if block.startswith("CREATE SECRET"):
            assert block.split("\n", 2)[2].strip() == SEED_QUERY
            block = SEED_QUERY
        found = queried.run(block)
        if "first_missing" not in block and not block.startswith("CREATE"):
            assert found, block


def view(queried: Queried) -> None:
    (statement,) = (block for block in statements() if "VIEW log" in block)
    queried.run(statement)


def block_with(words: str) -> str:
    (found,) = (block for block in statements() if words in block)
    return found


def test_the_view_has_every_field_in_its_type(queried: Queried) -> None:
    view(queried)
    described = queried.run("DESCRIBE log")
    types = {column["column_name"]: column["column_type"] for column in described}
    assert {name: kind.replace('"', "") for name, kind in types.items()} == duckdb_columns()
    assert len(queried.run("SELECT * FROM log")) == len(queried.rows)


def test_objects_of_a_newer_version_with_more_fields_do_not_stop_the_view(
    queried: Queried, store: S3Store
) -> None:
    view(queried)
    key = f"{day_of(store)}/23-59-59-newer.jsonl"
    put(store, key, every_kind.NEWER_ROW)
    try:
        assert len(queried.run("SELECT * FROM log")) == len(queried.rows) + 1
        by_name = SEED_QUERY.replace("')", "', union_by_name = true)")
        assert len(queried.run(by_name)) == len(queried.rows) + 1
    finally:
        store.client.delete_object(Bucket=store.bucket, Key=key)


def test_the_audit_finds_nothing_missing_and_names_what_was_damaged(queried: Queried) -> None:
    view(queried)
    (found,) = queried.run(block_with("AS gaps"))
    damaged = [row for row in queried.rows if row["type"] == "damaged"]
    assert found == {"gaps": 0, "doubles": 0, "unpaired": 1, "damaged": len(damaged)}
    assert queried.run(block_with("first_missing")) == []
    queried.run("CREATE OR REPLACE TEMP TABLE kept AS SELECT * FROM log WHERE seq <> 7")
    (lost,) = records(
        queried.connection, re.sub(r"\bFROM log\b", "FROM kept", block_with("first_missing"))
    )
    assert (lost["first_missing"], lost["last_missing"]) == (7, 7)


def test_a_conversation_reads_in_order_with_tools_between_calls_and_answers(
    queried: Queried,
) -> None:
    view(queried)
    found = queried.run(block_with("AS speaker"))
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


def test_tool_calls_find_their_results(queried: Queried) -> None:
    view(queried)
    found = queried.run(block_with("call.arguments"))
    ours = {
        (row["name"], row["content"]) for row in found if row["session_id"] == every_kind.SESSION
    }
    assert ours == {("query", "0 parks"), ("map", "a map")}


def test_full_capture_gives_messages_with_their_system_prompt(queried: Queried) -> None:
    view(queried)
    found = queried.run(block_with("WITH prompts"))
    (first,) = (row for row in found if row["content"] == "answer 0")
    messages = json.loads(first["messages"])
    assert messages[0] == {"role": "system", "content": every_kind.PROMPT}
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_2", "content": "a map"}


def test_usage_latency_and_errors_add_up(queried: Queried) -> None:
    view(queried)
    answers = [row for row in queried.rows if row["type"] == "response"]
    usage = queried.run(block_with("AS not_ok"))
    assert sum(row["calls"] for row in usage) == len(answers)
    assert sum(row["not_ok"] for row in usage) == sum(row["outcome"] != "ok" for row in answers)
    errors = queried.run(block_with("AS example"))
    assert sum(row["calls"] for row in errors) == sum(row["outcome"] != "ok" for row in answers)
    latency = queried.run(block_with("AS latency_ms"))
    assert all(len(row["latency_ms"]) == 3 for row in latency)


async def test_a_quiet_day_answers_every_query_too(tmp_path: Path, extensions: Path) -> None:
    """One call, without an error, a tool or a session, read from a folder."""
    objects = DirectoryStore(tmp_path / "objects")
    async with GivenAnswers() as provider:
        config = one_provider(provider.url)
        async with ProxyProcess(tmp_path / "proxy", config, objects.env()) as proxy:
            async with Asker(proxy) as asker:
                await asker.ask("10:30", {"body": completion("2024-01-02")})
            assert await proxy.stop() == 0
    ((key, _), *_) = objects.objects()
    folder = f"{objects.folder}/{key.partition('/')[0]}/"
    connection = connect(extensions)
    for block in statements():
        if not block.startswith("CREATE SECRET"):
            records(connection, aimed(block, folder))
    (usage,) = records(connection, aimed(block_with("AS not_ok"), folder))
    assert (usage["calls"], usage["prompt_tokens"], usage["not_ok"]) == (1, 5, 0)
    connection.close()
