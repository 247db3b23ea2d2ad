"""DuckDB reads the log as the documentation says, whatever its rows hold."""

import asyncio
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
import wire
from duckdb_log import aimed, connect, records, secret, statements
from given_answers import Fields, tool_call
from stores import S3Server, S3Store

pytestmark = pytest.mark.timeout(seconds=120)
SAMPLED_FILES = 32
SEED_QUERY = "SELECT * FROM read_ndjson_auto('s3://logs-<ns>/2026-04-07/*.jsonl');"


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
        row
        for key, data in store.objects()
        if key.startswith(day)
        for row in log_contract.read_rows(data.splitlines())
    ]
    yield Queried(f"s3://{store.bucket}/{day}/", rows, connection)
    connection.close()


def day_of(store: S3Store) -> str:
    """The day with most objects: a test may run at midnight."""
    days = Counter(key.partition("/")[0] for key, _ in store.objects())
    return days.most_common(1)[0][0]


def test_the_log_holds_every_kind_of_row(queried: Queried) -> None:
    kinds = {row["type"] for row in queried.rows}
    assert kinds == {"request", "response", "text", "damaged"}
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
    found = [row for row in queried.run(SEED_QUERY) if row["type"] != "schema"]
    assert len(found) == len(queried.rows) > 100
    texts = ("session_id", "content", "user_question", "model", "finish_reason", "client")
    for name in texts:
        stored = Counter(row.get(name) for row in queried.rows)
        assert Counter(row[name] for row in found) == stored, name


def test_the_session_that_was_sent_is_found(queried: Queried) -> None:
    sessions = Counter(row["session_id"] for row in queried.rows if row["session_id"])
    uuids = [name for name in sessions if every_kind.UUID.fullmatch(name)]
    assert len(uuids) >= every_kind.TYPED_CALLS
    block = next(text for text in statements() if "AND session_id = '" in text)
    asked = re.sub(r"session_id = '[^']*'", f"session_id = '{uuids[0]}'", block)
    assert len(queried.run(asked)) == sessions[uuids[0]] == 2


def test_the_first_files_hold_nothing_but_strings_that_look_typed(
    queried: Queried, tmp_path: Path
) -> None:
    """What the heads are for: without them the same rows cannot be read."""
    sampled = queried.rows[1 : 1 + 2 * SAMPLED_FILES]
    assert all(row["model"] in every_kind.TYPED for row in sampled)
    for number, row in enumerate(queried.rows):
        stored = {name: value for name, value in row.items() if value is not None}
        (tmp_path / f"{number:04}.jsonl").write_text(json.dumps(stored))
    with pytest.raises(duckdb.InvalidInputException, match="JSON transform error"):
        records(queried.connection, f"SELECT * FROM read_ndjson_auto('{tmp_path}/*.jsonl')")


def test_every_statement_of_the_documentation_runs_and_finds_something(queried: Queried) -> None:
    blocks = statements()
    assert len(blocks) >= 10
    for block in blocks:
        if "today.jsonl" in block:
            continue  # test_log_kubectl.py runs it
        if block.startswith("CREATE SECRET"):
            assert block.split("\n", 2)[2].strip() == SEED_QUERY
            block = SEED_QUERY
        found = queried.run(block)
        if not any(words in block for words in ("first_missing", "CREATE", "550e8400")):
            assert found, block


def test_messages_and_completions_come_back_from_the_bucket_exactly(queried: Queried) -> None:
    """What was asked and said in a session, rebuilt by nothing but the documented statements."""
    (view,) = (block for block in statements() if "VIEW log" in block)
    (pairs,) = (block for block in statements() if "WITH texts" in block)
    queried.run(view)
    of_session = f"q.type = 'request' AND q.session_id = '{every_kind.SESSION}'"
    pairs = pairs.replace("q.type = 'request'", of_session).replace(";", " ORDER BY q.seq")
    rebuilt = [
        (
            json.loads(row["messages"]),
            row["content"],
            row["reasoning_content"],
            [tool_call(c["id"], c["name"], c["arguments"]) for c in row["tool_calls"] or ()],
        )
        for row in queried.run(pairs)
    ]
    told = []
    for messages, answer in every_kind.conversation():
        said = answer["choices"][0]["message"]
        told.append((messages, said["content"], said.get("reasoning"), said.get("tool_calls", [])))
    assert rebuilt == told
