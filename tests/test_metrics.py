"""/metrics and /health of the real server: what is counted, under which labels, and for whom."""

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import calls
import wire
from open_llm_proxy.server.call_result import CallResult
from open_llm_proxy.server.health import degraded_reasons
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.sink_choice import NO_CREDENTIALS, NO_SINK
from open_llm_proxy.server.transcript.assembly import Transcript
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from scripted_provider import ScriptedProvider
from store_faults import StubStore
from stores import DirectoryStore
from waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = one_provider("http://127.0.0.1:9")
NO_PATIENCE = {"UPSTREAM_CONNECT_TIMEOUT_SECONDS": "0.1"}  # with it
WITH_KEY = {"Authorization": f"Bearer {PROXY_KEY}"}

Samples = dict[str, float]

pytestmark = pytest.mark.timeout(seconds=60)


async def get(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.get(url, headers=headers or {})


def samples(text: str) -> Samples:
    """``name{label="value"}`` to value, labels sorted."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scraped(proxy: ProxyProcess) -> Samples:
    answer = await get(f"{proxy.url}/metrics", WITH_KEY)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to type and labels, of the tables in docs/monitoring.md."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(open_llm_proxy_\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


async def test_the_page_says_what_the_server_exports_and_nothing_else(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(NOWHERE, directory_store.env() | NO_PATIENCE)
    await proxy.start()
    text = (await get(f"{proxy.url}/metrics", WITH_KEY)).text
    exported = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = (family.type, labels)
        assert family.samples, f"{name} has no series at the start"
    assert exported == {name: (kind, set(labels)) for name, (kind, labels) in documented().items()}
    mentioned = set(re.findall(r"open_llm_proxy_\w+", (ROOT / "docs/monitoring.md").read_text()))
    histograms = {f"{name}_bucket" for name, (kind, _) in exported.items() if kind == "histogram"}
    assert mentioned - {"open_llm_proxy_"} <= set(exported) | histograms


async def test_every_series_is_there_at_the_start_and_no_client_can_add_one(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    config = one_provider(provider.url, models=["kimi", "anthropic/"])
    proxy = start_proxy(config, directory_store.env())
    await proxy.start()
    before = await scraped(proxy)
    for model in ("kimi", "anthropic/…", "other"):
        for outcome in ("ok", "upstream_error", "interrupted"):
            labels = f'model="{model}",outcome="{outcome}",provider="nrp"'
            assert before[f"open_llm_proxy_requests_total{{{labels}}}"] == 0
    bodies: list[Any] = [
        {"model": model, "messages": [{"role": "user", "content": "{}"}]}
        for model in ("kimi", "anthropic/claude", "made-up-1", "made-up-2")
    ]
    async with httpx.AsyncClient(trust_env=False, headers=WITH_KEY) as client:
        for body in [*bodies, "no call"]:
            await client.post(f"{proxy.url}/v1/chat/completions", json=body)
        await client.post(f"{proxy.url}/v1/chat/completions", headers={"Authorization": "Bearer x"})
    after = await scraped(proxy)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    for label in ("kimi", "anthropic/…", "other"):
        assert any(f'model="{label}"' in name for name in changed), changed
    assert after['open_llm_proxy_refused_total{code="invalid_api_key"}'] == 1
    assert after['open_llm_proxy_refused_total{code="other"}'] == 1


async def test_calls_tokens_times_and_uploads_are_counted(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    proxy = start_proxy(one_provider(provider.url), directory_store.env())
    await proxy.start()
    record = calls.CallRecord()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(6), record)
    assert len(record.answered) == 6
    await proxy.drained()
    found = await scraped(proxy)
    ok = [value for name, value in found.items() if 'outcome="ok"' in name]
    assert sum(ok) == 12, "once by model and once by endpoint"
    assert found['open_llm_proxy_request_seconds_count{provider="nrp"}'] == 6
    assert found["open_llm_proxy_overhead_seconds_count"] == 6
    assert found['open_llm_proxy_time_to_first_token_seconds_count{provider="nrp"}'] > 0
    seconds = found['open_llm_proxy_request_seconds_sum{provider="nrp"}']
    assert 0 < found["open_llm_proxy_overhead_seconds_sum"] <= seconds
    assert sum(v for n, v in found.items() if n.startswith("open_llm_proxy_tokens_total")) > 0
    assert found["open_llm_proxy_uploaded_rows_total"] == 12
    assert found['open_llm_proxy_uploads_total{result="ok"}'] >= 1
    assert found["open_llm_proxy_last_upload_timestamp_seconds"] > 0
    assert found["open_llm_proxy_queue_rows"] == found["open_llm_proxy_requests_in_flight"] == 0


async def test_a_call_in_progress_and_a_shutdown_can_be_seen_on_the_metrics_port(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider
) -> None:
    port = wire.free_port()
    proxy = start_proxy(one_provider(provider.url), {"METRICS_PORT": str(port)})
    await proxy.start()
    caller = calls.Caller(proxy.url, PROXY_KEY, behaviour="silent")
    load = asyncio.create_task(caller.send_all(range(2), calls.CallRecord(), concurrency=2))
    await provider.arrived(2)

    async def seen() -> Samples:
        return samples((await get(f"http://127.0.0.1:{port}/metrics")).text)

    found = await seen()
    assert found["open_llm_proxy_requests_in_flight"] == 2
    assert found["open_llm_proxy_draining"] == 0
    assert (await get(f"http://127.0.0.1:{port}/health")).status_code == 404
    proxy.terminate()

    async def is_draining() -> bool:
        return (await seen())["open_llm_proxy_draining"] == 1

    await wait_until(is_draining, "the metrics say that the server drains", 10)
    proxy.terminate()
    assert await proxy.wait() == 0
    await load


async def test_a_metrics_port_in_use_is_exit_code_3(
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = start_proxy(NOWHERE, {"METRICS_PORT": str(port)})
        await proxy.start(until=None)
        assert await proxy.wait() == 3
    assert f"METRICS_PORT={port}" in proxy.stderr_text()


async def test_strangers_learn_whether_it_works_and_nothing_else(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(NOWHERE, directory_store.env() | NO_PATIENCE)
    await proxy.start()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
        assert (await get(f"{proxy.url}/metrics", headers)).status_code == 401
        health = (await get(f"{proxy.url}/health", headers)).json()
        assert health.keys() == {"status", "version", "proxy_key_configured", "providers"}
        assert health["providers"] == {"nrp": {"configured": True}}
    health = (await get(f"{proxy.url}/health", WITH_KEY)).json()
    assert health["providers"]["nrp"]["endpoint"] == "http://127.0.0.1:9/v1/chat/completions"
    assert (health["status"], health["reasons"]) == ("ok", [])
    assert health["log"]["sink"] == f"dir:{directory_store.folder}"


async def test_uploads_that_fail_make_the_state_degraded_and_say_why(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider
) -> None:
    async with StubStore() as store:
        store.answer_always(403, "AccessDenied")
        proxy = start_proxy(one_provider(provider.url), store.env())
        await proxy.start()
        await calls.Caller(proxy.url, PROXY_KEY).send_all(range(2), calls.CallRecord())

        async def degraded() -> Any:
            health = await proxy.health()
            return health if health["status"] == "degraded" else None

        health = await wait_until(degraded, "the state is degraded", 20)
        assert any("403 AccessDenied: no permission" in reason for reason in health["reasons"])
        found = await scraped(proxy)
        assert found['open_llm_proxy_uploads_total{result="failed"}'] >= 1
        assert found["open_llm_proxy_queue_rows"] == 4


@pytest.mark.parametrize(
    ("log", "refusal", "part"),
    [
        ({}, None, None),
        ({"sink": "x", "last_error": None, "oldest_age_seconds": 899.0}, None, None),
        ({"sink": None, "reason": NO_SINK}, None, None),
        ({"sink": None, "reason": NO_CREDENTIALS}, None, "without S3 credentials"),
        ({"oldest_age_seconds": 901.0}, None, "waiting for their upload for 901 s"),
        ({"last_error": "s3://logs/ answered 500"}, None, "Uploads fail: s3://logs/ answered 500"),
        ({}, OSError("full"), "New calls are refused: full"),
    ],
)
def test_what_makes_the_state_degraded(
    log: dict[str, Any], refusal: Exception | None, part: str | None
) -> None:
    reasons = degraded_reasons(log, refusal, 300)
    assert [part in reason for reason in reasons if part] == [True] * (part is not None)
    assert bool(reasons) == (part is not None)


def results() -> Iterator[tuple[CallResult, float | None]]:
    """A result and the overhead of the call, closed at 10.0."""
    yield CallResult(started=1.0), None
    yield CallResult(started=1.0, forwarded_at=1.5), None
    yield CallResult(started=1.0, forwarded_at=1.5, provider_ended_at=9.0), 1.5
    yield CallResult(started=1.0, forwarded_at=1.5, provider_ended_at=11.0), 0.5


def test_the_proxy_s_own_time_leaves_out_the_provider_s() -> None:
    for result, overhead in results():
        assert result.overhead_seconds(10.0) == overhead


def test_token_counts_outlive_the_texts_and_unknown_ones_are_not_counted() -> None:
    result = CallResult(transcript=Transcript(prompt_tokens=7, completion_tokens=None))
    result.forget_texts()
    assert result.transcript is None
    metrics = Metrics([("nrp", "kimi")])
    metrics.count_call("nrp", "kimi", "/v1/chat/completions", result)
    found = samples(metrics.page({}).decode())
    tokens = 'open_llm_proxy_tokens_total{kind="%s",model="kimi",provider="nrp"}'
    assert (found[tokens % "prompt"], found[tokens % "completion"]) == (7, 0)


def test_no_series_is_made_for_a_code_that_is_not_known() -> None:
    metrics = Metrics()
    before = samples(metrics.page({}).decode()).keys()
    metrics.count_refusal("a-code-of-the-future")
    after = samples(metrics.page({}).decode())
    assert after.keys() == before
    assert after['open_llm_proxy_refused_total{code="other"}'] == 1
