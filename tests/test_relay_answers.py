"""What a client gets is what the provider sent: statuses, headers, every byte of the body."""

import asyncio
import gc
import itertools
import json
import random
import ssl
from collections.abc import Sequence

import pytest

import wire
from memory_log import MemoryLog
from proxy_process import PROVIDER_KEY, PROXY_KEY
from raw_client import Answer, RawClient, request
from relay_calls import BEARER, CHAT, Relay, chat
from response_shapes import SHAPES, ResponseShape
from scripted_provider import ScriptedProvider

pytest_plugins = ("relay_fixtures",)

REDIRECTS = (301, 302, 303, 305, 307, 308)

# Headers that differ on purpose: framing, the proxy's own, and those of the policy.
FRAMING = {"content-length", "transfer-encoding"}
ADDED = {"date", "x-proxy-request-id", "access-control-allow-origin", "cache-control"}
ADDED |= {"access-control-expose-headers", "x-accel-buffering"}

Pieces = Sequence[bytes | float]


def head(status: int, *headers: tuple[str, str], reason: str = "Scripted") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status: int, body: bytes, *headers: tuple[str, str]) -> list[bytes]:
    return [head(status, *headers, ("Content-Length", str(len(body)))) + body]


def chunked(status: int, pieces: Sequence[bytes], *headers: tuple[str, str]) -> list[bytes]:
    """Each chunk is a write of its own."""
    first = head(status, *headers, ("Transfer-Encoding", "chunked"))
    return [first, *(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces), b"0\r\n\r\n"]


def cut(body: bytes, seed: str) -> list[bytes]:
    """A body in a few pieces, cut at places that depend on `seed` alone."""
    places = random.Random(seed).choices(range(1, max(2, len(body))), k=7)
    edges = [0, *sorted(set(places)), len(body)]
    return [piece for a, b in itertools.pairwise(edges) if (piece := body[a:b])]


async def relayed(relay: Relay, pieces: Pieces, *, close: int = 0, stream: bool = False) -> Answer:
    """The answer to a call that the provider answers with these raw bytes, through the relay."""
    relay.provider.shapes["it"] = pieces
    return await relay.ask(1, "shape", stream=stream, name="it", close=close)


async def direct(relay: Relay, client: RawClient, pieces: Pieces, *, stream: bool) -> Answer:
    """The same answer without the relay, by a client of the provider."""
    relay.provider.shapes["it"] = pieces
    await client.send(request("POST", CHAT, chat(1, "shape", stream=stream, name="it")))
    return await client.answer()


def end_to_end(answer: Answer) -> list[tuple[str, str]]:
    return sorted(
        (name.lower(), value)
        for name, value in answer.headers
        if name.lower() not in FRAMING | ADDED
    )


@pytest.fixture
def upstream(request: pytest.FixtureRequest) -> ScriptedProvider:
    """A test chooses by its parameter: http, or https."""
    scheme = getattr(request, "param", "http")
    chosen: ScriptedProvider = request.getfixturevalue(
        "tls_provider" if scheme == "https" else "provider"
    )
    return chosen


@pytest.mark.parametrize("upstream", ["http", "https"], indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_every_shape_of_answer_passes_byte_for_byte(
    relay: Relay, log: MemoryLog, shape: ResponseShape, certificates: wire.Certificates
) -> None:
    https = relay.provider.url.startswith("https:")
    tls = ssl.create_default_context(cafile=certificates.authority) if https else None
    kind = (("Content-Type", shape.content_type),) if shape.content_type else ()
    headers = (*kind, ("X-Request-Id", "r-1"), ("OpenAI-Version", "2020-10-01"))
    framings = [
        chunked(shape.status, cut(shape.body, shape.name), *headers),
        chunked(shape.status, [shape.body] if shape.body else [], *headers),
        whole(shape.status, shape.body, *headers),
    ]
    if https:
        del framings[1:]  # TLS ends below the framing; its records are cut like the writes.
    async with RawClient(relay.provider.port, tls) as client:
        for pieces, stream in itertools.product(framings, {shape.is_stream, True}):
            seen = await direct(relay, client, pieces, stream=stream)
            got = await relayed(relay, pieces, stream=stream)
            assert (got.status, got.body, got.is_complete) == (seen.status, seen.body, True)
            assert end_to_end(got) == end_to_end(seen)
            assert log.responses[-1]["status"] == shape.status
    assert len(log.requests) == len(log.responses) and not log.closed_twice


async def test_a_body_that_ends_with_the_connection_passes(relay: Relay, log: MemoryLog) -> None:
    pieces = [head(200, ("Content-Type", "application/json")), b'{"a":', b" 1}"]
    answer = await relayed(relay, pieces, close=1)
    assert (answer.status, answer.body, answer.is_complete) == (200, b'{"a": 1}', True)


@pytest.mark.parametrize("coding", ["gzip", "br"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_content_coding_passes_as_it_is(
    relay: Relay, log: MemoryLog, stream: bool, coding: str
) -> None:
    if coding == "gzip":
        answer = await relay.ask(1, "gzipped", stream=stream)
        assert answer.body.startswith(b"\x1f\x8b")
        assert log.the_call()[1]["content"].startswith("answer 000001")
    else:
        kind = "text/event-stream" if stream else "application/json"
        headers = (("Content-Type", kind), ("Content-Encoding", "br"))
        answer = await relayed(relay, whole(200, b"\x0b\x02\x80?\x03", *headers), stream=stream)
        assert answer.body == b"\x0b\x02\x80?\x03"
    assert answer.header("Content-Encoding") == coding and answer.is_complete
    assert log.the_call()[1]["outcome"] == "ok"


@pytest.mark.parametrize("status", [201, 202, 300, 400, 418, 422, 451, 500, 503, 599, 999])
async def test_any_status_but_a_redirect_passes(relay: Relay, log: MemoryLog, status: int) -> None:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    answer = await relayed(relay, whole(status, body))
    assert (answer.status, answer.reason, answer.body) == (status, "Scripted", body)
    _, response = log.the_call()
    outcome = "ok" if status < 300 else "upstream_error"
    assert (response["outcome"], response["status"]) == (outcome, status)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "has_location"),
    [(300, True), *((status, where) for status in REDIRECTS for where in (True, False))],
)
async def test_a_redirect_is_neither_followed_nor_passed_on(
    relay: Relay, log: MemoryLog, status: int, stream: bool, has_location: bool
) -> None:
    """An SDK would follow it past the log, and with it whatever the client's prompt holds."""
    elsewhere = f"{relay.provider.url}/elsewhere"
    location = (("Location", elsewhere),) if has_location else ()
    relay.provider.shapes["it"] = whole(status, b"{}", *location)
    answer = await relay.ask(1, "shape", name="it", stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "upstream_redirect")
    endpoint = f"{relay.provider.url}/v1/chat/completions"
    assert endpoint in answer.error["message"] and str(status) in answer.error["message"]
    assert elsewhere not in f"{answer.headers}{answer.body!r}" and not answer.header("Location")
    assert len(relay.provider.calls) == 1
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_error", 502)
    assert str(status) in response["error"]
    headers = json.loads(response["upstream_headers_json"] or "{}")
    assert headers.get("location") == (elsewhere if has_location else None)


@pytest.mark.parametrize("length", [(), ("0",), ("17",)], ids=["no length", "0", "17"])
@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(
    relay: Relay, log: MemoryLog, status: int, length: tuple[str, ...]
) -> None:
    headers = [("Content-Length", value) for value in length]
    async with relay.connection() as client:
        relay.provider.shapes["it"] = [head(status, *headers)]
        for _ in range(2):  # The second one shows that the connection is in order.
            await client.send(request("POST", CHAT, chat(1, "shape", name="it"), (BEARER,)))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.is_complete) == (status, b"", True)
            assert not answer.all("Content-Length") and not answer.all("Transfer-Encoding")
    assert [row["status"] for row in log.responses] == [status, status]


async def test_informational_answers_are_left_out(relay: Relay, log: MemoryLog) -> None:
    answer = await relay.ask(1, "informational")
    assert (answer.status, answer.header("Link")) == (200, None)
    assert log.the_call()[1]["outcome"] == "ok"


@pytest.mark.parametrize(
    ("reason", "passed"),
    [("", "OK"), ("Très bien", None), ("A<b>", "Unknown"), ("I'm fine, thanks", None)],
    ids=["none", "not ASCII", "markup", "long"],
)
async def test_odd_reason_phrases_do_no_harm(relay: Relay, reason: str, passed: str | None) -> None:
    answer = await relayed(relay, [head(200, ("Content-Length", "2"), reason=reason) + b"{}"])
    assert (answer.status, answer.reason, answer.body) == (200, passed or reason, b"{}")


async def test_odd_header_values_pass_as_they_are(relay: Relay) -> None:
    odd = [("X-Empty", ""), ("X-Latin", "gr\xfc\xdfe"), ("X-Tab", "a\tb"), ("X-Long", "x" * 20_000)]
    odd += [("x-MiXed", '"quoted, with comma"'), ("X-Utf8", "海".encode().decode("latin-1"))]
    answer = await relayed(relay, whole(200, b"{}", *odd))
    for name, value in odd:
        assert answer.header(name) == value


async def test_a_length_goes_on_without_its_zeros(relay: Relay) -> None:
    answer = await relayed(relay, [head(200, ("Content-Length", "002")) + b"{}"])
    assert (answer.header("Content-Length"), answer.body) == ("2", b"{}")


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 2", "Content-Length: 20"],
        ["Content-Length: 2", "Content-Length: 2"],
        ["Content-Length: 2, 2"],
        ["Content-Length: 2", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Content-Length: +2"],
        ["Content-Length: 2", "X-A: b\rX-B: c"],
        ["Content-Length: 2", "X-A: b\0c"],
        ["Content-Length: 2", "X A: b"],
        ["Content-Length: 2", "X-A: b", " folded: c"],
    ],
    ids=lambda lines: "; ".join(lines).encode("unicode_escape").decode(),
)
async def test_an_answer_whose_end_is_not_certain_is_refused(
    relay: Relay, log: MemoryLog, lines: list[str]
) -> None:
    raw = ("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines) + "\r\n\r\n{}").encode("latin-1")
    answer = await relayed(relay, [raw], close=1)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_unreachable", 502)


async def test_no_second_answer_hides_behind_the_first(relay: Relay, log: MemoryLog) -> None:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsmuggled!"
    answer = await relayed(relay, [whole(200, b"{}")[0] + smuggled])
    assert answer.body == b"{}"
    assert (await relay.ask(2)).body != b"smuggled!"
    assert relay.provider.calls[0].connection != relay.provider.calls[1].connection


@pytest.mark.parametrize("size", [1, 7, 64_000])
async def test_a_provider_that_quotes_its_key_does_not_give_it_to_the_client(
    relay: Relay, log: MemoryLog, size: int
) -> None:
    body = b'{"error": {"message": "wrong key ' + PROVIDER_KEY.encode() + b', sorry"}}'
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    answer = await relayed(relay, chunked(401, pieces, ("X-Debug", f"key={PROVIDER_KEY}")))
    mask = "*" * len(PROVIDER_KEY)
    assert answer.body == body.replace(PROVIDER_KEY.encode(), mask.encode())
    assert answer.header("X-Debug") == f"key={mask}"
    text = str(log.rows)
    assert PROVIDER_KEY not in text and PROXY_KEY not in text and "wrong key" in text


async def test_a_stream_that_says_it_is_something_else_still_ends_after_its_entry(
    relay: Relay, log: MemoryLog
) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    done, more = b"data: [DONE]\n\n", b": afterwards\n\n"
    raw = chunked(200, [event, event, done, more], ("Content-Type", "text/plain"))
    relay.provider.shapes["it"] = [part for piece in raw for part in (piece, 0.01)]
    log.closings.hold()
    async with relay.asking(1, "shape", stream=True, name="it") as client:
        answer = await client.begin()
        rest = asyncio.ensure_future(client.finish(answer))
        await log.changes.until(lambda: log.closings.arrived, "the closing entry is handed over")
        await relay.turns()
        assert answer.body.startswith(event) and done not in answer.body
        log.closings.release()
        await rest
    assert answer.body == 2 * event + done + more


@pytest.mark.parametrize(("behaviour", "stream"), [("ok", False), ("stream", True)])
async def test_a_call_leaves_nothing_to_the_garbage_collector(
    relay: Relay, behaviour: str, stream: bool
) -> None:
    async with relay.connection() as client:

        async def call(number: int) -> None:
            body = chat(number, behaviour, stream=stream)
            await client.send(request("POST", CHAT, body, (BEARER,)))
            assert (await client.answer()).status == 200

        await call(1)
        gc.collect()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            for number in range(2, 6):
                await call(number)
            gc.collect()
            left = {f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    # A stream's transcript is pieces that know each other; they are few.
    left = {name for name in left if not name.startswith("open_llm_proxy.server.transcript.")}
    assert not [name for name in left if name.startswith(("open_llm", "tornado", "httptools"))]
