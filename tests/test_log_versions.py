"""The log in every DuckDB from 1.0 on, in Polars and in pandas, as LOGGING.md says.

The installed DuckDB is asked in the everyday suite, the others by `make test-duckdb`, each in a
small environment of its own below build/duckdb/, which pip fills when it is first needed.
"""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import log_contract
from duckdb_log import aimed, script, statements
from given_answers import Fields
from stores import DirectoryStore

pytest_plugins = ("log_fixtures",)
pytestmark = pytest.mark.timeout(seconds=600)
ROOT = Path(__file__).resolve().parent.parent
OBJECTS, RARE_FROM = 60, 50
STDERR = [
    "2026-04-07T10:00:00Z INFO Listening",
    "Traceback (most recent call last):",
    "",
    "42",
    "{",
]
VERSIONS = [
    pytest.param("installed"),
    *(pytest.param(f"duckdb=={name}", marks=pytest.mark.long) for name in ("1.0.0", "1.1.3")),
    *(pytest.param(f"duckdb=={name}", marks=pytest.mark.long) for name in ("1.5.4", "2.0.0")),
]


def python_with(packages: str) -> str:
    """A Python that has these packages."""
    if packages == "installed":
        return sys.executable
    folder = ROOT / "build" / "duckdb" / re.sub(r"\W+", "-", packages)
    python = folder / "bin" / "python"
    if not (folder / "filled").exists():
        subprocess.run((sys.executable, "-m", "venv", str(folder)), check=True)
        # DuckDB 2 types the timestamps as TIMESTAMPTZ, for which its Python wants pytz.
        command = (str(python), "-m", "pip", "install", "--quiet", "pytz", *packages.split())
        subprocess.run(command, check=True)
        (folder / "filled").touch()
    return str(python)


def asked(python: str, **what: Any) -> Any:
    done = subprocess.run(
        (python, str(ROOT / "tests" / "duckdb_reader.py")),
        input=json.dumps(what),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    return python_with(request.param)


def call(number: int, is_rare: bool) -> list[Fields]:
    """The rows of a call. A rare one has columns and texts that no other row has."""
    typed = "2024-01-02" if number % 2 else "infinity"
    row: Fields = {
        "timestamp": f"2026-04-07T02:{number:02}:00.000Z",
        "type": "request",
        "request_id": f"{number:016x}",
        "session_id": "a session" if is_rare else str(uuid.UUID(int=number)),
        "model": "kimi" if is_rare else typed,
        "key_name": "default",
        "endpoint": "/v1/chat/completions",
        "proxy_version": "1",
        "config_sha256": "0" * 64,
        "instance": "pod",
        "user_question": "hello" if is_rare else typed,
    }
    answer = {"outcome": "ok", "status": 200, "latency_ms": 10, "ttft_ms": 5, "has_content": True}
    answer |= {"content": "hello" if is_rare else typed}
    if is_rare:
        answer |= {
            "tool_calls": [{"id": "call_1", "name": "query", "arguments": "{}"}],
            "prompt_tokens": 5,
            "cost_usd": 0.25,
            "error": "2024-01-02",
        }
    response = {**row, "type": "response", **answer}
    del response["user_question"]
    return [row, response]


def write(path: Path, rows: list[Fields], head: bool = True) -> None:
    """An object with these rows, in the order of the contract."""
    first = [log_contract.head("0" * 16, "2026-04-07T02:00:00.000Z")] if head else []
    ordered = [{name: row[name] for name in log_contract.FIELDS if name in row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*first, *ordered)))


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """60 objects, of which only the last ten have what is rare."""
    for number in range(OBJECTS):
        rows = call(number, number >= RARE_FROM)
        numbered = [
            {"queue_id": "0" * 16, "seq": 2 * number + 1 + at, **row} for at, row in enumerate(rows)
        ]
        write(tmp_path / f"02-{number:02}-00.jsonl", numbered)
    return tmp_path


def test_rare_columns_are_read_and_sums_and_averages_are_right(python: str, rare: Path) -> None:
    source = f"read_ndjson_auto('{rare}/*.jsonl')"
    everything, sums, tools, session, types = asked(
        python,
        statements=[
            f"SELECT * FROM {source}",
            "SELECT sum(prompt_tokens)::INT AS tokens, sum(cost_usd) AS cost, avg(latency_ms) AS "
            "latency, avg(ttft_ms) AS ttft, count(status) AS answered, "
            f"avg(has_content::INT) AS content FROM {source}",
            f"SELECT DISTINCT unnest(tool_calls).name AS name FROM {source} WHERE type <> 'schema'",
            f"SELECT * FROM {source} WHERE session_id = '{uuid.UUID(int=7)}'",
            f"DESCRIBE SELECT * FROM {source}",
        ],
    )
    assert len(everything) == 3 * OBJECTS
    assert sums == [
        {"tokens": 50, "cost": 2.5, "latency": 10, "ttft": 5, "answered": 60, "content": 1}
    ]
    assert tools == [{"name": "query"}]
    assert len(session) == 2
    found = {column["column_name"]: column["column_type"].replace('"', "") for column in types}
    assert tuple(found) == (*log_contract.FIELDS[:4], "format", *log_contract.FIELDS[4:])
    lists = {
        "tool_results_this_turn": "STRUCT(tool_call_id VARCHAR, content VARCHAR)[]",
        "tool_calls": "STRUCT(id VARCHAR, name VARCHAR, arguments VARCHAR)[]",
    }
    numbers = dict.fromkeys(log_contract.ZERO_IN_HEADS, "BIGINT") | {"cost_usd": "DOUBLE"}
    flags = dict.fromkeys(log_contract.FALSE_IN_HEADS, "BOOLEAN")
    shown = {"seq": "BIGINT", "latency_ms": "BIGINT", "status": "BIGINT", "has_content": "BOOLEAN"}
    typed = {**lists, **numbers, **flags, **shown}
    assert {name: found[name] for name in typed} == typed
    texts = set(log_contract.FIELDS) - {"timestamp", *log_contract.NULL_IN_HEADS, *typed}
    assert {found[name] for name in texts} == {"VARCHAR"}


def documented(view_source: str) -> list[str]:
    """The view over a source and every documented query of it."""
    (view,) = (text for text in statements() if "VIEW log" in text)
    queries = [
        text
        for text in statements()
        if re.search(r"\bFROM log\b", text) and not text.startswith("CREATE")
    ]
    assert len(queries) >= 10
    return [re.sub(r"read_ndjson\('[^']*'", view_source, view), *queries]


def in_any_order(results: list[list[Fields]]) -> list[list[str]]:
    """What queries found; which example of an error is shown may differ."""
    return [
        sorted(repr({name: row[name] for name in row if name != "example"}) for row in rows)
        for rows in results
    ]


@pytest.fixture
def mixed(every_kind_store: DirectoryStore, tmp_path: Path) -> Iterator[Path]:
    """Real rows of every kind, with and without heads, and as a pod's log."""
    for kind in ("heads", "rows"):
        (tmp_path / kind).mkdir()
    captured = []
    for number, (_, data) in enumerate(every_kind_store.objects()):
        name = f"{number:04}.jsonl"
        (tmp_path / "heads" / name).write_bytes(data)
        rows = log_contract.without_head(data.decode())
        (tmp_path / "rows" / name).write_text(rows)
        captured += [*rows.splitlines(), STDERR[number % len(STDERR)]]
    (tmp_path / "pod.log").write_text("\n".join([*STDERR, *captured]) + "\n")
    yield tmp_path


def test_every_query_finds_the_same_with_heads_without_and_in_a_pods_log(
    python: str, mixed: Path
) -> None:
    with_heads, without, captured = (
        in_any_order(asked(python, statements=documented(source))[1:])
        for source in (
            f"read_ndjson('{mixed}/heads/*.jsonl'",
            f"read_ndjson('{mixed}/rows/*.jsonl'",
            f"read_ndjson('{mixed}/pod.log', ignore_errors = true",
        )
    )
    assert with_heads == without == captured
    assert sum(map(bool, with_heads)) >= 9, "queries that find nothing compare nothing"


def test_the_statements_without_the_view_read_every_kind_of_row(python: str, mixed: Path) -> None:
    blocks = [text for text in statements() if "read_ndjson_auto('s3" in text]
    everything = [text.partition(";\n")[2] if "CREATE SECRET" in text else text for text in blocks]
    found = asked(python, statements=[aimed(text, f"{mixed}/heads/") for text in everything])
    rows = [
        row for path in (mixed / "heads").iterdir() for row in path.read_text().splitlines() if row
    ]
    assert len(found[0]) == len(rows)


@pytest.mark.long
def test_polars_and_pandas_read_it_as_documented(rare: Path) -> None:
    python = python_with("polars pandas")
    for words, sums in (("polars", ".sum()"), ("pandas", ".sum()")):
        block = script(f"import {words}").replace("2026-04-07/", f"{rare}/")
        found = asked(
            python,
            script=f"{block}\nfound = [len(log), int(log['prompt_tokens']{sums}), "
            f"float(log['cost_usd']{sums}), float(log['latency_ms'].mean()), "
            f"sorted(set(map(str, log['session_id'])))]",
        )
        sessions = sorted({"a session", *(str(uuid.UUID(int=n)) for n in range(RARE_FROM))})
        assert found == [2 * OBJECTS, 50, 2.5, 10.0, sessions]


# Texts that look like something else.

TYPED = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda value: f"{{{value}}}".upper()),
    st.dates().map(str),
    st.datetimes().map(str),
    st.datetimes().map(lambda value: value.isoformat() + "Z"),
    st.times().map(str),
    st.times().map(lambda value: value.strftime("%I:%M %p")),
    st.sampled_from(
        ["infinity", "-Infinity", "epoch", "1-2-24", "true", "null", "NaN", "{}", "[]"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.just("-"),
    st.just(""),
)
TEXT_FIELDS = [
    name
    for name in log_contract.FIELDS[4:]
    if name not in (*log_contract.NULL_IN_HEADS, *log_contract.ZERO_IN_HEADS, "cost_usd")
    and name not in (*log_contract.FALSE_IN_HEADS, *log_contract.LISTS_IN_HEADS)
]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_texts_that_look_typed_are_read_as_they_are_in_every_field(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Objects full of them come first, as DuckDB samples 32 files, and an ordinary one last."""
    import duckdb

    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    kinds = {name: data.draw(TYPED, label=name) for name in (*TEXT_FIELDS, "item")}
    expected = []
    for number in range(34):
        is_last = number == 33
        texts = {name: f"plain {name}" if is_last else kinds[name] for name in TEXT_FIELDS}
        item = "plain" if is_last else kinds["item"]
        row: Fields = {"queue_id": "0" * 16, "seq": number + 1, "type": "response", **texts}
        row |= {
            "timestamp": "2026-04-07T02:00:00.000Z",
            "tool_calls": [{"id": item, "name": item, "arguments": item}],
        }
        write(tmp_path / f"{number:02}.jsonl", [row])
        expected.append([texts[name] for name in TEXT_FIELDS] + [item])
    columns = ", ".join([*TEXT_FIELDS, "tool_calls[1].arguments"])
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT {columns} FROM read_ndjson_auto('{tmp_path}/*.jsonl') "
            "WHERE type <> 'schema' ORDER BY seq"
        ).fetchall()
    assert list(map(list, found)) == expected
