"""The main job end to end against S3: calls with the SDK, a dated object, DuckDB over it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

import calls
import log_contract
import oracle
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from scripted_provider import ScriptedProvider
from stores import S3Store

pytestmark = pytest.mark.timeout(seconds=90)


async def everything_arrives(
    proxy: ProxyProcess, provider: ScriptedProvider, store: S3Store
) -> None:
    record = calls.CallRecord()
    await proxy.start()
    caller = calls.Caller(proxy.url, PROXY_KEY)
    await caller.send_all(range(40), record)
    proxy.kill()
    await proxy.wait()
    await proxy.start()
    await caller.send_all(range(40, 60), record)
    await proxy.drained()
    assert await proxy.stop() == 0
    assert len(record.answered) == 60
    seen = {call.number for call in provider.calls if call.number is not None}
    oracle.assert_nothing_lost(store.objects(), record, seen, window_seconds=1, prefix="team/logs/")


@pytest.fixture
def proxy_to(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider
) -> Callable[[S3Store], ProxyProcess]:
    def make(store: S3Store) -> ProxyProcess:
        return start_proxy(one_provider(provider.url), store.env() | {"LOG_PREFIX": "team/logs/"})

    return make


async def test_everything_arrives_in_s3(
    proxy_to: Callable[[S3Store], ProxyProcess], provider: ScriptedProvider, moto_store: S3Store
) -> None:
    await everything_arrives(proxy_to(moto_store), provider, moto_store)


@pytest.mark.rgw
async def test_everything_arrives_in_a_real_ceph_rgw(
    proxy_to: Callable[[S3Store], ProxyProcess], provider: ScriptedProvider, rgw_store: S3Store
) -> None:
    await everything_arrives(proxy_to(rgw_store), provider, rgw_store)


@pytest.mark.rgw
async def test_everything_arrives_in_a_real_ceph_rgw_over_https(
    proxy_to: Callable[[S3Store], ProxyProcess],
    provider: ScriptedProvider,
    rgw_tls_store: S3Store,
) -> None:
    await everything_arrives(proxy_to(rgw_tls_store), provider, rgw_tls_store)


async def test_thinking_is_translated_and_everything_else_is_forwarded_byte_for_byte(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider
) -> None:
    config = one_provider(provider.url, thinking_models={"kimi": "thinking"})
    proxy = start_proxy(config, {})
    await proxy.start()
    plain = b'{ "model":"kimi",\n "messages":[{"content":"a\\u00e9 1e400"}], "seed":1.0 }'
    asked = b'{"model":"kimi","enable_thinking":true,"x":1.50,"messages":[]}'
    unable = b'{"model":"other","enable_thinking":true,"messages":[]}'
    answers = [await send(proxy, body) for body in (plain, asked, unable)]
    first, second, third = (call.request.body for call in provider.calls)
    assert first == plain
    assert (
        second
        == b'{"model":"kimi","x":1.50,"messages":[],"chat_template_kwargs":{"thinking":true}}'
    )
    assert json.loads(third) == {"model": "other", "messages": []}
    assert ["\r\nx-proxy-warning:" in head.lower() for head in answers] == [False, False, True]
    assert await proxy.stop() == 0
    rows = log_contract.read_rows(proxy.stdout_lines())
    applied = [row["thinking_applied"] for row in rows if row["type"] == "request"]
    assert applied == [None, True, False]
    told = [row["proxy_warning"] for row in rows if row["type"] == "response"]
    warning = "enable_thinking has no effect on model 'other'"
    assert told == [None, None, warning]
    assert f"\r\nX-Proxy-Warning: {warning}\r\n" in answers[2]


async def send(proxy: ProxyProcess, body: bytes) -> str:
    """POST raw bytes on a plain socket; returns the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n"
        f"Authorization: Bearer {PROXY_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer: Any = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n\r\n")[0].decode()
