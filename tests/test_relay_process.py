"""The relay as a process: its stderr under faults, and its memory under a slow client."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from raw_client import RawClient, request
from relay_calls import BEARER, CHAT, chat
from scripted_provider import ScriptedProvider
from stores import DirectoryStore
from waiting import wait_until

MEGABYTE = 1_000_000
# What the proxy may need above its idle size, whatever the length of an answer.
EXTRA_BYTES = 40 * MEGABYTE


@pytest.fixture
def proxy(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> ProxyProcess:
    settings = {**directory_store.env(), "UPSTREAM_IDLE_TIMEOUT_SECONDS": "1"}
    return start_proxy(one_provider(provider.url), settings)


async def test_nothing_that_clients_and_providers_do_is_reported_on_stderr(
    proxy: ProxyProcess, provider: ScriptedProvider
) -> None:
    await proxy.start()
    behaviours = (
        "ok",
        "stall_after_headers",
        "stall_mid_stream",
        "reset_mid_chunk",
        "bad_chunking",
    )
    behaviours += ("short_body", "reset_before_headers", "huge_headers", "error_event", "error")

    async def to_the_end(number: int, behaviour: str) -> None:
        async with RawClient(proxy.port) as client:
            body = chat(number, behaviour, stream=number % 2 == 0)
            await client.send(request("POST", CHAT, body, (BEARER,)))
            await client.answer()

    async def leaving(number: int, behaviour: str, seconds: float) -> None:
        async with RawClient(proxy.port) as client:
            body = chat(number, behaviour, stream=number % 2 == 0)
            await client.send(request("POST", CHAT, body, (BEARER,)))
            await asyncio.sleep(seconds)  # any moment will do, the more of them the better
            client.reset()

    whole = [to_the_end(n, behaviours[n % len(behaviours)]) for n in range(40)]
    behaviours += ("silent",)
    broken = [leaving(n, behaviours[n % len(behaviours)], n % 13 / 100) for n in range(40, 140)]
    await asyncio.gather(*whole, *broken)
    await proxy.drained()
    assert await proxy.stop() == 0
    lines = proxy.stderr_text().splitlines()
    assert not [line for line in lines if "Traceback" in line or "rror" in line], lines


async def test_memory_does_not_grow_with_an_answer_that_a_slow_client_takes(
    proxy: ProxyProcess,
) -> None:
    megabytes = 60
    # The entry of the answer is small here: what passes is what counts.
    proxy.settings["LOG_TRANSCRIPT_MAX_BYTES"] = "65536"
    await proxy.start()
    headers = dict([BEARER])
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
        for number in (1, 2):  # what the first calls need stays
            body = chat(number, stream=True)
            assert (await http.post(proxy.url + CHAT, content=body)).status_code == 200
        idle = proxy.peak_memory_bytes()
        body = chat(3, "big", stream=True, megabytes=megabytes)
        taken = 0
        async with http.stream("POST", proxy.url + CHAT, content=body) as answer:
            async for piece in answer.aiter_raw():
                taken += len(piece)
                await asyncio.sleep(len(piece) / (50 * MEGABYTE))
        assert taken > 0.99 * megabytes * MEGABYTE
    grown = proxy.peak_memory_bytes() - idle
    assert grown < EXTRA_BYTES, f"grown by {grown / MEGABYTE:.1f} MB"


async def test_the_providers_socket_is_closed_when_a_client_of_the_process_leaves(
    proxy: ProxyProcess, provider: ScriptedProvider
) -> None:
    await proxy.start()
    async with RawClient(proxy.port) as client:
        await client.send(request("POST", CHAT, chat(1, "silent"), (BEARER,)))
        call = await provider.call(1)
    await asyncio.wait_for(call.closed.wait(), 3.0)
    lines = await wait_until(
        lambda: [line for line in proxy.stdout_lines() if "client_disconnected" in line],
        "the entry is printed",
    )
    assert len(lines) == 1 and PROXY_KEY not in lines[0]
