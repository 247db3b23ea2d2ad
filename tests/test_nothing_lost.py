"""The promise, on the real program: a kill in the middle of the load loses and doubles nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import broken_variants
import calls
import oracle
from proxy_process import PROXY_KEY, SERVE_ARGV, ProxyProcess, one_provider
from scripted_provider import ProviderProcess
from stores import DirectoryStore
from waiting import wait_until

CALLS = 200
ANSWERED_BEFORE_THE_KILL = 60
WINDOW_SECONDS = 1

pytestmark = pytest.mark.timeout(seconds=90)


async def verdict_after_kill(
    proxy: ProxyProcess, provider: ProviderProcess, store: DirectoryStore
) -> tuple[oracle.Verdict, calls.CallRecord]:
    """Send the calls, kill the server among them, start it again, drain, and judge."""
    record = calls.CallRecord()
    quick = calls.Caller(proxy.url, PROXY_KEY, options={"pace": 0.01})
    slow = calls.Caller(proxy.url, PROXY_KEY, options={"pace": 0.5, "delay": 5})

    async def drain_began() -> bool:
        return bool((await proxy.health())["log"]["batches_sealed"])

    await proxy.start()
    half = CALLS // 2
    load = asyncio.gather(
        quick.send_all(range(half), record, concurrency=half),
        slow.send_all(range(half, CALLS), record, concurrency=half),
    )
    await record.answered_at_least(ANSWERED_BEFORE_THE_KILL)
    await wait_until(drain_began, "a first batch is sealed", 20)
    proxy.kill()
    await proxy.wait()
    await load
    await proxy.start()
    await proxy.drained()
    assert await proxy.stop() == 0
    verdict = oracle.judge(
        store.objects(),
        answered=record.answered,
        seen=provider.seen(),
        sent=record.sent,
        window_seconds=WINDOW_SECONDS,
    )
    return verdict, record


@pytest.fixture
def proxy_of(
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> Callable[..., ProxyProcess]:
    def make(argv: tuple[str, ...] = SERVE_ARGV) -> ProxyProcess:
        config = one_provider(provider_process.url)
        return start_proxy(config, directory_store.env(), argv=argv)

    return make


async def test_a_kill_among_200_calls_loses_nothing_and_doubles_nothing(
    proxy_of: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> None:
    verdict, record = await verdict_after_kill(proxy_of(), provider_process, directory_store)
    assert not record.wrong
    assert not verdict.violations, str(verdict)
    assert record.failed, "the kill came after the last call"
    assert verdict.queues == 2 or verdict.rows == 2 * verdict.calls
    assert len(record.answered) >= ANSWERED_BEFORE_THE_KILL


@pytest.mark.parametrize("variant", ["delete_before_put", "entry_after_call"])
async def test_the_same_test_notices_a_broken_promise(
    variant: str,
    proxy_of: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> None:
    proxy = proxy_of(broken_variants.argv(variant))
    verdict, _ = await verdict_after_kill(proxy, provider_process, directory_store)
    assert verdict.count("lost") + verdict.count("gap") + verdict.count("unpaired") > 0


async def test_rows_left_by_a_dead_process_are_in_the_next_ones_balance(
    proxy_of: Callable[..., ProxyProcess], tmp_path: Path
) -> None:
    proxy = proxy_of()
    record = calls.CallRecord()
    await proxy.start()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(20), record)
    proxy.kill()
    await proxy.wait()
    await proxy.start()
    log = (await proxy.drained())["log"]
    assert log["accepted_rows"] == log["uploaded_rows"] + log["queued_rows"]
    assert log["adopted_files"] == 1
    assert log["damaged_rows"] == 0
