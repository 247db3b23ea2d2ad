"""The relay on the real queue: what is in the objects afterwards."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import log_contract
from known_content import answer_content
from open_llm_proxy.queue.log_queue import LogQueue
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.sinks import DirectorySink
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.entries.log import QueuedLog
from open_llm_proxy.server.entries.stdout import StdoutLines
from raw_client import request
from relay_calls import BEARER, CHAT, MIB, Relay

pytest_plugins = ("relay_fixtures",)


@pytest.fixture
def durable_lines() -> list[bytes]:
    """The lines in the order in which they became durable."""
    return []


@pytest.fixture
def log(io_loop: IOLoop, tmp_path: Path, durable_lines: list[bytes]) -> Iterator[QueuedLog]:
    """The durable queue with a folder as sink."""

    async def start() -> QueuedLog:
        birth = Meta(
            window_seconds=60,
            object_max_bytes=MIB,
            log_format=Provenance("0", "0" * 64, "test").log_format(),
        )
        sink = DirectorySink(tmp_path / "objects")
        queue = LogQueue.start(
            tmp_path / "queue",
            birth,
            sink,
            64 * MIB,
            Adoption,
            on_committed=durable_lines.extend,
            on_broken=lambda broken: pytest.fail(str(broken)),
        )
        return QueuedLog(queue, StdoutLines(nowhere))

    with (tmp_path / "stdout").open("wb") as stdout:
        nowhere = stdout.fileno()
        log = io_loop.run_sync(start)
        yield log
        if list((tmp_path / "queue").iterdir()):
            io_loop.run_sync(lambda: log.close(10.0))


async def uploaded_rows(log: QueuedLog, folder: Path) -> list[dict[str, Any]]:
    """Close the queue and read all objects, in the order of seq."""
    assert await log.close(10.0)
    return sorted(log_contract.read_rows(lines_in(folder)), key=lambda row: int(row["seq"]))


def lines_in(folder: Path) -> list[bytes]:
    """The lines of all objects but their heads."""
    objects = [path.read_text() for path in folder.glob("*/*.jsonl")]
    rows = "".join(map(log_contract.without_head, objects))
    return rows.encode().splitlines(keepends=True)


async def test_every_request_row_has_one_response_row_whatever_became_of_the_call(
    relay: Relay, log: QueuedLog, tmp_path: Path, durable_lines: list[bytes]
) -> None:
    async def answered(number: int, behaviour: str, stream: bool) -> None:
        await relay.ask(number, behaviour, stream=stream)

    async def refused() -> None:
        async with relay.connection() as client:
            await client.send(request("POST", CHAT, b"{}", (BEARER,)))
            assert (await client.answer()).status == 400

    async def left(number: int, behaviour: str) -> None:
        async with relay.asking(number, behaviour, stream=True) as client:
            await relay.provider.call(number)
            client.reset()

    behaviours = ("ok", "reasoning", "error", "error_event", "reset_mid_chunk", "short_body")
    calls = [
        answered(number, behaviours[number % len(behaviours)], stream=number % 2 == 0)
        for number in range(1, 37)
    ]
    calls += [left(number, "stall_mid_stream") for number in range(37, 43)]
    await asyncio.gather(*calls, *(refused() for _ in range(6)))
    rows = await uploaded_rows(log, tmp_path / "objects")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    requests = [row["request_id"] for row in rows if row["type"] == "request"]
    responses = [row["request_id"] for row in rows if row["type"] == "response"]
    assert len(requests) == 48 and sorted(requests) == sorted(responses)
    outcomes = [row["outcome"] for row in rows if row["type"] == "response"]
    assert outcomes.count("client_disconnected") == 6 and outcomes.count("rejected") == 6
    assert outcomes.count("ok") >= 12 and "interrupted" not in outcomes
    assert sorted(durable_lines) == sorted(lines_in(tmp_path / "objects"))


async def test_an_answer_that_a_client_has_is_already_in_the_queue(
    relay: Relay, log: QueuedLog, tmp_path: Path, durable_lines: list[bytes]
) -> None:
    for number, stream in ((1, False), (2, True)):
        async with relay.asking(number, stream=stream) as client:
            await client.begin()
            while await client.piece():
                pass
            row = json.loads(durable_lines[-1])
            assert (row["type"], row["content"]) == ("response", answer_content(number))
    assert len(await uploaded_rows(log, tmp_path / "objects")) == 4
