"""Name look-ups of the upstream client: shared, and served by the last answer where they fail."""

import asyncio
import socket
from typing import Any

import pytest
from tornado.netutil import Resolver

from open_llm_proxy.server.upstream.shared_dns import SharedLookups

NAME = ("api.example.com", 443)
ADDRESSES = [(socket.AF_INET, ("192.0.2.1", 443))]


class HeldResolver(Resolver):
    """Answers with `answer`, or raises it, once `release` is set."""

    def initialize(self, answer: object = ADDRESSES) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int]] = []
        self.release = asyncio.Event()

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        self.asked.append((host, port))
        await self.release.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


async def asked_together(lookups: SharedLookups, count: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(lookups.resolve(*NAME)) for _ in range(count)]
    for _ in range(2):  # one turn for the tasks, one for the look-up
        await asyncio.sleep(0)
    return tasks


async def test_those_who_ask_at_the_same_time_share_one_look_up() -> None:
    resolver = HeldResolver()
    lookups = SharedLookups(resolver)
    tasks = await asked_together(lookups, 100)
    assert resolver.asked == [NAME]
    resolver.release.set()
    assert await asyncio.gather(*tasks) == [ADDRESSES] * 100
    await lookups.resolve(*NAME)
    assert resolver.asked == [NAME, NAME]


async def test_other_names_and_ports_are_asked_for_by_themselves() -> None:
    resolver = HeldResolver()
    lookups = SharedLookups(resolver)
    resolver.release.set()
    wanted = [NAME, ("api.example.com", 80), ("b.example.com", 443)]
    await asyncio.gather(*(lookups.resolve(*name) for name in wanted))
    assert resolver.asked == wanted


async def test_a_failure_reaches_all_and_is_not_kept() -> None:
    busy = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    resolver = HeldResolver(busy)
    lookups = SharedLookups(resolver)
    tasks = await asked_together(lookups, 3)
    resolver.release.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [busy] * 3
    resolver.answer = ADDRESSES
    assert await lookups.resolve(*NAME) == ADDRESSES


PASSING = [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM]


@pytest.mark.parametrize("code", PASSING)
async def test_a_name_server_that_is_away_is_replaced_by_the_last_answer(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = HeldResolver()
    resolver.release.set()
    lookups = SharedLookups(resolver)
    assert await lookups.resolve(*NAME) == ADDRESSES
    resolver.answer = socket.gaierror(code, "Temporary failure in name resolution")
    for _ in range(20):
        assert await lookups.resolve(*NAME) == ADDRESSES
    assert len(resolver.asked) == 21  # each look-up is tried
    with pytest.raises(socket.gaierror):
        await lookups.resolve("other.example.com", 443)
    resolver.answer = [(socket.AF_INET, ("192.0.2.2", 443))]
    assert await lookups.resolve(*NAME) == resolver.answer
    assert [record.getMessage() for record in caplog.records] == [
        "api.example.com cannot be resolved (Temporary failure in name resolution); "
        "using its last address",
        "api.example.com is resolved again",
    ]


async def test_a_name_server_that_does_not_answer_delays_nobody_for_long() -> None:
    resolver = HeldResolver()
    resolver.release.set()
    lookups = SharedLookups(resolver, patience_seconds=0.01)
    await lookups.resolve(*NAME)
    resolver.release.clear()
    resolver.answer = [(socket.AF_INET, ("192.0.2.2", 443))]
    for _ in range(3):
        assert await lookups.resolve(*NAME) == ADDRESSES
    assert len(resolver.asked) == 2  # the look-up goes on, and others join it
    resolver.release.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert await lookups.resolve(*NAME) == resolver.answer


async def test_a_name_that_is_gone_is_gone() -> None:
    resolver = HeldResolver()
    resolver.release.set()
    lookups = SharedLookups(resolver)
    await lookups.resolve(*NAME)
    resolver.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(socket.gaierror, match="not known"):
        await lookups.resolve(*NAME)


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    resolver = HeldResolver()
    lookups = SharedLookups(resolver)
    first, second = await asked_together(lookups, 2)
    first.cancel()
    await asyncio.sleep(0)
    resolver.release.set()
    assert await second == ADDRESSES
    assert first.cancelled()


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolver = HeldResolver(OSError("late"))
    lookups = SharedLookups(resolver)
    (task,) = await asked_together(lookups, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    resolver.release.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not lookups._under_way and not caplog.records


async def test_closing_gives_up_what_is_under_way() -> None:
    lookups = SharedLookups(HeldResolver())
    (task,) = await asked_together(lookups, 1)
    lookups.close()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("192.0.2.7", socket.AF_UNSPEC, (socket.AF_INET, ("192.0.2.7", 443))),
        ("192.0.2.7", socket.AF_INET, (socket.AF_INET, ("192.0.2.7", 443))),
        ("2001:db8::1", socket.AF_UNSPEC, (socket.AF_INET6, ("2001:db8::1", 443, 0, 0))),
    ],
)
async def test_an_address_needs_no_look_up(
    host: str, family: socket.AddressFamily, address: tuple[int, Any]
) -> None:
    resolver = HeldResolver()
    assert await SharedLookups(resolver).resolve(host, 443, family) == [address]
    assert not resolver.asked


@pytest.mark.parametrize("host", ["127.1", "fe80::1%lo", "", "a\0b"])
async def test_what_only_looks_like_an_address_is_looked_up(host: str) -> None:
    resolver = HeldResolver()
    resolver.release.set()
    assert await SharedLookups(resolver).resolve(host, 443) == ADDRESSES
    assert resolver.asked == [(host, 443)]
