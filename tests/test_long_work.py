"""What is long is worked on beside the event loop, and every call still has its two rows."""

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.entries.call_entries import CallEntries
from open_llm_proxy.server.long_work import LONG_BYTES
from open_llm_proxy.server.redaction.redactor import RowRedactor
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, quickly
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

MAIN = threading.main_thread()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """Those in which texts of this test are searched for credentials."""
    seen: set[threading.Thread] = set()
    redact = RowRedactor.text

    def watched(self: RowRedactor, text: str) -> str:
        if "landmark" in text:
            seen.add(threading.current_thread())
        return redact(self, text)

    monkeypatch.setattr(RowRedactor, "text", watched)
    return seen


def body(size: int) -> bytes:
    content = "landmark " * (size // 9)
    return json.dumps(
        {"model": "kimi", "messages": [{"role": "user", "content": content}]}
    ).encode()


@pytest.mark.parametrize("size", [100, 2 * LONG_BYTES])
async def test_a_long_body_is_searched_in_a_thread_and_a_short_one_in_the_loop(
    relay: Relay, log: MemoryLog, threads: set[threading.Thread], size: int
) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body(size), (BEARER,)))
        await quickly(client.answer())
    assert len(log.responses) == 1
    assert (MAIN in threads, len(threads)) == (size < LONG_BYTES, 1)


class Held:
    """Long work that begins and then waits for the test."""

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), threading.Event()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held, set_request = Held(), CallEntries.set_request
    loop = asyncio.get_event_loop_policy().get_event_loop()

    def waiting(self: CallEntries, read: object) -> None:
        loop.call_soon_threadsafe(held.begun.set)
        held.may_end.wait(20)
        set_request(self, read)  # type: ignore[arg-type]

    monkeypatch.setattr(CallEntries, "set_request", waiting)
    yield held
    held.may_end.set()


async def test_others_are_served_while_a_long_body_is_read(relay: Relay, held: Held) -> None:
    async with relay.connection() as slow, relay.connection() as other:
        await slow.send(request("POST", CHAT, body(LONG_BYTES + 9000), (BEARER,)))
        await quickly(held.begun.wait())
        await other.send(request("GET", "/health"))
        assert (await quickly(other.answer())).status == 200
        held.may_end.set()
        await quickly(slow.answer())


# Of the longer one more waits unread for a moment than the connection is read for.
@pytest.mark.parametrize("size", [LONG_BYTES + 9000, 2 * LONG_BYTES])
async def test_a_client_that_leaves_meanwhile_is_logged_and_costs_no_call(
    relay: Relay, log: MemoryLog, held: Held, size: int
) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body(size), (BEARER,)))
        await quickly(held.begun.wait())
    await wait_until(lambda: relay.services.bodies.held_bytes == 0, "the body was forgotten")
    held.may_end.set()
    assert (await log.closed())["outcome"] == "client_disconnected"
    assert not relay.provider.calls


async def test_a_server_that_leaves_meanwhile_waits_and_ends_the_call_visibly(
    relay: Relay, log: MemoryLog, held: Held
) -> None:
    lifecycle = relay.services.lifecycle
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body(LONG_BYTES + 9000), (BEARER,)))
        await quickly(held.begun.wait())
        assert not await lifecycle.wait_idle(0)
        lifecycle.interrupt_all()
        held.may_end.set()
        answer = await quickly(client.answer())
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert await lifecycle.wait_idle(10)
    assert [row["outcome"] for row in log.responses] == ["interrupted"]
    assert not relay.provider.calls
