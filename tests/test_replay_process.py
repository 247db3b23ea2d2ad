"""Replays of queues that the real server left when it was killed, judged by the oracle."""

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import oracle
from proxy_process import ProxyProcess, one_provider
from queue_fixtures import as_killed, birth, dead_queue, plain, row_lines
from replay_process import Ended, Leavings, ended, leave_queues, run, start
from scripted_provider import ProviderProcess
from stores import DirectoryStore, S3Store, Store
from test_queue_damage import ten_rows
from waiting import wait_until

KILLED = -signal.SIGKILL
WINDOW_SECONDS = 1

pytestmark = pytest.mark.timeout(seconds=90)


@pytest.fixture
def leave(
    start_proxy: Callable[..., ProxyProcess], provider_process: ProviderProcess, tmp_path: Path
) -> Callable[..., object]:
    """Queues of the real server with `store` as its sink, killed under load."""

    async def make(store: Store, seed: int, count: int) -> tuple[Leavings, ProxyProcess]:
        proxy = start_proxy(one_provider(provider_process.url), store.env())
        chance = random.Random(seed)
        return await leave_queues(proxy, tmp_path / "left", chance, count), proxy

    return make


class Unanswering:
    """A store that takes connections and says nothing."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self._callers: list[socket.socket] = []
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.env = {
            "LOG_BUCKET": "logs",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def has_caller(self) -> bool:
        try:
            # Kept open, so that the caller goes on waiting for an answer.
            self._callers.append(self._listening.accept()[0])
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        for connection in (self._listening, *self._callers):
            connection.close()


@pytest.fixture
def unanswering() -> Iterator[Unanswering]:
    store = Unanswering()
    yield store
    store.close()


def judge(store: Store, leavings: Leavings, provider: ProviderProcess) -> oracle.Verdict:
    return oracle.assert_nothing_lost(
        store.objects(), leavings.record, provider.seen(), window_seconds=WINDOW_SECONDS
    )


def assert_done(done: Ended) -> None:
    assert done.code == 0, f"exit code {done.code}; {done.text}; {done.stderr}"


async def test_a_directory_gets_everything_once_whoever_finishes_it(
    leave: Callable[..., object],
    directory_store: DirectoryStore,
    provider_process: ProviderProcess,
    tmp_path: Path,
) -> None:
    leavings, proxy = await leave(directory_store, seed=1, count=2)  # type: ignore[misc]
    kept = as_killed(leavings.root, tmp_path / "kept")
    printed = await run("replay", kept, "--to", "-")
    assert_done(printed)
    # A replay that is killed, and then one beside a server that starts on the same folders.
    assert (await run("replay", leavings.root, env=directory_store.env(), dies_at="put")).code < 0
    for queue in leavings.root.iterdir():
        queue.rename(proxy.queue_folder / queue.name)
    replay = await start("replay", proxy.queue_folder, env=directory_store.env())
    await proxy.start()
    assert (await ended(replay)).code in (0, 1)
    await proxy.drained()
    assert await proxy.stop() == 0
    judge(directory_store, leavings, provider_process)
    stored = b"".join(body for _, body in directory_store.objects())
    assert set(printed.stdout.splitlines()) <= set(stored.splitlines())
    # What a copy still holds is in the store already: the same objects under the same keys.
    before = dict(directory_store.objects())
    assert_done(await run("replay", kept, env=directory_store.env()))
    assert dict(directory_store.objects()) == before


@pytest.mark.rgw
async def test_a_real_ceph_rgw_gets_everything_once_through_kills_and_refusals(
    leave: Callable[..., object],
    rgw_store: S3Store,
    provider_process: ProviderProcess,
    unanswering: Unanswering,
) -> None:
    leavings, _ = await leave(rgw_store, seed=2, count=2)  # type: ignore[misc]
    env = rgw_store.env()
    first = await start("replay", leavings.root, env=rgw_store.env(unanswering.endpoint))
    await wait_until(unanswering.has_caller, "an object is under way")
    second = await run("replay", leavings.root, env=env)
    assert second.code == 1
    (refused,) = [line for line in second.text.splitlines() if "still running" in line]
    assert refused.startswith(str(leavings.root))
    first.kill()
    assert (await ended(first)).code == KILLED
    if list(leavings.root.iterdir()):
        assert (await run("replay", leavings.root, env=env, dies_at="put")).code == KILLED
    assert_done(await run("replay", leavings.root, env=env))
    assert list(leavings.root.iterdir()) == []
    assert_done(await run("replay", leavings.root, env=env))
    judge(rgw_store, leavings, provider_process)


async def test_ctrl_c_ends_a_replay_with_the_rest_kept_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    queue = dead_queue(
        tmp_path / "queues", lambda s: s.commit([plain(*range(40), size_bytes=20_000)]),
        birth(object_max_bytes=100_000),
    )  # fmt: skip
    objects = tmp_path / "objects"
    output = await start("replay", queue, "--to", "-")
    assert output.stdout is not None
    await output.stdout.readexactly(1)  # the rest does not fit into the pipe, so it hangs there
    output.send_signal(signal.SIGINT)
    assert output.stderr is not None
    assert b"Stopping after the current uploads" in await _until(output.stderr, b"Stopping")
    done = await ended(output)
    assert done.code == 1
    assert "stopped before all rows were printed" in done.stderr
    done = await run("replay", queue, "--to", objects)
    assert_done(done)
    assert "uploaded 40 rows in 10 objects; directory removed" in done.text
    assert len(row_lines(path.read_bytes() for path in objects.rglob("*.jsonl"))) == 40


async def _until(stream: asyncio.StreamReader, words: bytes) -> bytes:
    text = b""
    while words not in text:
        line = await stream.readline()
        assert line, text
        text += line
    return text


async def test_a_reader_that_has_enough_ends_a_replay_without_a_traceback(tmp_path: Path) -> None:
    queue = dead_queue(
        tmp_path / "queues", lambda s: s.commit([plain(*range(40), size_bytes=20_000)])
    )
    reader, writer = os.pipe()
    output = await start("replay", queue, "--to", "-", stdout=writer)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"{"
    os.close(reader)
    done = await ended(output)
    assert done.code == 1
    assert "LEFT: stdout: Broken pipe" in done.stderr


async def test_of_two_replays_at_once_one_is_refused_and_after_a_kill_the_next_goes_on(
    tmp_path: Path, unanswering: Unanswering
) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    first = await start("replay", queue, env=unanswering.env)
    await wait_until(unanswering.has_caller, "an object is under way")
    replay_to = ("replay", queue, "--to", tmp_path / "objects")
    second = await run(*replay_to)
    assert second.code == 1
    assert second.text == f"{queue}: LEFT: belongs to a process that is still running\n"
    first.kill()
    assert (await ended(first)).code == KILLED
    third = await run(*replay_to)
    assert third.code == 1
    assert "10 rows are left that may already be on s3://logs/ (no S3 cred" in third.text
    assert "--again uploads what is left" in third.text
    assert_done(done := await run(*replay_to, "--again"))
    assert done.text == f"{queue}: uploaded 10 rows in 1 object; directory removed\n"


async def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, unanswering: Unanswering) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows)
    replay = await start("replay", queue, env=unanswering.env)
    await wait_until(unanswering.has_caller, "an object is under way")
    assert replay.stderr is not None
    replay.send_signal(signal.SIGTERM)
    await _until(replay.stderr, b"Stopping")
    replay.send_signal(signal.SIGTERM)
    done = await ended(replay)
    assert done.code == 1
    assert "stopped immediately" in done.text
    status = await run("queue", "status", queue, "--json")
    assert json.loads(status.stdout)["tried_batches"] == {"s3://logs/": 1}
