"""Compressed answers that stand for far more than they are: a little work at a time, and an end."""

import gzip
import zlib

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.transcript.content_coding import Inflation
from open_llm_proxy.server.transcript.reader import TranscriptReader
from raw_client import request
from relay_calls import BEARER, CHAT, MIB, Relay, chat

pytest_plugins = ("relay_fixtures",)

UNITS = (b"\n", b"\r\n", b"\0", b"data: \n\n", b"data: x\n", b": \n", b"{},", b'"', b"[", b"a,b\n")


@pytest.mark.parametrize("unit", UNITS, ids=repr)
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_what_comes_out_is_bounded_by_what_went_in(unit: bytes, compress: object) -> None:
    bomb = compress(unit * (32 * MIB // len(unit)))  # type: ignore[operator]
    inflation = Inflation("deflate", 1 << 40)  # which reads gzip too
    sizes = [len(p) for i in range(0, len(bomb), 9999) for p in inflation.feed(bomb[i : i + 9999])]
    assert max(sizes) <= 16_384
    assert sum(sizes) <= max(MIB, 100 * len(bomb)) + 16_384
    assert inflation.is_too_large


def test_an_honest_answer_is_read_whole() -> None:
    whole = b"".join(b'data: {"id":"%032x","n":%d}\n\n' % (n * 7919**9, n) for n in range(50_000))
    inflation = Inflation("gzip", 1 << 40)
    assert b"".join(inflation.feed(gzip.compress(whole))) == whole
    assert inflation.problem is None


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json", None])
def test_each_step_reads_a_little(content_type: str | None) -> None:
    bomb = gzip.compress(b"\n" * (32 * MIB))
    reader = TranscriptReader(content_type, "gzip", 4 * MIB)
    steps = sum(1 for _ in reader.feed_in_steps(bomb))
    assert MIB // 16_384 <= steps <= 100 * len(bomb) // 16_384 + 2
    assert reader.finish().truncated


@pytest.mark.parametrize("content_type", [b"text/event-stream", b"application/json"])
async def test_the_client_gets_such_an_answer_as_it_came(
    relay: Relay, log: MemoryLog, content_type: bytes
) -> None:
    bomb = gzip.compress(b"data: \n\n" * (4 * MIB))
    head = b"Content-Type: %b\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n"
    relay.provider.shapes["it"] = [
        b"HTTP/1.1 200 OK\r\n" + head % (content_type, len(bomb)) + b"\r\n",
        bomb,
    ]
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, chat(1, "shape", name="it"), (BEARER,)))
        answer = await client.answer()
    assert answer.body == bomb and answer.is_complete
    assert len(log.responses) == 1
