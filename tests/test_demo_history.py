"""The demo's history: a log as the server and its queue would have written it, from a seed."""

import hashlib
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.commands.demo.history import WINDOW_SECONDS, write_history
from stored_objects import read_object

LAST = date(2026, 4, 7)


def objects(folder: Path) -> dict[str, str]:
    """The hash of every object by its key."""
    found = sorted(folder.rglob("*.jsonl"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def test_every_object_and_every_pair_is_as_the_server_makes_them(tmp_path: Path) -> None:
    written = write_history(tmp_path, LAST, 4)
    rows: list[dict[str, Any]] = []
    for key in objects(tmp_path):
        of_object, violations = read_object(key, (tmp_path / key).read_bytes(), "", WINDOW_SECONDS)
        assert not violations
        rows += of_object
    assert len(objects(tmp_path)) == written.objects
    assert sorted({key[:10] for key in objects(tmp_path)}) == [
        f"2026-04-0{n}" for n in (4, 5, 6, 7)
    ]
    seqs: dict[str, list[int]] = {}
    for row in rows:
        seqs.setdefault(row["queue_id"], []).append(row["seq"])
    assert len(seqs) == 4
    assert all(sorted(found) == list(range(1, len(found) + 1)) for found in seqs.values())
    requests = Counter(row["request_id"] for row in rows if row["type"] == "request")
    responses = [row for row in rows if row["type"] == "response"]
    assert requests == Counter(row["request_id"] for row in responses)
    assert set(requests.values()) == {1} and len(requests) == written.calls
    assert {row["key_name"] for row in responses} == {"default", "evaluation", "workshop"}
    assert {"ok", "upstream_error", "rejected", "client_disconnected"} <= {
        row["outcome"] for row in responses
    }
    assert {row["proxy_version"] for row in rows} and any(row.get("tool_calls") for row in rows)


def test_the_same_seed_gives_the_same_objects_and_a_day_is_written_once(tmp_path: Path) -> None:
    write_history(tmp_path / "a", LAST, 2)
    before = objects(tmp_path / "a")
    assert write_history(tmp_path / "a", LAST, 2).objects == 0
    write_history(tmp_path / "b", LAST, 2)
    assert objects(tmp_path / "a") == objects(tmp_path / "b") == before
    write_history(tmp_path / "c", LAST, 2, seed=2)
    assert not before.keys() & objects(tmp_path / "c").keys()


def test_the_command_writes_past_days_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "logs"))
    assert cli.run(["demo", "--history", "2d"]) == 0
    assert len({key[:10] for key in objects(tmp_path / "logs")}) == 2
    assert capfd.readouterr().err.startswith("Wrote ")
    for wrong in ("0d", "30h", "1000d", "-1", "d"):
        with pytest.raises(SystemExit):
            cli.run(["demo", "--history", wrong])
