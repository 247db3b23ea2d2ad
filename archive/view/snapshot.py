"""The log as it was a moment ago, kept in a form that pages can ask quickly.

A `Snapshot` is a temporary DuckDB database in which calls and sessions are joined already, so that
a page is one scan. `Snapshots` makes them in a thread of its own: the first one at the start, a new
one when the source has other objects than before. Pages go on with the old one until then, and it
is closed once the last page that uses it is done.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from open_llm_proxy.archive.integrity.report import Report, changed_objects, integrity
from open_llm_proxy.archive.sources.source import LogSource, LogSourceError, Problems
from open_llm_proxy.archive.tables.connection import Tables, open_tables
from open_llm_proxy.archive.tables.views import ROLLUP, SESSIONS
from open_llm_proxy.archive.view.own_tables import OwnTables

CHECK_SECONDS = 60.0
CHOICES = 200
CHOSEN_BY = ("app", "model", "key_name", "outcome")


OpenLog = Callable[[ExitStack], tuple[LogSource, LogSource | None]]
"""Opens the log, and the source of its compacted tables if that is another one, for as long as the
stack is open. Raises `LogSourceError`."""


_INTEGRITY_TABLE = """
CREATE TABLE integrity (queue_id VARCHAR, day DATE, rows BIGINT, calls BIGINT, missing BIGINT,
    doubles BIGINT, unpaired BIGINT, damaged BIGINT, misplaced BIGINT, open_calls BIGINT,
    open_rows BIGINT)"""


class NotReadyError(Exception):
    """There is no snapshot yet; the sentence says how far it is, or why there is none."""


@dataclass(slots=True)
class Snapshot:
    """Tables `turns`, `sessions`, `session_rollup` and `texts`, and the view `entries`.

    `report` and the table `integrity` follow once the objects' bytes have been checked.
    """

    tables: Tables
    problems: Problems
    made_at: datetime
    closing: ExitStack
    choices: dict[str, list[str]]
    report: Report | None = None
    users: int = 0

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """What a statement finds. Any thread may ask."""
        return self._asked().rows(statement)

    def copy_to(self, statement: str, path: Path, options: str) -> None:
        """Write what a statement finds to a file, in a format of DuckDB's ``COPY``."""
        escaped = str(path).replace("'", "''")
        self._asked().connection.execute(
            f"COPY ({statement}) TO '{escaped}' ({options}, USE_TMP_FILE false)"
        )

    def _asked(self) -> Tables:
        return replace(self.tables, connection=self.tables.connection.cursor())


@dataclass(slots=True)
class Snapshots:
    """Makes and keeps the present snapshot; the log is opened anew for each of them."""

    open_log: OpenLog
    own_tables: OwnTables | None = None
    check_seconds: float = CHECK_SECONDS
    _present: Snapshot | None = None
    _seen: frozenset[tuple[str, str]] = frozenset()
    _told: str = "the log is being opened"
    _intact: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def doing(self) -> str:
        """What goes on in the background, in a sentence; empty where nothing does."""
        return "" if self.own_tables is None else self.own_tables.told

    def start(self) -> None:
        """Begin to make snapshots, in a thread that ends with the process or with `stop`."""
        self._thread = threading.Thread(target=self._work, name="log-snapshots", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make no further one and close the present one; waits for one that is being made."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._replace(None)

    @contextmanager
    def present(self) -> Iterator[Snapshot]:
        """The newest snapshot, kept open meanwhile. Raises `NotReadyError`."""
        with self._lock:
            snapshot = self._present
            if snapshot is None:
                raise NotReadyError(self._told)
            snapshot.users += 1
        try:
            yield snapshot
        finally:
            self._leave(snapshot)

    def _leave(self, snapshot: Snapshot) -> None:
        with self._lock:
            snapshot.users -= 1
            is_done = snapshot.users == 0 and snapshot is not self._present
        if is_done:
            snapshot.closing.close()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self.refresh()
            except LogSourceError as error:
                self._told = str(error)
            if self._present is not None and self.own_tables is not None:
                self.own_tables.bring_up_to_date(self._stopped)
            self._stopped.wait(self.check_seconds)

    def refresh(self) -> bool:
        """Make a new snapshot if the source has changed; returns whether it had.

        Raises `LogSourceError`.
        """
        with ExitStack() as closing:
            source, compacted = self.open_log(closing)
            seen = frozenset(
                (item.key, item.etag) for day in source.days() for item in source.objects(day)
            )
            if self._present is not None and seen == self._seen:
                return False
            if compacted is None and self.own_tables is not None:
                compacted = self.own_tables.opened(source)
            opened = open_tables(source, tables=compacted, progress=self._tell)
            tables = closing.enter_context(opened)
            choices = _joined(tables)
            snapshot = Snapshot(
                tables, source.problems, datetime.now(UTC), closing.pop_all(), choices
            )
        self._seen = seen
        self._replace(snapshot)
        self._check(source, snapshot)
        return True

    def _check(self, source: LogSource, snapshot: Snapshot) -> None:
        """Make the snapshot's report. Objects never change, so each is checked once."""
        new = [item for item in snapshot.tables.listed if item.key not in self._intact]
        changed = changed_objects(source, new)
        self._intact |= {item.key for item in new} - set(changed)
        asked = replace(snapshot.tables, connection=snapshot.tables.connection.cursor())
        report = integrity(asked, first_day=None, changed=changed)
        asked.connection.execute(_INTEGRITY_TABLE)
        for day in report.days:
            marks = ", ".join("?" * len(day))
            asked.connection.execute(f"INSERT INTO integrity VALUES ({marks})", [*day.values()])
        snapshot.report = report

    def _replace(self, snapshot: Snapshot | None) -> None:
        with self._lock:
            old, self._present = self._present, snapshot
            is_done = old is not None and old.users == 0
        if old is not None and is_done:
            old.closing.close()

    def _tell(self, done: int, total: int) -> None:
        percent = 100 * done // total if total else 100
        self._told = f"the log is being read: {percent} % of {total / 1e6:,.0f} MB"


def _joined(tables: Tables) -> dict[str, list[str]]:
    """Put tables in the place of the views that join; returns what a filter can choose."""
    run = tables.connection.execute
    run("CREATE TABLE made_turns AS SELECT * FROM all_turns ORDER BY started")
    run(f"CREATE TABLE made_session_rollup AS {ROLLUP.format(turns='made_turns')}")
    run(f"CREATE TABLE made_sessions AS {SESSIONS.format(turns='made_turns')}")
    for name in ("turns", "session_rollup", "sessions"):
        run(f"DROP VIEW {name}")
        run(f"ALTER TABLE made_{name} RENAME TO {name}")
    run(
        "CREATE TABLE texts AS SELECT text_sha256, any_value(content) AS content "
        "FROM entries WHERE type = 'text' GROUP BY text_sha256"
    )
    return {name: _values(tables, name) for name in CHOSEN_BY}


def _values(tables: Tables, column: str) -> list[str]:
    rows = tables.rows(
        f"SELECT {column} AS value FROM turns WHERE {column} IS NOT NULL "
        f"GROUP BY value ORDER BY count(*) DESC, value LIMIT {CHOICES}"
    )
    return [row["value"] for row in rows]
