"""What the commands `replay` and `queue` say, and their exit codes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.store import Store
from open_llm_proxy.server.commands import cli
from queue_fixtures import NOON_MS, birth, dead_queue, plain
from replay_fixtures import tried_elsewhere
from test_queue_damage import sealed_by_hand, ten_rows


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOG_BUCKET", "LOG_DIR", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*arguments: object) -> Said:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return run


def test_a_replay_says_what_it_did_queue_by_queue(command: Command, tmp_path: Path) -> None:
    root, objects = tmp_path / "queues", tmp_path / "objects"
    first, second = dead_queue(root, ten_rows), dead_queue(root, ten_rows)
    (second / schema.DATABASE_NAME).write_bytes(b"garbage")
    said = command("replay", root, "--to", objects)
    assert said.code == 1
    assert said.out.splitlines()[0] == (f"{first}: uploaded 10 rows in 1 object; directory removed")
    assert said.out.splitlines()[1].startswith(f"{second}: LEFT: ")
    assert f"Queue {first.name}: 10 rows, 0 open calls" in said.err
    assert "quarantine" not in said.out
    assert len(list(objects.rglob("*.jsonl"))) == 1
    (root / "quarantine" / "something").mkdir(parents=True)
    assert f"{root}/quarantine holds 1 item" in command("replay", root, "--to", objects).out
    third = dead_queue(root, ten_rows)
    said = command("replay", third, "--to", f"dir:{objects}", "--keep")
    assert (said.code, "; directory kept" in said.out) == (0, True)
    assert third.exists()


def test_rows_go_to_stdout_and_words_to_stderr(command: Command, tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    said = command("replay", queue, "--to", "-")
    assert said.code == 0
    assert [json.loads(line)["seq"] for line in said.out.splitlines()] == [None, *range(1, 11)]
    assert f"{queue}: printed 10 rows, which stay in the queue" in said.err


def test_the_environment_s_sink_is_taken_or_one_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    for arguments, sentence in (
        ((), "LOG_BUCKET and LOG_DIR are not set; set them or use --to"),
        (("--to", "s3://logs/"), "no S3 credentials"),
        (("--to", "s3://"), "must be s3://bucket/prefix"),
        (("--to", ""), "--to is empty"),
    ):
        said = command("replay", queue, *arguments)
        assert (said.code, sentence in said.err) == (2, True), said
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "objects"))
    assert command("replay", queue).code == 0
    assert len(list((tmp_path / "objects").rglob("*.jsonl"))) == 1


def test_a_path_that_leads_nowhere_is_a_mistake_and_an_empty_root_is_none(
    command: Command, tmp_path: Path
) -> None:
    said = command("replay", tmp_path / "nowhere", "--to", tmp_path / "objects")
    assert (said.code, "is not a directory" in said.err) == (2, True)
    said = command("replay", tmp_path, "--to", tmp_path / "objects")
    assert (said.code, said.out) == (0, f"No queue in {tmp_path}; nothing to do\n")
    (tmp_path / "quarantine" / "something").mkdir(parents=True)
    said = command("replay", tmp_path, "--to", tmp_path / "objects")
    assert (said.code, said.out.splitlines()[-1]) == (
        0,
        f"{tmp_path}/quarantine holds 1 item for a person to look at",
    )


def test_a_path_above_the_queues_is_a_mistake_and_not_an_empty_root(
    command: Command, tmp_path: Path
) -> None:
    root = tmp_path / "volume" / "queues"
    queue = dead_queue(root, ten_rows)
    for arguments in (("replay", root.parent, "--to", tmp_path / "objects"),
                      ("queue", "status", root.parent)):  # fmt: skip
        said = command(*arguments)
        assert said.code == 2
        assert f"{root.parent} contains no queue itself, but {root} does: pass that" in said.err
    assert queue.exists()


def test_objects_are_not_put_where_they_would_be_removed_with_the_queue(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    monkeypatch.chdir(queue)
    for arguments in (("--to", queue / "objects"), ("--to", "."), ("--to", ".", "--dry-run")):
        said = command("replay", queue, *arguments)
        assert (said.code, "which is removed after the upload" in said.err) == (2, True)
    assert command("replay", queue, "--to", queue.parent).code == 0
    assert len(list(queue.parent.rglob("*.jsonl"))) == 1


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_tried(
    command: Command, tmp_path: Path
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    (tmp_path / "a-file").touch()
    said = command("replay", queue, "--to", tmp_path / "a-file" / "objects")
    assert said == Said(3, "", f"open-llm-proxy: {tmp_path}/a-file/objects: Not a directory\n")
    assert command("replay", queue, "--to", "/proc/objects").code == 3
    assert json.loads(command("queue", "status", queue, "--json").out)["tried_batches"] == {}


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    command: Command, tmp_path: Path
) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, ten_rows)
    living = folder.give_birth(root, birth())
    said = command("replay", root, "--to", tmp_path / "objects", "--dry-run")
    assert said.code == 1
    assert f"{queue}: 10 rows (1.1 kB); would upload 1 object to dir:{tmp_path}/objects" in said.out
    assert f"{living.path}: would be skipped: " in said.out
    assert not (tmp_path / "objects").exists()
    living.release()


def test_a_dry_run_tells_of_other_sinks(command: Command, tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", tried_elsewhere)
    to = ("--to", tmp_path / "objects", "--dry-run")
    said = command("replay", queue, *to)
    assert said.code == 1
    assert "would be left: 1 object may be in elsewhere: already" in said.out
    said = command("replay", queue, *to, "--again")
    assert (said.code, "would upload 3 objects" in said.out) == (0, True)
    assert "may be in elsewhere: already" in said.out

    def tried_here(store: Store) -> None:
        ten_rows(store)
        sealed_by_hand(store, 1, 4, f"dir:{tmp_path / 'old'}")

    (tmp_path / "old").mkdir()
    queue = dead_queue(tmp_path / "others", tried_here)
    said = command("replay", queue, *to)
    assert (said.code, f"would upload 1 object to dir:{tmp_path}/old" in said.out) == (0, True)
    said = command("replay", queue, "--to", tmp_path / "objects")
    assert said.code == 0
    assert len(list((tmp_path / "old").rglob("*.jsonl"))) == 1


def test_status_speaks_to_people_and_to_programs(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, tried_elsewhere)
    said = command("queue", "status", root)
    assert said.code == 0
    assert "quarantine" not in said.out
    (line,) = [line for line in said.out.splitlines() if line.split()[:1] == [queue.name]]
    assert line.split()[1:4] == ["crashed", "ok", "10"]
    assert line.split()[-1] == "2023-11-15T12:00:00Z"
    assert max(map(len, said.out.splitlines()[:4])) <= 80
    assert "1 batch may be in elsewhere: already and must be uploaded there" in said.out
    (root / "quarantine" / "something").mkdir(parents=True)
    said = command("queue", "status", root)
    assert f"{root}/quarantine holds 1 item for a person to look at" in said.out
    status = json.loads(command("queue", "status", root, "--json").out)
    assert (status["queue_id"], status["rows"], status["faults"]) == (queue.name, 10, [])
    assert status["tried_batches"] == {"elsewhere:": 1}


def test_verify_says_sound_or_what_is_wrong(command: Command, tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    said = command("queue", "verify", tmp_path / "queues")
    assert said == Said(0, f"{queue}: sound, 10 rows and 0 open calls checked\n", "")
    (queue / schema.DATABASE_NAME).write_bytes(b"garbage")
    said = command("queue", "verify", queue)
    assert said.code == 1
    assert "NOT SOUND" in said.out and "is not a SQLite database" in said.out
    assert json.loads(command("queue", "verify", queue, "--json").out)["sound"] is False
    living = folder.give_birth(tmp_path / "queues", birth())
    said = command("queue", "verify", living.path, "--json")
    assert json.loads(said.out) == {
        "path": str(living.path),
        "queue_id": living.queue_id,
        "owner_lives": True,
    }
    living.release()
    assert command("queue", "status", queue).code == 1


def test_a_queue_that_cannot_be_read_is_a_result_and_the_others_get_theirs(
    command: Command, tmp_path: Path
) -> None:
    root = tmp_path / "queues"
    unreadable = root / "0000000000000000"
    unreadable.mkdir(parents=True)
    (unreadable / folder.LOCK_NAME).symlink_to(folder.LOCK_NAME)  # leads to itself
    good = dead_queue(root, ten_rows)
    said = command("queue", "verify", root)
    assert said.code == 1
    assert f"{unreadable}: NOT READABLE: " in said.out
    assert f"{good}: sound, 10 rows" in said.out
    found = map(json.loads, command("queue", "verify", root, "--json").out.splitlines())
    assert sorted(one["sound"] for one in found) == [False, True]
    said = command("queue", "salvage", root, "--to", tmp_path / "out")
    assert (said.code, f"{unreadable}" in said.err) == (1, True)
    assert f"10 rows salvaged into {tmp_path}/out/{good.name}-salvaged.jsonl" in said.out
    said = command("queue", "status", root)
    assert (said.code, f"{unreadable}" in said.out, good.name in said.out) == (1, True, True)
    said = command("replay", root, "--to", tmp_path / "objects")
    assert said.code == 1
    assert f"{unreadable}: LEFT: " in said.out
    assert f"{good}: uploaded 10 rows in 1 object; directory removed" in said.out


def test_salvage_says_where_everything_is(command: Command, tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    (queue / schema.DATABASE_NAME).write_bytes(b"garbage")
    out = tmp_path / "out"
    said = command("queue", "salvage", queue, "--to", out)
    assert said.code == 0
    assert f"10 rows salvaged into {out}/{queue.name}-salvaged.jsonl" in said.out
    assert f"report: {out}/{queue.name}-report.json" in said.out
    assert json.loads(command("queue", "salvage", queue, "--to", out, "--json").out)["rows"] == 10


def test_mistakes_with_the_queue_commands_get_a_sentence_each(
    command: Command, tmp_path: Path
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    (tmp_path / "text").write_text("no queue\n" * 1000)
    (tmp_path / "a-file").write_text("")
    living = folder.give_birth(tmp_path, birth())
    for arguments, code, sentence in (
        (("status", tmp_path / "nowhere"), 2, "is not a directory"),
        (("verify", living.path), 1, "not verified; its process is still running"),
        (("status", living.path), 0, "its process is still running; see its /health"),
        (("salvage", tmp_path / "text", "--to", tmp_path / "out"), 1, "no readable data"),
        (("salvage", living.path, "--to", tmp_path / "out"), 1, "still running"),
        (("salvage", queue, "--to", queue / "out"), 2, "is inside the queue's own directory"),
        (("salvage", queue, "--to", tmp_path / "a-file"), 3, "Not a directory"),
        (("status", tmp_path / "queues" / "quarantine"), 2, "is not a directory"),
    ):
        said = command("queue", *arguments)
        assert (said.code, sentence in said.out + said.err) == (code, True), (arguments, said)
    living.release()


def test_times_are_told_in_utc(command: Command, tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", lambda s: s.commit([plain(1, at_ms=NOON_MS)]))
    status = json.loads(command("queue", "status", queue, "--json").out)
    assert status["oldest"] == status["newest"] == "2023-11-15T12:00:00Z"
