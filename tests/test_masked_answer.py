"""The provider's key reaches no client: whatever the status, the type, the coding and the cut."""

import gzip
import itertools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.relay.masked_answer import KeyMask, MaskedAnswer, masked
from proxy_process import PROVIDER_KEY
from raw_client import request
from relay_calls import BEARER, CHAT, DELTA, DONE, STOP, Relay, chat

pytest_plugins = ("relay_fixtures",)

KEY = "sk-abcabcabd-0123456789"
SLASHED = "sk-or/v1+secret/0123456789"
STARS = b"*" * len(KEY)


def fed(mask: KeyMask, pieces: Sequence[bytes]) -> bytes:
    return b"".join([mask.feed(piece) for piece in pieces]) + mask.finish()


PARTS = st.lists(
    st.sampled_from([KEY.encode(), b"sk-", b"sk-abc", b"s", b"abcabd", b" x\n", KEY.encode()[:-1]]),
    max_size=8,
).map(b"".join)


@given(PARTS, st.lists(st.integers(0, 60), max_size=6))
@settings(deadline=None, database=None, max_examples=400)
def test_wherever_it_is_cut_the_key_is_masked_and_nothing_else_changes(
    text: bytes, cuts: list[int]
) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(ends)]
    assert fed(KeyMask(KEY), pieces) == text.replace(KEY.encode(), STARS)


@given(PARTS, st.binary(max_size=3))
@settings(deadline=None, database=None, max_examples=300)
def test_only_what_may_be_the_beginning_of_the_key_waits(text: bytes, end: bytes) -> None:
    mask = KeyMask(KEY)
    passed = mask.feed(text + end)
    rest = text.replace(KEY.encode(), STARS) + end
    waiting = rest[len(passed) :]
    assert rest.startswith(passed) and KEY.encode().startswith(waiting)


@pytest.mark.parametrize("event", [DELTA, STOP, DONE, b": wait\n", b'data: {"a":"sk-"}\n\n'])
def test_no_event_waits(event: bytes) -> None:
    assert KeyMask(KEY).feed(event) == event


@pytest.mark.parametrize(
    "spelled",
    [SLASHED, SLASHED.replace("/", "\\/"), SLASHED.replace("/", "%2F").replace("+", "%2B")],
)
def test_a_key_is_known_as_json_and_urls_spell_it(spelled: str) -> None:
    text = f"a {spelled} b"
    assert masked(text, SLASHED) == f"a {'*' * len(spelled)} b"
    for size in (1, 2, 3, 7, 100):
        pieces = [text[i : i + size].encode() for i in range(0, len(text), size)]
        assert fed(KeyMask(SLASHED), pieces) == masked(text, SLASHED).encode()


def test_a_short_key_is_no_secret() -> None:
    assert fed(KeyMask("k" * 15), [b"k" * 40]) == b"k" * 40
    assert masked("k" * 40, "k" * 15) == "k" * 40


@dataclass
class Body:
    """An answer that comes from memory."""

    status: int
    headers: Headers
    pieces: list[bytes]
    reason: str = ""

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


async def test_an_error_that_inflates_without_end_is_cut() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    pieces = [bomb[i : i + 65_536] for i in range(0, len(bomb), 65_536)]
    source = MaskedAnswer(Body(500, Headers([("Content-Encoding", "gzip")]), pieces), KEY)
    size = 0
    while piece := await source.read():
        size += len(piece)
    assert size == 1 << 20


QUOTING = json.dumps(
    {"error": {"message": f"Incorrect API key provided: {PROVIDER_KEY}."}}
).encode()
JSON_TYPE = b"Content-Type: application/json\r\n"
STREAM_TYPE = b"Content-Type: text/event-stream\r\n"
EVENT = b"data: %b\n\n" % QUOTING
MID = QUOTING.index(PROVIDER_KEY.encode()) + 7


def answer(status: int, head: bytes, *pieces: bytes) -> list[bytes | float]:
    """A provider's chunked answer, each piece sent by itself."""
    raw: list[bytes | float] = [
        b"HTTP/1.1 %d %b\r\n%bTransfer-Encoding: chunked\r\n\r\n"
        % (status, PROVIDER_KEY.encode(), head)
    ]
    for piece in pieces:
        raw += [b"%x\r\n%b\r\n" % (len(piece), piece), 0.02]
    return [*raw, b"0\r\n\r\n"]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def coded(name: bytes) -> bytes:
    return JSON_TYPE + b"Content-Encoding: %b\r\n" % name


LEAKS = {
    "error": answer(401, JSON_TYPE, QUOTING),
    "error without type": answer(400, b"", QUOTING),
    "error as HTML": answer(502, b"Content-Type: text/html\r\n", b"<pre>%b</pre>" % QUOTING),
    "error as a stream": answer(401, STREAM_TYPE, EVENT, DONE),
    "error cut in two": answer(500, JSON_TYPE, QUOTING[:MID], QUOTING[MID:]),
    "error a byte at a time": answer(429, STREAM_TYPE, *cut(EVENT, 1)),
    "success": answer(200, JSON_TYPE, QUOTING),
    "success cut in two": answer(201, JSON_TYPE, QUOTING[:MID], QUOTING[MID:]),
    "stream": answer(200, STREAM_TYPE, DELTA, EVENT, STOP, DONE),
    "stream cut in two": answer(
        200, STREAM_TYPE, DELTA, EVENT[: MID + 6], EVENT[MID + 6 :], STOP, DONE
    ),
    "stream without type": answer(200, b"", DELTA + EVENT, STOP, DONE),
    "gzip error": answer(401, coded(b"gzip"), gzip.compress(QUOTING)),
    "x-gzip error": answer(403, coded(b"X-GZip"), gzip.compress(QUOTING)),
    "deflate error": answer(401, coded(b"deflate"), zlib.compress(QUOTING)),
    "gzip error cut": answer(400, coded(b"gzip"), *cut(gzip.compress(QUOTING), 9)),
    "gzip stream of an error": answer(
        401, STREAM_TYPE + b"Content-Encoding: gzip\r\n", gzip.compress(EVENT)
    ),
    "error in an unknown coding": answer(401, coded(b"br"), QUOTING),
    "error in two codings": answer(401, coded(b"gzip, gzip"), b"coded twice"),
    "headers": answer(
        200,
        JSON_TYPE + b"X-Echo: a %b b\r\nX-%b: 1\r\n" % ((PROVIDER_KEY.encode(),) * 2),
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
async def test_no_answer_and_no_row_holds_the_key(relay: Relay, log: MemoryLog, name: str) -> None:
    relay.provider.shapes["it"] = LEAKS[name]
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, chat(1, "shape", name="it"), (BEARER,)))
        got = await client.answer()
    assert got.is_complete
    body = got.body
    for coding in (gzip.decompress, zlib.decompress):
        try:
            body += coding(body)
        except (OSError, zlib.error):
            continue
    received = f"{got.reason} {got.headers} {body!r}"
    assert PROVIDER_KEY not in received and PROVIDER_KEY.lower() not in received.lower()
    assert PROVIDER_KEY not in str(log.rows)
    if "unknown" in name or "two codings" in name:
        assert "content coding" in got.error["message"]
    elif name != "headers":
        assert b"Incorrect API key provided: " + b"*" * len(PROVIDER_KEY) in body
    assert got.header("Content-Encoding") is None


async def test_a_compressed_success_passes_as_it_is(relay: Relay) -> None:
    whole = gzip.compress(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')
    relay.provider.shapes["it"] = answer(200, coded(b"gzip"), whole[:9], whole[9:])
    got = await relay.ask(1, "shape", name="it")
    assert (got.body, got.header("Content-Encoding")) == (whole, "gzip")


async def test_the_list_of_models_does_not_hold_it(relay: Relay) -> None:
    relay.provider.models = ("kimi", f"leak-{PROVIDER_KEY}")
    async with relay.connection() as client:
        await client.send(request("GET", "/v1/models", None, (BEARER,)))
        got = await client.answer()
    assert PROVIDER_KEY.encode() not in got.body
    assert b"leak-" + b"*" * len(PROVIDER_KEY) in got.body
