"""A bucket's objects on this machine: each is downloaded once, whatever happens in between."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from log_history import write_history
from logs_command import Logs
from open_llm_proxy.archive.sources.bucket import BucketSource
from open_llm_proxy.archive.sources.cache import ObjectCache
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import Environment, LogObject, LogSourceError
from open_llm_proxy.archive.tables.connection import open_tables
from stores import S3Store

pytest_plugins = ("log_fixtures",)
FIRST, SECOND = "2026-04-07", "2026-04-08"


class CountingClient:
    """An S3 client that notes which objects are asked for, and may fail."""

    def __init__(self, client: Any) -> None:
        self.meta = client.meta
        self.get_paginator = client.get_paginator
        self.asked: list[str] = []
        self.fails_after: int | None = None
        self.gone: set[str] = set()
        self._client = client

    def get_object(self, **options: Any) -> Any:
        key = options["Key"]
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(key)
        if key in self.gone:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return self._client.get_object(**options)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_history(tmp_path / "log", 60, days=2)
    return tmp_path / "log"


def put(store: S3Store, log: Path) -> None:
    for path in log.rglob("*.jsonl"):
        key = f"team/{path.relative_to(log).as_posix()}"
        store.client.put_object(Bucket=store.bucket, Key=key, Body=path.read_bytes())


@pytest.fixture
def client(moto_store: S3Store, log: Path) -> CountingClient:
    put(moto_store, log)
    return CountingClient(moto_store.client)


@pytest.fixture
def environment(client: CountingClient, tmp_path: Path) -> Environment:
    return Environment(None, lambda: client, tmp_path / "cache")


@pytest.fixture
def url(moto_store: S3Store) -> str:
    return f"s3://{moto_store.bucket}/team/"


def rows_of(source: Any) -> int:
    with open_tables(source) as tables:
        count: int = tables.rows("SELECT count(*) AS n FROM entries")[0]["n"]
        return count


def test_a_second_run_asks_for_what_is_new_only(
    client: CountingClient, environment: Environment, url: str, log: Path, moto_store: S3Store
) -> None:
    rows = rows_of(BucketSource(url, environment))
    assert rows == rows_of(FolderSource(log))
    objects = len(client.asked)
    assert len(set(client.asked)) == objects == len(list(log.rglob("*.jsonl")))
    new = next((log / SECOND).iterdir())
    late = new.with_name("23-59-00-late.jsonl")
    shutil.copy(new, late)
    put(moto_store, log)
    assert rows_of(BucketSource(url, environment)) > rows
    assert client.asked[objects:] == [f"team/{SECOND}/{late.name}"]


def test_a_run_that_was_ended_is_gone_on_with(
    client: CountingClient, environment: Environment, url: str, log: Path
) -> None:
    client.fails_after = 10
    with pytest.raises(KeyboardInterrupt):
        rows_of(BucketSource(url, environment))
    (environment.cache_folder / "rubbish.part").write_bytes(b"cut off")
    client.fails_after = None
    before = len(client.asked)
    assert rows_of(BucketSource(url, environment)) == rows_of(FolderSource(log))
    assert len(client.asked) == len(list(log.rglob("*.jsonl"))) and before >= 10


def test_the_cache_stays_within_its_bound_and_says_what_does_not_fit(
    client: CountingClient, environment: Environment, url: str, log: Path
) -> None:
    sizes = {day: sum(p.stat().st_size for p in (log / day).iterdir()) for day in (FIRST, SECOND)}
    bound = max(sizes.values()) + 1000
    small = replace(environment, cache_max_bytes=bound)
    for day in (FIRST, SECOND, FIRST):
        source = BucketSource(url, small)
        assert source.local(source.objects(day))
        kept = sum(p.stat().st_size for p in small.cache_folder.rglob("*.jsonl"))
        assert kept <= bound
    with pytest.raises(LogSourceError, match="choose fewer days with --since"):
        rows_of(BucketSource(url, replace(small, cache_max_bytes=bound // 2)))


def test_an_object_that_vanishes_is_counted(
    client: CountingClient, environment: Environment, url: str, log: Path
) -> None:
    victim = sorted((log / FIRST).iterdir())[2]
    client.gone.add(f"team/{FIRST}/{victim.name}")
    source = BucketSource(url, environment)
    lost = len(victim.read_bytes().splitlines()) - 1
    assert rows_of(source) == rows_of(FolderSource(log)) - lost
    assert source.problems.counts == {"objects that vanished while they were read": 1}
    assert source.problems.is_short


def test_a_full_disk_is_a_sentence(
    environment: Environment, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LogSourceError, match=r"disk of the cache .* is full"):
        rows_of(BucketSource(url, environment))
    assert not list(environment.cache_folder.rglob("*.jsonl"))


@pytest.mark.parametrize("key", ["../../etc/passwd", "a/../b", "/abs", "a//b", ".", "a%b", "ü/…"])
def test_no_key_leads_out_of_the_cache(tmp_path: Path, key: str) -> None:
    cache = ObjectCache(tmp_path, 1)
    path = cache.path(LogObject("", key.rpartition("/")[2], key))
    assert path.resolve().is_relative_to(tmp_path.resolve()) and path != tmp_path


def test_keys_that_differ_are_kept_apart(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 1)
    keys = ["a/b", "a%2Fb", "a%b", "a/%b", "a/.", "a/%.", "a//b", "ab"]
    assert len({cache.path(LogObject("", "n", key)) for key in keys}) == len(keys)


def test_a_real_gateway_reads_like_the_folder(logs: Logs, rgw_store: S3Store, log: Path) -> None:
    put(rgw_store, log)
    url = f"s3://{rgw_store.bucket}/team"
    settings = {name: value for name, value in rgw_store.env().items() if name != "LOG_BUCKET"}
    for command in (("stats",), ("sessions", "-n", "1000"), ("tail",), ("verify",)):
        found = logs(*command, url, **settings)
        there = logs(*command, str(log))
        assert (found.returncode, found.stdout) == (there.returncode, there.stdout)
    wrong = settings | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    done = logs("stats", url, **wrong)
    assert done.returncode == 2 and "answered 403" in done.stderr and "wrong" not in done.stderr
    assert logs("stats", "s3://no-such-bucket-here", **settings).returncode == 2
