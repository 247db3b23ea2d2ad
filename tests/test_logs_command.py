"""`open-llm-proxy logs` as people and programs use it: folder, bucket, stdin, terminal, pipe."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import every_kind
import log_contract
from given_answers import Fields
from logs_command import COMMAND, ENVIRONMENT, Logs, on_a_terminal, plain
from open_llm_proxy.archive.commands.terminal import visible
from stores import DirectoryStore, S3Store

pytest_plugins = ("log_fixtures",)


@pytest.fixture
def folder(every_kind_store: DirectoryStore) -> str:
    return str(every_kind_store.folder)


@pytest.fixture
def lines(every_kind_store: DirectoryStore) -> bytes:
    """The rows of all objects, without their heads."""
    objects = (data.decode() for _, data in every_kind_store.objects())
    return "".join(log_contract.without_head(text) for text in objects).encode()


@pytest.fixture
def calls(every_kind_rows: list[Fields]) -> list[str]:
    """The ids of all calls."""
    return [row["request_id"] for row in every_kind_rows if row["type"] == "response"]


# tail


def test_tail_prints_the_newest_calls_with_what_their_rows_say(
    logs: Logs, folder: str, calls: list[str], every_kind_rows: list[Fields]
) -> None:
    everything = logs("tail", folder, "-n", "1000000", "--since", "2000-01-01").objects
    assert sorted(call["request_id"] for call in everything) == sorted(calls)
    rows = {(row["request_id"], row["type"]): row for row in every_kind_rows}
    for call in everything:
        request = rows.get((call["request_id"], "request"), {})
        response = rows[call["request_id"], "response"]
        for name in ("session_id", "model", "user_question", "tool_results_this_turn"):
            assert call.get(name) == request.get(name, response.get(name))
        for name in ("outcome", "content", "tool_calls", "latency_ms", "error", "status"):
            assert call.get(name) == response[name]
    newest = [call["request_id"] for call in logs("tail", folder, "-n", "3").objects]
    assert newest == [call["request_id"] for call in everything[-3:]]


def test_tail_takes_stdin_a_file_a_day_or_the_settings(
    logs: Logs, folder: str, lines: bytes, tmp_path: Path
) -> None:
    expected = logs("tail", folder, "-n", "5").objects
    names = [call["request_id"] for call in expected]
    captured = tmp_path / "pod.log"
    captured.write_bytes(lines)
    for found in (
        logs("tail", "-n", "5", "-", stdin=lines),
        logs("tail", "-n", "5", stdin=lines),
        logs("tail", "-n", "5", str(captured)),
        logs("tail", "-n", "5", LOG_DIR=folder),
    ):
        assert [call["request_id"] for call in found.objects] == names
    (day, *_) = sorted(os.listdir(folder))
    assert logs("tail", f"{folder}/{day}").objects


def test_tail_follows_stdin_call_by_call(lines: bytes) -> None:
    process = subprocess.Popen(
        (*COMMAND, "tail", "-f", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None and process.stdout is not None
    rows = [line for line in lines.splitlines() if b'"type":"text"' not in line]
    with process:
        for request, response in zip(rows[:6:2], rows[1:6:2], strict=True):
            process.stdin.write(request + b"\n" + response + b"\n")
            process.stdin.flush()
            call = json.loads(process.stdout.readline())
            assert call["request_id"] == json.loads(response)["request_id"]
            assert call["user_question"] == json.loads(request)["user_question"]
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(10) == 0


def test_tail_follows_a_folder_into_the_next_object_and_day(tmp_path: Path) -> None:
    row = {"queue_id": "a" * 16, "request_id": "b" * 16, "outcome": "ok"}

    def put(day: str, name: str, seq: int, kind: str) -> None:
        (tmp_path / day).mkdir(exist_ok=True)
        moment = f"{day}T{name[:8].replace('-', ':')}.000Z"
        part = tmp_path / day / f"{name}.part"
        part.write_text(json.dumps({"seq": seq, "timestamp": moment, "type": kind, **row}) + "\n")
        part.rename(part.with_suffix(".jsonl"))

    put("2024-05-01", "23-55-00-a", 1, "request")
    program = (
        "from open_llm_proxy.server.commands import cli\n"
        "from open_llm_proxy.archive.commands import tail_command\n"
        "tail_command.FOLLOW_SECONDS = 0.05\n"
        f"cli.main(['logs', 'tail', '-f', {str(tmp_path)!r}])"
    )
    process = subprocess.Popen(
        (sys.executable, "-c", program), stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    killer = threading.Timer(60, process.kill)
    killer.start()
    with process:
        assert json.loads(process.stdout.readline())["outcome"] == "open"
        put("2024-05-01", "23-57-00-a", 2, "response")
        call = json.loads(process.stdout.readline())
        assert (call["outcome"], call["request_seq"], call["response_seq"]) == ("ok", 1, 2)
        put("2024-05-02", "00-00-00-a", 3, "request")
        put("2024-05-02", "00-05-00-a", 4, "response")
        assert json.loads(process.stdout.readline())["response_seq"] == 4
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    killer.cancel()


def test_tail_on_a_terminal_is_made_for_reading(folder: str) -> None:
    everything = ("tail", folder, "-n", "500", "--since", "2000-01-01")
    text = plain(on_a_terminal(*everything))
    assert "How many parks?" in text and "rejected" in text and "app.example" in text
    assert "→query" in text
    assert not text.startswith("{")
    narrow = plain(on_a_terminal(*everything, COLUMNS="80"))
    rows = narrow.splitlines()
    assert len(rows) == len(text.splitlines()) and max(map(len, rows)) <= 80, "one line a call"
    as_json = on_a_terminal("tail", folder, "-n", "1", "--json")
    assert as_json.startswith('{"session_key"')


# show


def test_show_tells_a_conversation_with_its_tools_in_order(logs: Logs, folder: str) -> None:
    said = logs("show", every_kind.SESSION, folder).objects
    told = [(item["speaker"], item["name"], item["text"]) for item in said]
    assert told == [
        ("user", None, "How many parks?"),
        ("tool_call", "query", '{"sql": "SELECT 1"}'),
        ("tool_call", "map", "{}"),
        ("tool", "query", "0 parks"),
        ("tool", "map", "a map"),
        ("reasoning", None, "so many"),
        ("assistant", None, "answer 0"),
        ("user", None, "Thank you"),
        ("reasoning", None, "so many"),
        ("assistant", None, "answer 1"),
    ]


def test_show_takes_a_session_or_a_request_or_its_beginning(
    logs: Logs, folder: str, every_kind_rows: list[Fields]
) -> None:
    sessions = ((row["session_id"] or "", row["request_id"]) for row in every_kind_rows)
    session, request = next(pair for pair in sessions if every_kind.UUID.fullmatch(pair[0]))
    by_session = logs("show", session, folder).objects
    for name in (request, session[:12], request[:12]):
        assert logs("show", name, folder).objects == by_session
    assert by_session[0]["text"] in every_kind.TYPED
    everything = logs("show", "", folder)
    assert everything.returncode == 2 and "is the beginning of" in everything.stderr


def test_schema_prints_a_head(logs: Logs) -> None:
    (head,) = logs("schema").objects
    assert head == log_contract.head("0" * 16, head["timestamp"])


def test_show_on_a_terminal_reads_like_a_conversation(folder: str) -> None:
    text = plain(on_a_terminal("show", every_kind.SESSION, folder))
    order = [
        *(every_kind.SESSION, "3 turns", "2 tool calls"),
        *("How many parks?", "calls query", "SELECT 1", "query answers", "0 parks", "answer 0"),
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_show_says_how_a_call_failed(
    logs: Logs, folder: str, every_kind_rows: list[Fields]
) -> None:
    failed = next(row for row in every_kind_rows if row["outcome"] == "upstream_unreachable")
    said = logs("show", failed["request_id"], folder).objects
    assert said[-1]["speaker"] == "error"
    assert said[-1]["text"].startswith("upstream_unreachable: ")


def test_what_was_said_never_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07 \x1b[2J \x9b31m [bold]markup[/bold] \u202egnirts \r overwritten"
    rows = [
        {"type": "request", "user_message_this_turn": hostile, "model": hostile},
        {"type": "response", "outcome": hostile, "error": hostile, "content": hostile},
    ]
    arguments = json.dumps({"sql": hostile})
    tools = [{"id": hostile, "name": hostile, "arguments": text} for text in (hostile, arguments)]
    file = tmp_path / "log.jsonl"
    with open(file, "w") as log:
        for row in rows:
            row |= {"timestamp": "2024-05-01T10:00:00.000Z", "request_id": "a" * 16}
            row |= {"session_id": "s", "tool_calls": tools, "origin": hostile}
            log.write(json.dumps(row) + "\n")
    for view in (
        ("show", "s"),
        ("tail",),
        ("stats",),
        ("sessions",),
        ("sql", "FROM turns"),
        ("sql", "SELECT origin FROM turns"),
    ):
        text = on_a_terminal(*view, str(file))
        assert "owned" in text, view
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202e]", text)
        assert all(re.match(r"\x1b\[[0-9;]*m", text[i:]) for i in find_all(text, "\x1b"))
    assert visible("a\tb\nc\x1b") == "a\tb\nc␛"


def find_all(text: str, part: str) -> Iterator[int]:
    return (match.start() for match in re.finditer(re.escape(part), text))


def test_show_writes_arguments_of_tools_as_people_write_them(tmp_path: Path) -> None:
    sql = "SELECT state\nFROM parks"
    file = tmp_path / "log.jsonl"
    calls = [
        {"id": "1", "name": "query", "arguments": json.dumps({"sql": sql, "limit": [5]})},
        {"id": "2", "name": "odd", "arguments": '{"cut off'},
    ]
    row = {"timestamp": "2024-05-01T10:00:00.000Z", "type": "response", "outcome": "ok"}
    file.write_text(json.dumps({**row, "session_id": "s", "request_id": "a", "tool_calls": calls}))
    text = plain(on_a_terminal("show", "s", str(file)))
    assert "sql: SELECT state\nFROM parks\nlimit: [5]\n" in text
    assert '{"cut off' in text


# stats


def test_stats_count_calls_tokens_latency_and_errors(
    logs: Logs, folder: str, every_kind_rows: list[Fields]
) -> None:
    groups = logs("stats", folder, "--by", "client,model").objects
    answers = [row for row in every_kind_rows if row["type"] == "response"]
    calls = Counter((row["client"], row["model"]) for row in answers)
    assert {(group["client"], group["model"]): group["calls"] for group in groups} == calls
    assert [group["calls"] for group in groups] == sorted(calls.values(), reverse=True)
    tokens = sum(row["total_tokens"] or 0 for row in answers)
    assert sum(group["total_tokens"] or 0 for group in groups) == tokens
    unknown = sum(row["total_tokens"] is None for row in answers)
    assert sum(group["calls_without_tokens"] for group in groups) == unknown
    assert any(group["total_tokens"] is None for group in groups), "unknown tokens are not 0"
    failures = Counter(row["outcome"] for row in answers if row["outcome"] != "ok")
    assert sum(group["errors"] for group in groups) == failures.total()
    by_outcome = logs("stats", folder, "--by", "outcome", "--outcome", "failed").objects
    assert {group["outcome"]: group["calls"] for group in by_outcome} == failures


def test_stats_on_a_terminal_are_a_table(folder: str, every_kind_rows: list[Fields]) -> None:
    text = plain(on_a_terminal("stats", folder))
    assert "app.example" in text and "p95" in text
    answers = sum(row["type"] == "response" for row in every_kind_rows)
    assert re.search(rf"^all +{answers} ", text, re.MULTILINE)


# Sources.


def test_a_bucket_reads_like_a_folder(
    logs: Logs, moto_store: S3Store, every_kind_store: DirectoryStore, tmp_path: Path
) -> None:
    few = tmp_path / "objects"
    for key, body in list(every_kind_store.objects())[-12:]:
        moto_store.client.put_object(Bucket=moto_store.bucket, Key=f"team/{key}", Body=body)
        (few / key).parent.mkdir(parents=True, exist_ok=True)
        (few / key).write_bytes(body)
    folder = str(few)
    settings = moto_store.env() | {"LOG_PREFIX": "team/"}
    credentials = {name: value for name, value in settings.items() if name.startswith("AWS")}
    expected = logs("stats", folder).objects
    assert logs("stats", **settings).objects == expected
    for url in (f"s3://{moto_store.bucket}/team/", f"s3://{moto_store.bucket}/team"):
        assert logs("stats", url, **credentials).objects == expected
    (day, *_) = sorted(os.listdir(folder))
    assert logs("tail", f"s3://{moto_store.bucket}/team/{day}/", **credentials).objects


def test_an_unreachable_bucket_is_explained_without_secrets(logs: Logs) -> None:
    done = logs(
        "stats",
        "s3://nowhere/",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:1",
        AWS_ACCESS_KEY_ID="the-key-id",
        AWS_SECRET_ACCESS_KEY="the-secret",
    )
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr
    assert "the-secret" not in done.stderr and "the-key-id" not in done.stderr


def test_a_missing_bucket_is_explained(logs: Logs, moto_store: S3Store) -> None:
    settings = moto_store.env()
    done = logs("stats", "s3://there-is-no-such-bucket", **settings)
    assert done.returncode == 2
    assert "404 NoSuchBucket" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("stats", "/there/is/nothing"), 2, "there is no /there/is/nothing"),
        (("stats", "{empty}"), 2, "holds no log objects"),
        (("stats", "{folder}", "--until", "1999-01-01"), 1, "has no such calls"),
        (("stats", "{folder}", "--since", "yesterday"), 2, "write 2h, 3d, 2026-04-07"),
        (("sessions", "{folder}", "--model", "nothing"), 1, "has no such sessions"),
        (("show", "nobody", "{folder}"), 1, "no session or request 'nobody'"),
        (("sql", "SELECT", "{folder}"), 2, "the query failed"),
        (("stats", "s3://"), 2, "is not of the form"),
        (("tail", "-f", "{file}"), 2, "does not grow"),
        (("verify", "{file}"), 2, "is a stream"),
        (("stats", "{folder}", "--cache", "x"), 2, "are for a bucket"),
        (("stats", "{folder}", "--by", "colour"), 2, "is none of app, model"),
        (("stats", "{folder}", "--limit", "0"), 2, "must be 1 or more"),
        (("stats", "{folder}", "--since", "1d", "--until", "2d"), 2, "is not before"),
        (("show",), 2, "ID"),
    ],
)
def test_nothing_found_is_told_apart_from_a_mistake(
    logs: Logs, folder: str, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "pod.log"
    file.write_text("")
    done = logs(*(part.format(folder=folder, empty=empty, file=file) for part in arguments))
    assert (done.returncode, done.stdout) == (code, b"")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_without_duckdb_a_sentence_says_what_to_install(
    logs: Logs, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    done = logs("stats", folder)
    assert done.returncode == 2 and "pip install 'open-llm-proxy[archive]'" in done.stderr
    assert logs("schema").returncode == 0


def test_lines_that_are_no_entries_are_passed_over_and_counted(logs: Logs, lines: bytes) -> None:
    noise = b'2026-11-23 18:50:11 WARNING listening\n\xff\xfe\n{"a": 1}\n[]\n' + b"[" * 5000 + b"\n"
    done = logs("stats", "-", stdin=noise + lines)
    assert done.objects == logs("stats", "-", stdin=lines).objects
    assert "no log entries: 5\n" in done.stderr
    cut = logs("stats", "-", stdin=noise + lines + b'{"timestamp": "cut o')
    assert cut.stdout == done.stdout and cut.returncode == 1
    assert "cut or damaged: 1" in cut.stderr


def test_a_reader_that_has_enough_is_no_error(folder: str) -> None:
    pipe = subprocess.Popen(
        (*COMMAND, "tail", "-n", "1000", "--since", "2000-01-01", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert pipe.stdout is not None and pipe.stderr is not None
    pipe.stdout.readline()
    pipe.stdout.close()
    assert pipe.stderr.read() == b""
    assert pipe.wait(20) == 0
    pipe.stderr.close()
