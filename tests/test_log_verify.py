"""`logs verify`: whatever is taken from a log, doubled in it or changed in it is found."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from log_history import write_history
from logs_command import Logs
from open_llm_proxy.archive.integrity.report import Report, changed_objects, integrity
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.tables.connection import open_tables
from open_llm_proxy.archive.tables.filters import Filters

pytest_plugins = ("log_fixtures",)
FIRST, SECOND, THIRD = "2026-04-07", "2026-04-08", "2026-04-09"
LATER = datetime(2026, 5, 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three days and two queues in which nothing is missing."""
    folder = tmp_path_factory.mktemp("complete")
    write_history(folder, 300, days=3, with_open=False)
    return folder


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "log"))


def report_of(log: Path, now: datetime = LATER, day: str | None = None) -> Report:
    source = FolderSource(log)
    filters = Filters.parsed(since=day, until=day)
    with open_tables(source, filters) as tables:
        changed = changed_objects(source, tables.listed)
        return integrity(tables, first_day=filters.first_day, now=now, changed=changed)


def some_object(log: Path, day: str = SECOND, place: int = 5) -> Path:
    return sorted((log / day).iterdir())[place]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()[1:]]


def rewrite(
    path: Path, change: Callable[[list[bytes]], list[bytes]], *, renames: bool = True
) -> None:
    """Change an object's rows; its name says the MD5 of what it holds then."""
    head, *rows = path.read_bytes().splitlines(keepends=True)
    data = head + b"".join(change(rows))
    path.unlink()
    name = path.name
    if renames:
        name = re.sub(r"[0-9a-f]{12}\.jsonl$", f"{hashlib.md5(data).hexdigest()[:12]}.jsonl", name)
    path.with_name(name).write_bytes(data)


def found(report: Report) -> dict[str, int]:
    """The counts that are not 0."""
    names = ("missing", "doubles", "unpaired", "damaged", "misplaced", "open_calls", "open_rows")
    return {name: report.total(name) for name in names if report.total(name)}


def test_a_whole_log_is_complete_and_so_is_each_of_its_days(original: Path) -> None:
    report = report_of(original)
    assert report.is_complete and not found(report)
    assert (report.total("rows"), report.total("calls")) == (600, 300)
    for day in (FIRST, SECOND, THIRD):
        assert report_of(original, day=day).is_complete


def test_an_object_that_is_taken_away_is_missing_by_its_rows(log: Path) -> None:
    path = some_object(log)
    rows = rows_of(path)
    path.unlink()
    report = report_of(log)
    assert not report.is_complete and report.total("missing") == len(rows)
    (gap,) = report.gaps
    assert (gap["queue_id"], gap["first"], gap["last"]) == (
        *(rows[0][name] for name in ("queue_id", "seq")),
        rows[-1]["seq"],
    )
    once = {row["request_id"] for row in rows if _count(rows, row) == 1}
    assert {pair["request_id"] for pair in report.unpaired} == once
    assert not report_of(log, day=SECOND).is_complete
    assert report_of(log, day=THIRD).is_complete


def _count(rows: list[dict[str, Any]], row: dict[str, Any]) -> int:
    return sum(other["request_id"] == row["request_id"] for other in rows)


def test_half_a_day_that_is_missing_is_found(log: Path) -> None:
    paths = sorted((log / SECOND).iterdir())
    lost = sum(len(rows_of(path)) for path in paths[len(paths) // 2 :])
    for path in paths[len(paths) // 2 :]:
        path.unlink()
    assert report_of(log).total("missing") == lost


def test_what_may_still_come_is_open(log: Path) -> None:
    """The same gap is open while its queue is at work, and missing once it is not."""
    path = some_object(log, THIRD, -3)
    queue_id = rows_of(path)[0]["queue_id"]
    path.unlink()
    last = max(
        datetime.fromisoformat(row["timestamp"]).astimezone(UTC).replace(tzinfo=None)
        for other in (log / THIRD).iterdir()
        for row in rows_of(other)
        if row["queue_id"] == queue_id
    )
    young = report_of(log, now=last + timedelta(minutes=5))
    assert young.is_complete and young.total("open_rows") > 0
    old = report_of(log, now=last + timedelta(hours=1))
    assert not old.is_complete and old.total("missing") == young.total("open_rows")


def test_the_beginning_of_a_queue_is_missed_after_the_first_day_only(log: Path) -> None:
    first_of = {}
    for path in sorted(log.rglob("*.jsonl")):
        first_of.setdefault(rows_of(path)[0]["queue_id"], path)
    for path in first_of.values():
        path.unlink()
    assert report_of(log).total("missing") == 0, "older days may be gone"
    shutil.rmtree(log / FIRST)
    assert report_of(log).total("missing") == 0
    (log / FIRST).mkdir()
    young = "f" * 16
    for number, path in enumerate(sorted((log / THIRD).iterdir())):
        rows = [line.replace(rows_of(path)[0]["queue_id"].encode(), young.encode())
                for line in path.read_bytes().splitlines(keepends=True)]  # fmt: skip
        if number == 0:
            path.with_name(re.sub(r"-[0-9a-f]{16}-", f"-{young}-", path.name)).write_bytes(
                b"".join(rows)
            )
    assert report_of(log).total("missing") > 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: [*rows, rows[-1]], {"doubles": 1}),
        (lambda rows: rows[:-1], {"missing": 1, "unpaired": 1}),
        (lambda rows: [rows[0].replace(b'"type":"request"', b'"type":"damaged"'), *rows[1:]],
         {"damaged": 1, "unpaired": 1}),
        (lambda rows: [rows[0].replace(b'"timestamp":"2026-04-08', b'"timestamp":"2026-04-07'),
                       *rows[1:]], {"misplaced": 1}),
        (lambda rows: [re.sub(rb'"timestamp":"2026-04-08T..', b'"timestamp":"2026-04-08T00', row)
                       for row in rows], {"misplaced": 2}),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_object_is_counted(
    log: Path, change: Callable[[list[bytes]], list[bytes]], expected: dict[str, int]
) -> None:
    path = next(
        path
        for path in sorted((log / SECOND).iterdir())[40:]
        if [row["type"] for row in rows_of(path)] == ["request", "response"]
        and rows_of(path)[0]["request_id"] == rows_of(path)[1]["request_id"]
    )
    rewrite(path, change)
    report = report_of(log)
    assert not report.is_complete
    assert found(report) == expected


def test_an_object_under_another_name_and_changed_bytes_are_found(log: Path) -> None:
    path = some_object(log)
    queue_id = rows_of(path)[0]["queue_id"]
    other = path.with_name(path.name.replace(queue_id, "0" * 16))
    path.rename(other)
    report = report_of(log)
    assert report.total("misplaced") == len(rows_of(other)) and not report.changed
    other.rename(path)
    rewrite(path, lambda rows: [row.replace(b"kimi", b"KIMI") for row in rows], renames=False)
    assert report_of(log).changed == ([str(path)] if b"KIMI" in path.read_bytes() else [])


def test_the_command_tells_by_its_exit_code(logs: Logs, log: Path) -> None:
    complete = logs("verify", str(log))
    assert complete.returncode == 0 and "complete: 600 rows of 2 queues" in complete.stderr
    some_object(log).unlink()
    lost = logs("verify", str(log))
    assert lost.returncode == 1 and "missing from queue" in lost.stderr
    assert logs("verify", str(log), "--since", THIRD).returncode == 0
    assert logs("verify", "-").returncode == 2
    with open(sorted((log / THIRD).iterdir())[0], "ab") as file:
        file.write(b'{"queue_id":"')
    assert logs("verify", str(log), "--since", THIRD).returncode == 1


def test_a_bill_is_set_beside_our_sums(logs: Logs, log: Path, tmp_path: Path) -> None:
    ours = logs("stats", str(log), "--by", "day,model").objects
    bill = tmp_path / "usage.csv"
    lines = [
        f"{g['day']},{g['model']},{g['prompt_tokens'] + 7},{g['completion_tokens']}" for g in ours
    ]
    bill.write_text(
        "\n".join(["Date,model,input_tokens,output_tokens", *lines, "2026-04-08,o9,5,5"])
    )
    rows = logs("verify", str(log), "--against", str(bill)).objects
    assert len(rows) == len(ours) + 1
    for row in rows:
        expected = 5 if row["model"] == "o9" else 7
        assert row["difference_prompt_tokens"] == expected
        assert row["difference_completion_tokens"] == (5 if row["model"] == "o9" else 0)
    bill.write_text("a,b\n1,2\n")
    assert "needs a column day" in logs("verify", str(log), "--against", str(bill)).stderr
    assert logs("verify", str(log), "--against", str(tmp_path / "none.csv")).returncode == 2
