"""The views over a log: raw, compacted and mixed days, filters, and what cannot be read."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from log_history import History, write_history
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import LogObject
from open_llm_proxy.archive.tables import loading
from open_llm_proxy.archive.tables.compacted import INPUTS, inputs_text
from open_llm_proxy.archive.tables.connection import Tables, open_tables
from open_llm_proxy.archive.tables.filters import FAILED, FilterError, Filters

NOW = datetime(2026, 4, 9, 12)
FIRST, SECOND, THIRD = "2026-04-07", "2026-04-08", "2026-04-09"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    """Three days; calls over each midnight."""
    folder = tmp_path_factory.mktemp("history")
    return folder, write_history(folder, 600, days=3)


@pytest.fixture
def log(history: tuple[Path, History], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(history[0], tmp_path / "log"))


TOTALS = (
    "SELECT count(*) AS calls, count(DISTINCT session_key) AS sessions, sum(total_tokens)::BIGINT "
    "AS tokens, count(*) FILTER (outcome NOT IN ('ok', 'open')) AS failed, "
    "count(*) FILTER (outcome = 'open') AS open, count(*) FILTER (request_seq IS NULL) AS alone "
    "FROM turns"
)


def totals(folder: Path, filters: Filters | None = None, **options: Any) -> dict[str, Any]:
    with open_tables(FolderSource(folder), filters, **options) as tables:
        (found,) = tables.rows(TOTALS)
        return found


def test_turns_are_the_calls_that_were_made(history: tuple[Path, History]) -> None:
    folder, made = history
    assert totals(folder) == {
        "calls": made.calls,
        "sessions": len(made.sessions),
        "tokens": made.tokens,
        "failed": made.failed,
        "open": made.open,
        "alone": 0,
    }
    with open_tables(FolderSource(folder)) as tables:
        sessions = tables.rows("FROM sessions")
        assert {row["session_key"] for row in sessions} == made.sessions
        assert sum(row["turns"] for row in sessions) == made.calls
        assert sum(row["tokens"] or 0 for row in sessions) == made.tokens
        assert sum(row["turns_without_tokens"] for row in sessions) > made.failed
        turns = tables.rows("SELECT session_key, turn_idx FROM session_rollup ORDER BY ALL")
        for row in sessions[:20]:
            own = [t["turn_idx"] for t in turns if t["session_key"] == row["session_key"]]
            assert own == list(range(1, row["turns"] + 1))
        (rows,) = tables.rows(
            "SELECT count(*) AS n, count(DISTINCT object) AS objects FROM entries"
        )
        assert rows == {"n": 2 * made.calls - made.open, "objects": len(made.objects)}


def test_a_call_belongs_to_the_day_of_its_request(history: tuple[Path, History]) -> None:
    """Its response on the next day is found, and no row of that day is shown."""
    folder, made = history
    by_day = [
        totals(folder, Filters.parsed(since=day, until=day)) for day in (FIRST, SECOND, THIRD)
    ]
    assert sum(day["calls"] for day in by_day) == made.calls
    assert sum(day["open"] for day in by_day) == made.open
    assert sum(day["tokens"] for day in by_day) == made.tokens
    with open_tables(FolderSource(folder), Filters.parsed(since=FIRST, until=FIRST)) as tables:
        days = tables.rows("SELECT DISTINCT day::VARCHAR AS day FROM entries")
        late = tables.rows("SELECT 1 FROM turns WHERE ended >= $next", {"next": SECOND})
    assert days == [{"day": FIRST}] and len(late) <= 1


def compacted(folder: Path, root: Path, day: str) -> None:
    """Make a day's Parquet, as the contract of compacted.py says."""
    source = FolderSource(folder)
    objects = source.objects(day)
    with open_tables(source, Filters.parsed(since=day, until=day)) as tables:
        for table in ("entries", "turns"):
            path = root / table / f"day={day}" / "part.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            tables.connection.execute(
                f"COPY (SELECT * EXCLUDE (day) FROM {table}) TO '{path}' (FORMAT PARQUET, "
                f"COMPRESSION ZSTD, KV_METADATA {{{INPUTS}: '{inputs_text(objects)}'}})"
            )


@pytest.mark.parametrize(
    "days", [[FIRST], [SECOND], [THIRD], [FIRST, SECOND], [FIRST, SECOND, THIRD]]
)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_compacted_days_and_raw_ones_give_the_same(
    history: tuple[Path, History], log: Path, tmp_path: Path, days: list[str], is_elsewhere: bool
) -> None:
    expected = totals(log)
    one_day = Filters.parsed(since=SECOND, until=SECOND)
    expected_day = totals(log, one_day)
    root = tmp_path / "tables" if is_elsewhere else log
    for day in days:
        compacted(log, root, day)
    options = {"tables": FolderSource(root)} if is_elsewhere else {}
    assert totals(log, **options) == expected
    assert totals(log, one_day, **options) == expected_day
    with open_tables(FolderSource(log), **options) as tables:
        (rows,) = tables.rows(
            "SELECT count(*) AS n, count(DISTINCT object) AS objects FROM entries"
        )
        (loaded,) = tables.rows("SELECT count(DISTINCT file) AS files FROM loaded")
    assert rows == {"n": 2 * history[1].calls - 1, "objects": len(history[1].objects)}
    assert loaded["files"] == sum(
        len(os.listdir(log / d)) for d in {FIRST, SECOND, THIRD} - {*days}
    )
    if days == [FIRST, SECOND, THIRD] and not is_elsewhere:
        for day in days:
            shutil.rmtree(log / day)
        assert totals(log) == expected, "raw objects are not needed any more"


def test_objects_that_come_after_compaction_are_seen_at_once(log: Path) -> None:
    expected = totals(log)
    late = {path: path.read_bytes() for path in sorted((log / SECOND).iterdir())[3:9]}
    for path in late:
        path.unlink()
    compacted(log, log, SECOND)
    for path, data in late.items():
        path.write_bytes(data)
    assert totals(log) == expected


# Filters.


@pytest.mark.parametrize(
    ("options", "condition"),
    [
        ({"app": "parks.example"}, "origin = 'https://parks.example'"),
        ({"app": "https://water.*"}, "origin LIKE 'https://water%'"),
        ({"app": "notebook"}, "client = 'notebook'"),
        ({"model": "qwen*"}, "model = 'qwen3'"),
        ({"model": "q_en3"}, "false"),
        ({"model": "q_en*"}, "false"),
        ({"key": "guests"}, "key_name = 'guests'"),
        ({"outcome": FAILED}, "outcome IN ('upstream_error', 'upstream_timeout')"),
        ({"outcome": "open"}, "ended IS NULL"),
        ({"grep": "OÙ EST"}, "user_question LIKE '%forêt%'"),
        ({"grep": "such table"}, "tool_results_this_turn::VARCHAR LIKE '%no such table%'"),
        ({"grep": "it's"}, "false"),
        ({"since": "2026-04-08T06:00"}, "started >= '2026-04-08 06:00:00'"),
        ({"since": "1d"}, "started >= '2026-04-08 12:00:00'"),
        ({"until": "2026-04-08"}, "started < '2026-04-09'"),
        ({"until": "2026-04-08T08:00+02:00"}, "started < '2026-04-08 06:00:00'"),
    ],
)
def test_a_filter_chooses_what_its_condition_says(
    history: tuple[Path, History], options: dict[str, str], condition: str
) -> None:
    filters = Filters.parsed(now=NOW, **{"since": None, "until": None} | options)
    with open_tables(FolderSource(history[0])) as tables:
        expected = tables.rows(f"SELECT request_id FROM turns WHERE {condition} ORDER BY ALL")
        text, values = filters.where()
        assert tables.rows(f"SELECT request_id FROM turns WHERE {text} ORDER BY ALL", values) == (
            expected
        )
    with open_tables(FolderSource(history[0]), filters) as tables:
        assert tables.rows("SELECT request_id FROM turns ORDER BY ALL") == expected
        ids = tables.rows("SELECT DISTINCT request_id FROM entries ORDER BY ALL")
        if filters.chooses_calls:
            assert ids == expected
        parts = tables.rows(
            "SELECT count(*) AS n FROM session_rollup r JOIN sessions s USING (session_key) "
            "WHERE (SELECT max(turn_idx) FROM session_rollup x WHERE x.session_key = r.session_key)"
            " <> s.turns"
        )
        assert parts == [{"n": 0}], "sessions are whole"
    assert bool(expected) is (condition != "false")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2h30", "-1d", "99999999999999d"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    if text.startswith("9"):
        assert Filters.parsed(since=text, until=None).since == datetime.min
        return
    with pytest.raises(FilterError, match="write 2h"):
        Filters.parsed(since=text, until=None)


def test_a_filter_is_data_and_never_sql(history: tuple[Path, History]) -> None:
    hostile = "x' OR true OR 'a"
    for name in ("app", "model", "key", "session", "outcome", "grep"):
        filters = dataclasses.replace(Filters(), **{name: hostile})
        assert totals(history[0], filters)["calls"] == 0
        starred = dataclasses.replace(Filters(), **{name: hostile + "*$since"})
        assert totals(history[0], starred)["calls"] == 0
    with pytest.raises(FilterError, match="NUL"):
        totals(history[0], Filters(model="a\0"))


# What cannot be read.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_history(tmp_path / "small", 40, days=1)
    return tmp_path / "small"


def calls_and_problems(folder: Path) -> tuple[int, dict[str, int]]:
    source = FolderSource(folder)
    with open_tables(source) as tables:
        (found,) = tables.rows("SELECT count(*) AS rows FROM entries")
    return found["rows"], dict(source.problems.counts)


def test_lines_that_are_no_entries_cost_nothing_but_themselves(small: Path) -> None:
    path = sorted((small / FIRST).iterdir())[0]
    lines = path.read_bytes().splitlines(keepends=True)
    rows, _ = calls_and_problems(small)
    noise = [b"not JSON\n", b'{"a": 1}\n', b"[1]\n", b"\xff\xfe\n", b"\n", b'{"type": "req']
    path.write_bytes(b"".join([*lines[:-1], *noise[:5], lines[-1], noise[5]]))
    assert calls_and_problems(small) == (rows, {"log entries that were cut or damaged": 5})


def test_an_object_that_duckdb_refuses_costs_its_own_rows_only(small: Path) -> None:
    paths = sorted((small / FIRST).iterdir())
    rows, problems = calls_and_problems(small)
    assert not problems
    lost = len(paths[3].read_bytes().splitlines()) - 1
    paths[3].unlink()
    paths[3].mkdir()
    assert calls_and_problems(small) == (rows - lost, {loading.UNREADABLE_OBJECTS: 1})


def test_an_object_that_vanishes_after_it_was_listed_is_counted(small: Path) -> None:
    class Vanishing(FolderSource):
        def local(self, items: Any, progress: Any = None) -> list[tuple[LogObject, Path]]:
            found = super().local(items, progress)
            for number in (2, 5):
                if number < len(found):
                    found[number][1].unlink(missing_ok=True)
            return found

    source = Vanishing(small)
    with open_tables(source) as tables:
        assert tables.rows("SELECT count(*) AS n FROM entries")[0]["n"] > 0
    assert source.problems.counts == {loading.UNREADABLE_OBJECTS: 2} and source.problems.is_short


def test_a_folder_that_may_not_be_read_is_told(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = calls_and_problems(small)
    (small / SECOND).mkdir()
    real = os.listdir

    def listdir(path: Any) -> list[str]:
        if path == small / SECOND:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert calls_and_problems(small) == (rows, {"folders or objects that cannot be read": 1})


def test_paths_are_no_patterns(small: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(small, tmp_path / "o'dd [a-z]* ?{x}"))
    assert calls_and_problems(odd) == calls_and_problems(small)


def test_rows_with_fields_of_other_types_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"timestamp":"2026-04-07T10:00:00.000Z","type":"note","new":{"a":[1]},"status":"odd"}\n'
        '{"timestamp":"?","type":"response","request_id":"a","latency_ms":1e300,"outcome":"new"}\n'
    )
    with open_tables(FolderSource(tmp_path)) as tables:
        rows = tables.rows("SELECT type, status, day FROM entries ORDER BY type")
        turns = tables.rows("SELECT outcome, started FROM turns")
    assert [row["type"] for row in rows] == ["note", "response"]
    assert turns == [{"outcome": "new", "started": None}]


def every_view(tables: Tables) -> Iterator[str]:
    for view in ("entries", "turns", "sessions", "session_rollup", "all_entries", "all_turns"):
        yield from (row["column_name"] for row in tables.rows(f"DESCRIBE {view}"))


def test_columns_that_were_not_loaded_are_null_and_all_views_work(small: Path) -> None:
    with open_tables(FolderSource(small), columns=["status"]) as tables:
        assert len(list(every_view(tables))) > 200
        (found,) = tables.rows(
            "SELECT count(content) AS texts, count(status) AS statuses, count(model) AS models "
            "FROM turns"
        )
        assert found["texts"] == 0 and found["statuses"] > 0 and found["models"] > 0
