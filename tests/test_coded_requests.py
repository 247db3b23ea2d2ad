"""Compressed request bodies: decoded within bounds, or refused with a reason; never logged."""

import gzip
import json
import zlib
from collections.abc import Callable

import pytest

from memory_log import MemoryLog
from raw_client import Answer, chunked_request, request
from relay_calls import BEARER, CHAT, MIB, Relay, chat, quickly

pytest_plugins = ("relay_fixtures",)

BODY = chat(1)
LIMIT = 4 * MIB  # the fixtures'


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:20]) + gzip.compress(data[20:])


def identity(data: bytes) -> bytes:
    return data


TAKEN = [
    ("gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("gzip", two_members),
    ("identity, gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("identity", identity),
    ("", identity),
]


async def ask(relay: Relay, coding: str, body: bytes, *, chunked: bool = False) -> Answer:
    headers = (BEARER, ("Content-Encoding", coding))
    async with relay.connection() as client:
        if chunked:
            await client.send(chunked_request(CHAT, [body[:7], body[7:]], headers))
        else:
            await client.send(request("POST", CHAT, body, headers))
        return await quickly(client.answer())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("coding", "encode"), TAKEN)
async def test_a_coded_body_goes_on_decoded(
    relay: Relay, log: MemoryLog, coding: str, encode: Callable[[bytes], bytes], chunked: bool
) -> None:
    answer = await ask(relay, coding, encode(BODY), chunked=chunked)
    assert answer.status == 200
    sent = relay.provider.calls[-1].request
    assert sent.body == BODY
    assert sent.header("Content-Encoding") is None
    assert sent.header("Content-Length") == str(len(BODY))
    asked, answered = log.the_call()
    assert (asked["request_bytes"], answered["outcome"]) == (len(BODY), "ok")
    assert asked["user_question"] == json.loads(BODY)["messages"][0]["content"]


GZIP = gzip.compress(BODY)
BROKEN = [
    ("gzip", b""),
    ("gzip", BODY),
    ("gzip", GZIP[:-1]),
    ("gzip", GZIP[: len(GZIP) // 2]),
    ("gzip", GZIP[:-8] + b"\0" * 8),
    ("gzip", GZIP + b"\0"),
    ("gzip", GZIP + b"trailing"),
    ("gzip", GZIP + b"\x1f\x8b"),
    ("gzip", gzip.compress(b"") * 1_000 + GZIP),
    ("gzip", zlib.compress(BODY)),
    ("deflate", b""),
    ("deflate", zlib.compress(BODY)[:-1]),
    ("deflate", zlib.compress(BODY)[:-1] + b"\0"),
    ("deflate", zlib.compress(BODY) + b"x"),
    ("deflate", raw_deflate(BODY) + b"x"),
    ("deflate", raw_deflate(BODY)[:-3]),
    ("deflate", GZIP),
]


@pytest.mark.parametrize(
    ("coding", "body"), BROKEN, ids=lambda value: repr(value[-12:] if value else value)
)
async def test_a_body_that_is_not_what_it_says_is_refused_and_logged_without_its_bytes(
    relay: Relay, log: MemoryLog, coding: str, body: bytes
) -> None:
    answer = await ask(relay, coding, body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_encoding")
    asked, answered = log.the_call()
    assert (answered["outcome"], answered["status"]) == ("rejected", 400)
    assert coding in answered["error"]
    assert asked["user_question"] is None
    assert not relay.provider.calls


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip", "gzip;q=1", "x", "br, gzip"]
)
@pytest.mark.parametrize("size", [100, 100_000])
async def test_another_coding_is_refused_and_told_which_ones_there_are(
    relay: Relay, log: MemoryLog, coding: str, size: int
) -> None:
    answer = await ask(relay, coding, b"\xff\x00" * (size // 2))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")
    assert repr(coding) in answer.error["message"] and "gzip" in answer.error["message"]
    assert answer.header("Accept-Encoding") == "gzip, deflate"
    asked, answered = log.the_call()
    assert (answered["outcome"], answered["status"]) == ("rejected", 415)
    assert asked["user_question"] is None and not relay.provider.calls


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
async def test_what_a_body_decodes_to_has_the_bound_of_bodies(
    relay: Relay, log: MemoryLog, encode: Callable[[bytes], bytes]
) -> None:
    coding = "gzip" if encode is gzip.compress else "deflate"
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (64 * LIMIT, 413)):
        answer = await ask(relay, coding, encode(BODY.ljust(size)))
        assert answer.status == status
    assert answer.error["code"] == "request_too_large"
    assert [row["status"] for row in log.responses] == [200, 413, 413]
    assert all(row["user_question"] is None for row in log.requests[1:])
    assert [call.request.body for call in relay.provider.calls] == [BODY.ljust(LIMIT)]


@pytest.mark.parametrize("relay_settings", [{"max_bodies_bytes": 3 * MIB}])
async def test_what_bodies_decode_to_counts_in_the_bound_of_all_bodies(
    relay: Relay, log: MemoryLog
) -> None:
    answer = await ask(relay, "gzip", gzip.compress(BODY.ljust(LIMIT)))
    assert (answer.status, answer.error["code"]) == (503, "too_many_bodies")
    assert (await ask(relay, "gzip", GZIP)).status == 200, "nothing is held of the refused one"
    assert [row["status"] for row in log.responses] == [503, 200]


async def test_a_stranger_is_told_of_the_key_first(relay: Relay, log: MemoryLog) -> None:
    for coding in ("br", "gzip"):
        async with relay.connection() as client:
            headers = (("Content-Encoding", coding),)
            await client.send(request("POST", CHAT, b"\xff", headers))
            assert (await client.answer()).status == 401
    assert not log.rows
