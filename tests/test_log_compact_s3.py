"""``logs compact`` from and to a bucket, whole, refused, broken off, and beside another run."""

import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from given_answers import Fields
from log_history import FIRST_DAY, write_history
from logs_command import Logs
from open_llm_proxy.archive.compaction.day import compact_day
from open_llm_proxy.archive.compaction.destination import Destination, open_destination
from open_llm_proxy.archive.compaction.raw import delete_raw
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.opening import open_source
from open_llm_proxy.archive.sources.source import Environment, LogObject, LogSource
from open_llm_proxy.archive.tables.compacted import TABLES
from open_llm_proxy.archive.tables.connection import open_tables
from stores import S3Store

pytest_plugins = ("log_fixtures",)
DAY, NEXT = f"{FIRST_DAY:%Y-%m-%d}", "2026-04-08"
ROWS = "SELECT count(*) AS n, bit_xor(hash(queue_id, seq, type, content)) AS x FROM all_entries"
CALLS = "SELECT count(*) AS calls, count(*) FILTER (outcome = 'open') AS open FROM all_turns"


@pytest.fixture(params=["moto", pytest.param("rgw", marks=[pytest.mark.rgw, pytest.mark.long])])
def store(request: pytest.FixtureRequest) -> S3Store:
    found: S3Store = request.getfixturevalue(f"{request.param}_store")
    return found


def upload(store: S3Store, paths: Iterable[Path]) -> None:
    for path in paths:
        key = f"team/{path.parent.name}/{path.name}"
        store.client.put_object(Bucket=store.bucket, Key=key, Body=path.read_bytes())


def keys(store: S3Store, prefix: str = "") -> list[str]:
    return [key for key, _ in store.objects() if key.startswith(prefix)]


def credentials(store: S3Store, endpoint: str | None = None) -> dict[str, str]:
    return {name: value for name, value in store.env(endpoint).items() if name != "LOG_BUCKET"}


def totals(logs: Logs, *source: str, **environment: str) -> list[Fields]:
    rows = logs("stats", *source, "--by", "day", **environment).objects
    return [row | {"cost_usd": round(row["cost_usd"], 6)} for row in rows]  # summed in any order


def test_a_bucket_is_compacted_and_its_raw_objects_are_deleted(
    logs: Logs, store: S3Store, tmp_path: Path
) -> None:
    history = write_history(tmp_path / "logs", 120)
    upload(store, history.objects)
    raw, tables = f"s3://{store.bucket}/team", f"s3://{store.bucket}/tables"
    told = totals(logs, raw, **credentials(store))
    assert sum(row["calls"] for row in told) == history.calls
    arguments = ("compact", raw, "--to", tables)
    days = logs(*arguments, **credentials(store)).objects
    assert [(row["day"], row["outcome"]) for row in days] == [
        (DAY, "compacted"),
        (NEXT, "compacted"),
    ]
    assert len(keys(store, "tables/")) == 2 * len(TABLES)
    assert len(keys(store, "team/")) == len(history.objects)
    done = logs(*arguments, "--delete-raw", **credentials(store)).objects
    assert sum(row.get("deleted", 0) for row in done) == len(history.objects)
    assert keys(store, "team/") == []
    assert totals(logs, tables, **credentials(store)) == told
    again = logs(*arguments, **credentials(store)).objects
    assert {row["outcome"] for row in again} == {"unchanged"}


# A store that fails in the middle.

Rule = Callable[[str, str], int | None]
"""What a request is answered, by method and path; None lets it through, 0 cuts the connection."""


@contextmanager
def in_front_of(store: S3Store, rule: Rule) -> Iterator[str]:
    """An endpoint that passes on to the store what the rule lets through."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = rule(self.command, self.path)
            if answer == 0:
                self.close_connection = True
                return
            if answer is not None:
                data = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
                return self.answer(answer, {}, data)
            request = urllib.request.Request(
                store.server.endpoint + self.path, body or None, method=self.command
            )
            request.add_header("Content-Type", "application/octet-stream")
            for name, value in self.headers.items():
                if name.lower() not in ("host", "content-length", "connection", "expect"):
                    request.add_header(name, value)
            try:
                with opener.open(request, timeout=60) as found:
                    self.answer(found.status, dict(found.headers), found.read())
            except urllib.error.HTTPError as error:
                with error:
                    self.answer(error.code, dict(error.headers), error.read())

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name in ("ETag", "Content-Type"):
                if name in headers:
                    self.send_header(name, headers[name])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = pass_on

        def log_message(self, *_: object) -> None:
            pass

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refuses_puts(_: S3Store) -> Rule:
    return lambda method, _path: 403 if method == "PUT" else None


def refuses_the_second_table(_: S3Store) -> Rule:
    return lambda method, path: 403 if method == "PUT" and "/turns/" in path else None


def vanishes_with_the_first_table(_: S3Store) -> Rule:
    gone = threading.Event()

    def rule(method: str, _path: str) -> int | None:
        if method == "PUT":
            gone.set()
        return 0 if gone.is_set() else None

    return rule


def loses_an_object_once_it_is_listed(store: S3Store) -> Rule:
    victim = keys(store, f"team/{DAY}/")[2]

    def rule(method: str, path: str) -> int | None:
        if method == "GET" and path.endswith(victim):
            store.client.delete_object(Bucket=store.bucket, Key=victim)
        return None

    return rule


@pytest.mark.parametrize(
    ("fault", "said", "published"),
    [
        (refuses_puts, "403 AccessDenied: this needs the right to put objects", []),
        (refuses_the_second_table, "403 AccessDenied", ["entries"]),
        (vanishes_with_the_first_table, "cannot be reached", []),
        (loses_an_object_once_it_is_listed, "objects that vanished while they were read", []),
    ],
)
def test_a_day_is_whole_or_not_there(
    logs: Logs,
    moto_store: S3Store,
    tmp_path: Path,
    fault: Callable[[S3Store], Rule],
    said: str,
    published: list[str],
) -> None:
    history = write_history(tmp_path / "logs", 40)
    upload(moto_store, history.objects)
    raw, tables = f"s3://{moto_store.bucket}/team", f"s3://{moto_store.bucket}/tables"
    arguments = ("compact", raw, "--to", tables, "--day", DAY, "--delete-raw")
    with in_front_of(moto_store, fault(moto_store)) as endpoint:
        done = logs(*arguments, **credentials(moto_store, endpoint))
    assert done.returncode == 1 and said in done.stderr
    [sentence] = done.stderr.strip().splitlines()
    assert "Traceback" not in sentence and moto_store.server.secret_key not in sentence
    assert keys(moto_store, "tables/") == [
        f"tables/{t}/day={DAY}/part-0.parquet" for t in published
    ]
    left = len(keys(moto_store, "team/"))
    assert left == len(history.objects) - (fault is loses_an_object_once_it_is_listed)
    told = totals(logs, raw, "--tables", tables, **credentials(moto_store))
    assert told == totals(logs, raw, **credentials(moto_store)), "readers see what they did before"
    [again, *_] = logs(*arguments, **credentials(moto_store)).objects
    assert again["outcome"] == "compacted"


# Another run, which knows more and has deleted what it knows.


class Overtaken:
    """A destination where another run has published by the time that one wants to."""

    def __init__(self, place: Destination, overtake: Callable[[], object]) -> None:
        self._place = place
        self._overtake: Callable[[], object] | None = overtake
        self.delete = place.delete

    def source(self) -> LogSource:
        return self._place.source()

    def publish(self, table: str, day: str, path: Path, read: LogObject | None) -> None:
        overtake, self._overtake = self._overtake, None
        if overtake is not None:
            overtake()
        self._place.publish(table, day, path, read)


@dataclass(frozen=True)
class Places:
    """Where raw objects lie, where their tables go, and how an object gets there."""

    raw: str
    tables: str
    environment: Environment
    put: Callable[[Path], object]

    def compact(self, destination: Destination | None = None) -> str:
        destination = destination or open_destination(self.tables, self.environment)
        with open_source(self.raw, self.environment) as source:
            return compact_day(source, destination, DAY).outcome

    def delete_raw(self) -> list[str]:
        places = [open_destination(name, self.environment) for name in (self.raw, self.tables)]
        with open_source(self.raw, self.environment) as source:
            return delete_raw(source, places[0], places[1], DAY).differing

    def rows(self) -> list[Fields]:
        with (
            open_source(self.raw, self.environment) as source,
            open_source(self.tables, self.environment) as tables,
            open_tables(source, tables=tables) as opened,
        ):
            return [*opened.rows(ROWS), *opened.rows(CALLS)]


@pytest.fixture(params=["folder", "moto", pytest.param("rgw", marks=pytest.mark.long)])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """A folder, or prefixes of a bucket."""
    if request.param == "folder":

        def copy(path: Path) -> None:
            folder = tmp_path / "raw" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)

        def no_client() -> None:
            pytest.fail("a folder needs no client")

        environment = Environment(None, no_client)
        return Places(str(tmp_path / "raw"), str(tmp_path / "tables"), environment, copy)
    store: S3Store = request.getfixturevalue(f"{request.param}_store")
    environment = Environment(None, lambda: store.client, tmp_path / "cache")
    raw, tables = f"s3://{store.bucket}/team", f"s3://{store.bucket}/tables"
    return Places(raw, tables, environment, lambda path: upload(store, [path]))


@pytest.mark.parametrize("has_tables", [False, True])
def test_a_slower_run_does_not_undo_what_another_one_has_read_and_deleted(
    places: Places, tmp_path: Path, has_tables: bool
) -> None:
    history = write_history(tmp_path / "logs", 60, days=1)
    with open_tables(FolderSource(tmp_path / "logs")) as opened:
        whole = [*opened.rows(ROWS), *opened.rows(CALLS)]
    first, second, *others = history.objects
    for path in others:
        places.put(path)
    if has_tables:
        assert places.compact() == "compacted"
    places.put(first)

    def overtake() -> None:
        places.put(second)
        assert places.compact() == "compacted"
        assert places.delete_raw() == []

    place = open_destination(places.tables, places.environment)
    places.compact(Overtaken(place, overtake))
    assert places.rows() == whole
    assert places.compact() == "unchanged"
