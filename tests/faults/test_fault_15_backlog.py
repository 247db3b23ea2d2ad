"""Fault 15: a large backlog, and entries that could stop a queue for good.

A backlog costs neither the start nor the calls anything, is drained in bounded memory, and its
room is given back. No text is so odd that it holds up the rows behind it, or spoils the object
that it stands in for those who read it.
"""

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

import broken_variants
import replay_process
import stored_objects
from given_answers import Asker, GivenAnswers, completion
from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.store import Store
from proxy_process import SERVE_ARGV, ProxyProcess, one_provider
from queue_fixtures import NOON_MS, birth, plain, row_lines
from store_faults import StubStore
from stores import DirectoryStore
from trial import Trial
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=120)

MIB = 1024 * 1024
OBJECT_BYTES = 16 * MIB
ROW_BYTES = 2_000
GROUP = 1_000
MS_PER_ROW = 20  # 50 rows a second: a window of five minutes holds 30 MB
# The interpreter with everything imported, and some objects of 16 MiB in flight.
MEMORY_MAX_BYTES = 400 * MIB

NASTY = (
    "a NUL \0 within",
    "\0",
    "surrogates \ud83d alone \udfff",
    "\udfff\ud83d",
    "\u2028 \u2029 \u0085 \x1b[31m \ufeff \uffff \U0010ffff",
    r"literal \u0000 \ud800 \" \\",
    '"' * 20_000,
    "\\" * 20_000,
    "x" * 70_000 + "🌊" * 20_000,
    "\n" * 10_000 + "\r\n",
    "2026-04-07",
    "9f8c7a06-5d4e-4b3a-8291-0a1b2c3d4e5f",
    '{"seq":1}\n{"seq":2}\n',
    "[" * 5_000,
)


def backlog(root: Path, rows: int, row_bytes: int = ROW_BYTES) -> Path:
    """The folder of a dead owner's queue with so many rows; none is marked as closed."""
    folder.prepare_root(root)
    owned = folder.give_birth(root, birth(object_max_bytes=OBJECT_BYTES))
    store = Store.open(owned.path)
    for start in range(1, rows + 1, GROUP):
        numbers = range(start, min(start + GROUP, rows + 1))
        at_ms = NOON_MS + start * MS_PER_ROW
        store.commit([plain(*numbers, at_ms=at_ms, size_bytes=row_bytes - 150)])
        store.checkpoint_if_due()
    store.close(cleanly=False)
    owned.release()
    return owned.path


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.db*"))


async def asked_nasty(proxy: ProxyProcess, provider: GivenAnswers) -> None:
    """Every text as question and as answer, and then a kill with some calls under way."""
    await proxy.start()
    asker = Asker(proxy)
    for text in NASTY:
        await asker.ask(text, completion(text))
    hanging = [asyncio.ensure_future(asker.ask(text, {"hang": True})) for text in NASTY]
    await wait_until(lambda: len(provider.bodies) == 2 * len(NASTY), "all calls are under way")
    proxy.kill()
    await proxy.wait()
    await asyncio.gather(*hanging, return_exceptions=True)
    await asker.close()


async def nasty_rows(
    start_proxy: Callable[..., ProxyProcess], store: DirectoryStore, argv: tuple[str, ...]
) -> tuple[list[stored_objects.Row], list[stored_objects.Violation]]:
    """What is stored in the end, and what is wrong with it; replay must store the same."""
    async with GivenAnswers() as provider:
        settings = {**store.env(), "FLUSH_INTERVAL_SECONDS": "86400"}
        proxy = start_proxy(one_provider(provider.url), settings, argv=argv)
        await asked_nasty(proxy, provider)
    copies, objects = proxy.folder / "copies", proxy.folder / "replayed"
    shutil.copytree(proxy.queue_folder, copies)
    await proxy.start()
    await proxy.drained()
    assert await proxy.stop() == 0
    ended = await replay_process.run("replay", copies, "--to", objects)
    assert ended.code == 0, ended.stderr
    assert list(DirectoryStore(objects).objects()) == list(store.objects())
    rows, violations = [], []
    for key, body in store.objects():
        found, broken = stored_objects.read_object(key, body, "", 86_400)
        rows += found
        violations += broken
    return rows, violations


async def test_no_text_holds_the_queue_up_or_spoils_an_object(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    rows, violations = await nasty_rows(start_proxy, directory_store, SERVE_ARGV)
    assert not violations
    outcomes = [row["outcome"] for row in rows if row["type"] == "response"]
    assert outcomes == ["ok"] * len(NASTY) + ["interrupted"] * len(NASTY)
    files = str(directory_store.folder / "**" / "*.jsonl")
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT count(content) FROM read_json(?) WHERE type <> 'schema'", [files]
        )
        counted = found.fetchone()
    assert counted == (len(NASTY),)


async def test_the_same_test_notices_texts_that_are_stored_as_they_come(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    argv = broken_variants.argv("texts_as_they_come")
    _, violations = await nasty_rows(start_proxy, directory_store, argv)
    assert {violation.kind for violation in violations} == {"schema"}


@pytest.mark.parametrize(
    "megabytes", [20, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(seconds=600)])]
)
async def test_a_huge_question_and_a_huge_answer_are_logged_cut(
    new_trial: Callable[..., Trial], megabytes: int
) -> None:
    trial = new_trial(settings={"MAX_BODY_BYTES": str(128 * MIB), "LOG_TOOL_RESULT_MAX": "0"})
    await trial.proxy.start()
    await trial.calls(10)
    assert await trial.big_calls(1, megabytes=megabytes) == [200]
    assert await trial.big_question(megabytes) == 200
    await trial.calls(10)
    # What the body needs on its way, as bytes and as text, and what all other calls need.
    assert trial.proxy.peak_memory_bytes() < (12 * megabytes + 300) * MIB
    await trial.settle()


async def test_a_file_gives_its_room_back_once_the_store_has_its_rows(
    new_trial: Callable[..., Trial],
) -> None:
    async with StubStore() as store:
        store.answer_always(503, "SlowDown")
        trial = new_trial(store=store)
        await trial.proxy.start()
        (queue_id,) = trial.proxy.queues()
        queue = trial.proxy.queue_folder / queue_id
        await trial.big_calls(10, megabytes=3)
        assert folder_bytes(queue) > 25 * MIB
        store.answer_always(200)
        await trial.flushed()
        await trial.calls(10)  # and calls go on in what is left
        await trial.flushed()
        assert folder_bytes(queue) < 14 * MIB  # the pages that are kept, and a log of 4 MiB
        await trial.settle()


async def test_a_reader_of_the_living_file_is_turned_away(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial(window_seconds=3600)
    await trial.proxy.start()
    (queue_id,) = trial.proxy.queues()
    reader = sqlite3.connect(trial.proxy.queue_folder / queue_id / schema.DATABASE_NAME, timeout=0)
    try:
        async with trial.load(concurrency=4) as load:
            for _ in range(20):
                await trial.answered_more(2)
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    reader.execute("SELECT count(*) FROM rows").fetchone()
            load.stop()
    finally:
        reader.close()
    await trial.settle()


SIZES = [
    pytest.param(20_000, id="20k"),
    pytest.param(1_000_000, id="1M", marks=[pytest.mark.long, pytest.mark.timeout(seconds=1800)]),
]


@pytest.mark.parametrize("rows", SIZES)
async def test_a_backlog_delays_no_start_and_is_drained_in_bounded_memory(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore, rows: int
) -> None:
    trial = new_trial()
    queue = await asyncio.to_thread(backlog, trial.proxy.queue_folder, rows)
    begun = time.monotonic()
    await trial.proxy.start()
    assert time.monotonic() - begun < 10
    assert queue.exists(), "it was drained before the server served"
    async with trial.load(concurrency=2, pace=0.02):
        await trial.answered_more(10)

        await wait_until(lambda: not queue.exists(), "the backlog is drained", 60 + rows / 1000)
    assert trial.record.answered.keys() == trial.record.sent
    assert trial.proxy.peak_memory_bytes() < MEMORY_MAX_BYTES
    await trial.proxy.drained()
    assert await trial.proxy.stop() == 0
    seen = 0
    for path in sorted(directory_store.folder.glob(f"*/*-{queue.name}-*")):
        for line in row_lines([path.read_bytes()]):
            seen += 1
            assert json.loads(line)["seq"] == seen
        path.unlink()  # what is left is what the trial knows of
    assert seen == rows
    trial.assert_nothing_lost()
