"""`open-llm-proxy logs` as people and programs use it: folder, bucket, stdin, terminal, pipe."""

import argparse
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import every_kind
import log_contract
from given_answers import Fields
from open_llm_proxy.archive import command as logs_command
from open_llm_proxy.archive.printing import visible
from open_llm_proxy.server.settings import from_process_environment
from open_llm_proxy.server.sink_choice import reader_environment
from stores import DirectoryStore, S3Store

pytest_plugins = ("log_fixtures",)

COMMAND = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs")
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLUMNS": "200"}


@dataclass(frozen=True)
class Done:
    """What the command did with its output in a pipe."""

    returncode: int
    stdout: bytes
    stderr: str


Logs = Callable[..., Done]


@pytest.fixture
def logs(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Logs:
    """Runs the command in this process, which starts in no time; see `on_a_terminal` too."""
    for name in list(os.environ):
        if name.startswith(("LOG_", "AWS_")):
            monkeypatch.delenv(name)
    parser = argparse.ArgumentParser()
    logs_command.add_command(
        parser.add_subparsers(), lambda: reader_environment(from_process_environment())
    )

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            file = tmp_path / "stdin"
            file.write_bytes(stdin)
            with open(file) as opened:
                patch.setattr(sys, "stdin", opened)
                try:
                    chosen = parser.parse_args(("logs", *arguments))
                    code = chosen.run(chosen)
                except SystemExit as usage:
                    code = usage.code
        out, err = capsysbinary.readouterr()
        return Done(code, out, err.decode())

    return run


def objects_of(done: Done) -> list[Fields]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        (*COMMAND, *arguments),
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "TERM": "xterm", **environment},
    )
    os.close(follower)
    chunks = []
    try:
        while chunk := os.read(leader, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    os.close(leader)
    assert process.stderr is not None
    with process.stderr:
        assert process.wait(10) == 0, process.stderr.read().decode()
    return b"".join(chunks).decode()


def plain(text: str) -> str:
    """A terminal's text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")


@pytest.fixture
def folder(every_kind_store: DirectoryStore) -> str:
    return str(every_kind_store.folder)


@pytest.fixture
def lines(every_kind_store: DirectoryStore) -> bytes:
    """The rows of all objects, without their heads."""
    objects = (data.decode() for _, data in every_kind_store.objects())
    return "".join(log_contract.without_head(text) for text in objects).encode()


# tail


def test_tail_prints_the_newest_rows_as_they_are_stored(
    logs: Logs, folder: str, lines: bytes
) -> None:
    stored = sorted(lines.splitlines(), key=lambda line: json.loads(line)["timestamp"])
    everything = logs("tail", folder, "-n", "1000000", "--day", "all")
    assert sorted(everything.stdout.splitlines()) == sorted(stored)
    newest = logs("tail", folder, "-n", "3").stdout.splitlines()
    times = [json.loads(line)["timestamp"] for line in newest]
    assert times == [json.loads(line)["timestamp"] for line in stored[-3:]]


def test_tail_takes_stdin_a_file_a_day_or_the_settings(
    logs: Logs, folder: str, lines: bytes
) -> None:
    last = lines.splitlines()[-5:]
    assert logs("tail", "-n", "5", "-", stdin=lines).stdout.splitlines() == last
    assert logs("tail", "-n", "5", stdin=lines).stdout.splitlines() == last
    (day, *_) = sorted(os.listdir(folder))
    file = sorted(Path(folder, day).iterdir())[0]
    for source in (str(file), f"{folder}/{day}"):
        assert objects_of(logs("tail", source))
    assert objects_of(logs("tail", "-n", "5", LOG_DIR=folder))


def test_tail_follows_stdin_line_by_line(lines: bytes) -> None:
    process = subprocess.Popen(
        (*COMMAND, "tail", "-f", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        for line in lines.splitlines()[:3]:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == line + b"\n"
        process.stdin.close()
        assert process.wait(10) == 0


def test_tail_follows_a_folder_into_the_next_object_and_day(tmp_path: Path) -> None:
    row = {"timestamp": "2024-05-01T23:59:00.000Z", "type": "request", "queue_id": "a" * 16}

    def put(day: str, name: str, seq: int) -> bytes:
        (tmp_path / day).mkdir(exist_ok=True)
        line = json.dumps({**row, "seq": seq}).encode()
        part = tmp_path / day / f"{name}.part"
        part.write_bytes(line + b"\n")
        part.rename(part.with_suffix(".jsonl"))
        return line

    first = put("2024-05-01", "23-55-00-a", 1)
    program = (
        "from open_llm_proxy.server.commands import cli\n"
        "from open_llm_proxy.archive import command as logs_command\n"
        "logs_command.FOLLOW_SECONDS = 0.05\n"
        f"cli.main(['logs', 'tail', '-f', {str(tmp_path)!r}])"
    )
    process = subprocess.Popen(
        (sys.executable, "-c", program), stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    killer = threading.Timer(30, process.kill)
    killer.start()
    with process:
        assert process.stdout.readline().strip() == first
        second = put("2024-05-01", "23-57-00-a", 2)
        assert process.stdout.readline().strip() == second
        third = put("2024-05-02", "00-00-00-a", 3)
        assert process.stdout.readline().strip() == third
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    killer.cancel()


def test_tail_on_a_terminal_is_made_for_reading(folder: str) -> None:
    text = plain(on_a_terminal("tail", folder, "-n", "500", "--day", "all"))
    assert "How many parks?" in text and "answer" in text and "rejected" in text
    assert "→query" in text
    assert not text.startswith("{")
    narrow = plain(on_a_terminal("tail", folder, "-n", "500", "--day", "all", COLUMNS="60"))
    rows = narrow.splitlines()
    assert len(rows) == len(text.splitlines()) and max(map(len, rows)) <= 60, "one line a row"
    as_json = on_a_terminal("tail", folder, "-n", "1", "--json")
    assert as_json.startswith('{"queue_id"')


# show


def test_show_tells_a_conversation_with_its_tools_in_order(logs: Logs, folder: str) -> None:
    said = objects_of(logs("show", every_kind.SESSION, folder, "--day", "all"))
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


def test_show_takes_a_session_or_a_request(
    logs: Logs, folder: str, every_kind_rows: list[Fields]
) -> None:
    sessions = ((row["session_id"] or "", row["request_id"]) for row in every_kind_rows)
    session, request = next(pair for pair in sessions if every_kind.UUID.fullmatch(pair[0]))
    by_session = objects_of(logs("show", session, folder, "--day", "all"))
    assert by_session == objects_of(logs("show", request, folder, "--day", "all"))
    assert by_session[0]["text"] in every_kind.TYPED


def test_schema_prints_a_head(logs: Logs) -> None:
    (head,) = objects_of(logs("schema"))
    assert head == log_contract.head("0" * 16, head["timestamp"])


def test_show_on_a_terminal_reads_like_a_conversation(folder: str) -> None:
    text = plain(on_a_terminal("show", every_kind.SESSION, folder, "--day", "all"))
    order = ["How many parks?", "calls query", "SELECT 1", "query answers", "0 parks", "answer 0"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_show_says_how_a_call_failed(
    logs: Logs, folder: str, every_kind_rows: list[Fields]
) -> None:
    failed = next(row for row in every_kind_rows if row["outcome"] == "upstream_unreachable")
    said = objects_of(logs("show", failed["request_id"], folder, "--day", "all"))
    assert said[-1]["speaker"] == "error"
    assert said[-1]["text"].startswith("upstream_unreachable: ")


def test_what_was_said_never_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07 \x1b[2J \x9b31m [bold]markup[/bold] \u202egnirts \r overwritten"
    rows = [
        {"type": "request", "user_message_this_turn": hostile, "model": hostile},
        {"type": "response", "outcome": hostile, "error": hostile, "content": hostile},
    ]
    arguments = json.dumps({"sql": hostile + "\ud800"})
    tools = [{"id": hostile, "name": hostile, "arguments": text} for text in (hostile, arguments)]
    file = tmp_path / "log.jsonl"
    with open(file, "w") as log:
        for row in rows:
            row |= {"timestamp": "2024-05-01T10:00:00.000Z", "request_id": "a" * 16}
            row |= {"session_id": "s", "tool_calls": tools, "origin": hostile}
            log.write(json.dumps(row) + "\n")
    for view in (("show", "s"), ("tail",), ("stats",)):
        text = on_a_terminal(*view, str(file))
        assert "owned" in text and "[bold]" in text
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
    groups = objects_of(logs("stats", folder, "--day", "all"))
    answers = [row for row in every_kind_rows if row["type"] == "response"]
    calls = Counter((row["origin"] or "-", row["model"] or "-") for row in answers)
    assert {(group["origin"], group["model"]): group["calls"] for group in groups} == calls
    assert [group["calls"] for group in groups] == sorted(calls.values(), reverse=True)
    tokens = sum(row["total_tokens"] or 0 for row in answers)
    assert sum(group["total_tokens"] for group in groups) == tokens
    failures = Counter(row["outcome"] for row in answers if row["outcome"] != "ok")
    counted: Counter[str] = Counter()
    for group in groups:
        counted.update(group["errors"])
    assert counted == failures


def test_stats_on_a_terminal_are_a_table(folder: str, every_kind_rows: list[Fields]) -> None:
    text = plain(on_a_terminal("stats", folder, "--day", "all"))
    assert "https://app.example" in text and "upstream_error" in text
    assert "median" in text and "─" in text
    answers = sum(row["type"] == "response" for row in every_kind_rows)
    assert re.search(rf"│ all +│ +│ +{answers} │", text)


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
    expected = objects_of(logs("stats", folder, "--day", "all"))
    assert objects_of(logs("stats", "--day", "all", **settings)) == expected
    for url in (f"s3://{moto_store.bucket}/team/", f"s3://{moto_store.bucket}/team"):
        assert objects_of(logs("stats", url, "--day", "all", **credentials)) == expected
    (day, *_) = sorted(os.listdir(folder))
    assert objects_of(logs("tail", f"s3://{moto_store.bucket}/team/{day}/", **credentials))


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
        (("stats", "{folder}", "--day", "1999-01-01"), 2, "has no objects of 1999-01-01; it has"),
        (("show", "nobody", "{folder}"), 1, "says nothing of 'nobody'"),
        (("stats", "s3://"), 2, "is not of the form"),
        (("show",), 2, "SESSION"),
    ],
)
def test_nothing_found_is_told_apart_from_a_mistake(
    logs: Logs, folder: str, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = logs(*(part.format(folder=folder, empty=tmp_path) for part in arguments))
    assert (done.returncode, done.stdout) == (code, b"")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_lines_that_are_no_entries_are_passed_over_and_counted(logs: Logs, lines: bytes) -> None:
    noise = (
        b'2026-11-23 18:50:11 WARNING listening\n\xff\xfe\n{"a": 1}\n[]\n' + b"[" * 5000 + b"\n\n"
    )
    done = logs("stats", "-", stdin=noise + lines + b'{"timestamp": "cut o')
    assert objects_of(done) == objects_of(logs("stats", "-", stdin=lines))
    assert "no log entries: 6\n" in done.stderr


def test_a_reader_that_has_enough_is_no_error(folder: str) -> None:
    pipe = subprocess.Popen(
        (*COMMAND, "tail", "-n", "1000", "--day", "all", folder),
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
