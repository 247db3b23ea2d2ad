"""Whatever stands in the columns of a queue's file, with right checksums or wrong ones, leads to
reports of damage: never to a write beside the queue and the sink, to a hang or to a traceback."""

import asyncio
import contextlib
import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.damage.plan import planned
from open_llm_proxy.queue.damage.salvage import salvage
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.queue.folder import queue_folders
from open_llm_proxy.queue.meta import LIMITS
from open_llm_proxy.queue.orphans import left_queues
from open_llm_proxy.queue.orphans.replay import Replay
from open_llm_proxy.queue.orphans.replay_target import ToSinks
from open_llm_proxy.queue.sinks import DirectorySink
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_by_hand
from queue_fixtures import NOON_MS, MemorySink, adopted, alter, dead_queue, opening, plain
from replay_fixtures import nowhere

pytestmark = pytest.mark.timeout(seconds=60)

OWN_SINK = "memory:"
# The columns of each table that a file can hold anything in; keys of rows are numbers always.
COLUMNS = {
    "rows": ("seq", "timestamp_ms", "crc32", "line"),
    "open_calls": ("seq", "timestamp_ms", "crc32", "head"),
    "batches": ("first", "last", "name", "md5", "bytes", "sink", "uploaded", "crc32"),
    "meta": ("name", "value"),
    "log_format": ("name", "crc32", "body"),
}
# As a flipped bit in the tables' own description leaves them: a key is a column like any other.
LOOSE = [
    statement
    for table, columns in COLUMNS.items()
    for statement in (
        f"ALTER TABLE {table} RENAME TO before",
        f"CREATE TABLE {table} ({', '.join(columns)})",
        f"INSERT INTO {table} SELECT {', '.join(columns)} FROM before",
        "DROP TABLE before",
    )
]
KEYS = {"rows": "seq", "open_calls": "seq", "batches": "first", "meta": "name"}
INT_KEYS = ("rows.seq", "open_calls.seq", "batches.first")
Change = tuple[str, str, int, Any, bool]
MAX_INT = 2**63 - 1

# Ranges that are far too long, names that lead elsewhere, lines that are none.
NASTY = (
    0, -1, 1, 2, 5, 6, 7, 2**31, 2**53, MAX_INT, -MAX_INT - 1, NOON_MS, 86_400, 1e300,
    "", "x", "../../outside", "/etc/passwd", "0" * 16, "../" * 5 + "outside/x.jsonl", "memory:",
    "s3://bucket/../x", b"", b"{}", b"{", b"null", b"[" * 5000, b"\n\n", b"}" * 3, bytes(16),
    b'{"queue_id":"%b","seq":%b,"a":1}\n' % (b"0" * 16, b"9" * 30), b'{"a":"\xff"}', b',"a":1}',
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.none(),
    st.integers(-MAX_INT - 1, MAX_INT),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=40),
)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, str, int, Any, bool]:
    """Table, column, which row of it, the value, and whether the checksum is made anew."""
    table = draw(st.sampled_from(sorted(COLUMNS)))
    column = draw(st.sampled_from(COLUMNS[table]))
    return table, column, draw(st.integers(0, 20)), draw(VALUES), draw(st.booleans())


def filled(store: Store) -> None:
    """Rows 1-3 uploaded, 4-6 tried on the own sink, 7-8 sealed; others not, with two open calls."""
    store.commit([plain(*range(1, 11))])
    store.ack(sealed_by_hand(store, 1, 3, OWN_SINK)[0])
    sealed_by_hand(store, 4, 6, OWN_SINK)
    store.bind(sealed_by_hand(store, 7, 8, OWN_SINK)[0], None)
    store.commit([opening(11)[0], opening(12)[0]])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    queue = dead_queue(tmp_path_factory.mktemp("template") / "queues", filled)
    alter(queue)  # its log is in the file now
    return queue


def crafted(path: Path, made: list[Change], is_loose: bool) -> None:
    """Change the file at `path` as an attacker would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in LOOSE if is_loose else ():
            connection.execute(statement)
        for table, column, which, value, is_signed in made:
            _change(connection, table, column, which, value)
            if is_signed:
                _sign(connection, table)
        connection.execute("PRAGMA journal_mode=DELETE")
    image = bytearray(path.read_bytes())
    image[18:20] = b"\x02\x02"  # in WAL mode, as all queues are
    path.write_bytes(image)


def _change(
    connection: sqlite3.Connection, table: str, column: str, which: int, value: Any
) -> None:
    key = KEYS.get(table, "rowid")
    keys = connection.execute(f"SELECT {key} FROM {table} ORDER BY {key}").fetchall()
    if not keys:
        return
    # Not every column may be NULL, and a key is a number unless the tables are loose.
    with contextlib.suppress(sqlite3.IntegrityError):
        connection.execute(
            f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {key} IS ?",
            (value, keys[which % len(keys)][0]),
        )


def _sign(connection: sqlite3.Connection, table: str) -> None:
    """Give each row of `table` the checksum of what stands in it now."""
    if table == "meta":
        found = dict(connection.execute("SELECT name, value FROM meta"))
        crc32 = checksum(b"", *(found.get(name) for name in LIMITS))
        connection.execute("UPDATE meta SET value = ? WHERE name = 'crc32'", (crc32,))
        return
    names = [name for name in COLUMNS[table] if name != "crc32"]
    key = KEYS.get(table, "rowid")
    for own_key, *values in connection.execute(
        f"SELECT {key}, {', '.join(names)} FROM {table}"
    ).fetchall():
        row = dict(zip(names, values, strict=True))
        crc32 = {
            "rows": lambda row: checksum(row["line"], row["timestamp_ms"]),
            "open_calls": lambda row: checksum(row["head"], row["seq"], row["timestamp_ms"]),
            "batches": lambda row: checksum(b"", *row.values()),
            "log_format": lambda row: checksum(row["body"], row["name"]),
        }[table](row)
        connection.execute(f"UPDATE {table} SET crc32 = ? WHERE {key} IS ?", (crc32, own_key))


def check(template: Path, folder: Path, made: list[Change], is_loose: bool) -> None:
    """All ways into a file that was changed in this way."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("looked-at", "adopted", "replayed"):
        shutil.copytree(template.parent, folder / name)
        crafted(folder / name / template.name / schema.DATABASE_NAME, made, is_loose)
    looked_at = folder / "looked-at" / template.name
    before = (looked_at / schema.DATABASE_NAME).read_bytes()
    inspect(looked_at)
    planned(looked_at)
    for look in (lambda: verify(looked_at), lambda: salvage(looked_at, folder / "salvaged", "n")):
        with contextlib.suppress(QueueError, sqlite3.Error, OSError):  # the commands tell these
            look()
    assert (looked_at / schema.DATABASE_NAME).read_bytes() == before
    asyncio.run(_finished(template, folder))
    ours = {"looked-at", "adopted", "replayed", "salvaged", "sink"}
    assert {path.name for path in folder.iterdir()} <= ours
    for name in ("looked-at", "adopted", "replayed"):
        assert {path.name for path in (folder / name).iterdir()} <= {
            template.name,
            QUARANTINE_NAME,
        }


async def _finished(template: Path, folder: Path) -> None:
    """Adopted by a server, and replayed by an operator."""
    sink = MemorySink(OWN_SINK)
    adopter = await adopted(folder / "adopted", sink)
    await adopter.adoption.refresh()
    left = [Path(queue.path).name[:16] for queue in adopter.adoption.left()]
    assert left in ([], [template.name]), "an unfinished queue is told, and once"
    assert bool(left) or not queue_folders(folder / "adopted")
    directory = DirectorySink(folder / "sink")
    await Replay(ToSinks(directory, nowhere, retry_seconds=0.001), allow_copies=True).run(
        [folder / "replayed" / template.name]
    )
    for name, body in _objects(sink, folder / "sink"):
        assert name.endswith(".jsonl") and template.name in name, name
        for line in body.splitlines():
            assert isinstance(json.loads(line), dict), line


def _objects(sink: MemorySink, directory: Path) -> Iterator[tuple[str, bytes]]:
    yield from sink.objects.items()
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()


def no_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        if record.exc_info:
            raise AssertionError(f"a traceback: {record.getMessage()}") from record.exc_info[1]
    caplog.clear()


MADE = st.lists(changes(), min_size=1, max_size=4)
RELAXED = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(made=MADE, is_loose=st.booleans())
@example(made=[("batches", "last", 2, MAX_INT, True)], is_loose=False)
@example(
    made=[("batches", "last", 0, -10, True), ("batches", "first", 0, -9, True)], is_loose=False
)
@example(made=[("open_calls", "seq", 1, 2**53, True)], is_loose=False)
@example(made=[("meta", "value", n, "../../outside", True) for n in range(6)], is_loose=False)
@example(made=[("meta", "value", 4, 0, True)], is_loose=False)
@example(made=[("meta", "name", 0, "x", False)], is_loose=False)
@example(made=[("log_format", "body", 2, b"[" * 5000, True)], is_loose=False)
@example(made=[("rows", "timestamp_ms", 0, "x", True)], is_loose=False)
@example(made=[("rows", "seq", 4, "x", True), ("batches", "first", 0, "x", True)], is_loose=True)
@example(made=[("open_calls", "seq", 0, b"x", True)], is_loose=True)
@RELAXED
def test_any_value_in_any_column(
    template: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    made: list[Change],
    is_loose: bool,
) -> None:
    caplog.set_level(logging.ERROR)
    check(template, tmp_path / "work", made, is_loose)
    no_tracebacks(caplog)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i"
SCHEMAS = (
    ("DROP TABLE rows", f"CREATE VIEW rows AS {ENDLESS} AS seq, i AS timestamp_ms FROM n"),
    ("DROP TABLE batches", f"CREATE VIEW batches AS {ENDLESS} AS first, i AS last FROM n"),
    ("CREATE TRIGGER t AFTER DELETE ON rows BEGIN DELETE FROM batches; END",),
    ("CREATE TRIGGER t AFTER UPDATE ON meta BEGIN INSERT INTO rows SELECT * FROM rows; END",),
    ("ALTER TABLE open_calls ADD COLUMN g AS (hex(zeroblob(1000000000)))",),
)


@pytest.mark.parametrize("statements", SCHEMAS, ids=range(len(SCHEMAS)))
async def test_other_tables_than_a_queue_has(
    statements: tuple[str, ...],
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(left_queues, "COUNT_SECONDS", 0.1)
    root = tmp_path / "queues"
    shutil.copytree(template.parent, root)
    queue = root / template.name
    alter(queue, *statements)
    assert "not those of a queue" in inspect(queue).faults[0]
    assert "not those of a queue" in verify(queue).faults[0]
    assert len(left_queues.left_at_start(root, "0" * 16, OWN_SINK)) == 1
    sink = MemorySink(OWN_SINK)
    adopter = await adopted(root, sink)
    await adopter.adoption.refresh()
    (left,) = adopter.adoption.left()
    assert left.is_quarantined and not sink.attempts


@pytest.mark.long
@pytest.mark.timeout(seconds=3600)
@given(made=MADE, is_loose=st.booleans())
@settings(RELAXED, derandomize=False, max_examples=600)
def test_many_values_in_any_column(
    template: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    made: list[Change],
    is_loose: bool,
) -> None:
    caplog.set_level(logging.ERROR)
    check(template, tmp_path / "work", made, is_loose)
    no_tracebacks(caplog)
