"""Requests as clients send them, and as they should not: refused in order, and in time."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.health import RootHandler
from open_llm_proxy.server.http1 import connection
from open_llm_proxy.server.http1.server import ClientServer
from proxy_process import PROXY_KEY
from raw_client import chunked_request, request
from relay_calls import BEARER, CHAT, MIB, Relay, chat, chat_fields, events, quickly

pytest_plugins = ("relay_fixtures",)

WRONG = ("Authorization", "Bearer wrong")
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
BIG = 6 * MIB  # over the fixtures' limit of 4 MiB
REFUSED = [
    pytest.param(401, "invalid_api_key", b"{}", WRONG, id="wrong key"),
    pytest.param(400, "invalid_json", b"no JSON", BEARER, id="no JSON"),
    pytest.param(400, "invalid_body", b"[]", BEARER, id="no object"),
    pytest.param(400, "missing_model", b'{"model": ""}', BEARER, id="no model"),
    pytest.param(400, "invalid_json", b"[" * 100_000, BEARER, id="too deep"),
]


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ROUTES)
async def test_other_methods_are_told_which_ones_there_are(
    relay: Relay, log: MemoryLog, path: str, method: str
) -> None:
    async with relay.connection() as client:
        await client.send(request(method, path, None, (BEARER,)))
        if method == "HEAD":
            answer = await client.begin()
        else:
            answer = await client.answer()
            assert answer.error["code"] == "method_not_allowed"
        assert (answer.status, answer.header("Allow")) == (405, "POST, OPTIONS")
        assert answer.header("Access-Control-Allow-Origin") == "*"
    assert not log.rows and not relay.provider.calls


@pytest.mark.parametrize("size", [0, 1000, BIG])
async def test_another_method_with_a_body_is_refused_as_well(relay: Relay, size: int) -> None:
    async with relay.connection() as client:
        body = b"x" * size
        await client.send(request("PUT", CHAT, body, (BEARER,))[:100_000])
        assert (await quickly(client.answer())).status == 405


@pytest.mark.parametrize(("status", "code", "body", "authorization"), REFUSED)
async def test_a_connection_stays_usable_after_a_refusal(
    relay: Relay,
    log: MemoryLog,
    status: int,
    code: str,
    body: bytes,
    authorization: tuple[str, str],
) -> None:
    async with relay.connection() as client:
        for number in (1, 2):
            await client.send(request("POST", CHAT, body[:60_000], (authorization,)))
            refused = await client.answer()
            assert (refused.status, refused.error["code"]) == (status, code)
            await client.send(request("POST", CHAT, chat(number), (BEARER,)))
            assert (await client.answer()).status == 200
    assert relay.provider.seen == {1, 2}


async def test_a_connection_stays_usable_after_an_unknown_path_and_method(relay: Relay) -> None:
    async with relay.connection() as client:
        for raw, status in (
            (request("POST", "/v1/other", b"{}"), 404),
            (request("PUT", CHAT, b"{}"), 405),
            (request("OPTIONS", CHAT, b"{}", (("Origin", "https://a.example"),)), 204),
            (request("POST", CHAT, chat(1), (BEARER,)), 200),
        ):
            await client.send(raw)
            assert (await client.answer()).status == status


async def test_pipelined_requests_are_answered_in_order(relay: Relay, log: MemoryLog) -> None:
    async with relay.connection() as client:
        await client.send(
            request("POST", CHAT, chat(1, delay=0.05), (BEARER,))
            + request("POST", CHAT, b"{}", (WRONG,))
            + request("POST", CHAT, chat(2, stream=True), (BEARER,))
            + chunked_request(CHAT, [chat(3)], (BEARER,))
        )
        answers = [await client.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 401, 200, 200]
    assert b"000001" in answers[0].body and b"000003" in answers[3].body
    assert events(answers[2].body)[-1] == "[DONE]"
    assert len(log.responses) == 3 and {row["outcome"] for row in log.rows} == {None, "ok"}


@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_old_client_gets_a_whole_answer_and_the_end_of_the_connection(
    relay: Relay, log: MemoryLog, stream: bool, keep_alive: bool
) -> None:
    headers = (BEARER, *((("Connection", "keep-alive"),) if keep_alive else ()))
    async with relay.connection() as client:
        body = chat(1, stream=stream)
        await client.send(request("POST", CHAT, body, headers, version="HTTP/1.0"))
        answer = await quickly(client.answer(), 5)
        assert answer.status == 200 and answer.is_complete
        assert not answer.all("Transfer-Encoding")
        assert await quickly(client.ended())
    assert log.the_call()[1]["outcome"] == "ok"
    assert not stream or events(answer.body)[-1] == "[DONE]"


async def test_an_old_client_cannot_take_a_broken_answer_for_a_whole_one(relay: Relay) -> None:
    piece = b'{"half of it'
    relay.provider.shapes["it"] = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%b\r\n" % (len(piece), piece),
        0.05,
        b"%x\r\n%b\r\n" % (len(piece), piece),
        0.05,
    ]
    async with relay.connection() as client:
        body = chat(1, "shape", name="it", close=1)
        await client.send(request("POST", CHAT, body, (BEARER,), version="HTTP/1.0"))
        answer = await client.answer()
    assert answer.was_reset and not answer.is_complete


async def test_connection_close_is_announced_and_done(relay: Relay) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, chat(1), (BEARER, ("Connection", "close"))))
        assert (await client.answer()).header("Connection") == "close"
        assert await quickly(client.ended())
    relay.services.lifecycle.draining = True
    for stream in (False, True):
        async with relay.connection() as client:
            await client.send(request("POST", CHAT, chat(1, stream=stream), (BEARER,)))
            answer = await client.answer()
            assert (answer.header("Connection"), answer.is_complete) == ("close", True)
            assert await quickly(client.ended())


async def test_a_server_that_has_to_go_takes_no_new_call(relay: Relay, log: MemoryLog) -> None:
    relay.services.lifecycle.refusing = True
    answer = await relay.ask(1)
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert (answer.header("Retry-After"), answer.header("Connection")) == ("1", "close")
    assert not log.rows


async def test_a_client_that_waits_for_100_continue_gets_it(relay: Relay) -> None:
    async with relay.connection() as client:
        raw = request("POST", CHAT, chat(1), (BEARER, ("Expect", "100-continue")))
        head, _, body = raw.partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.line()).startswith("HTTP/1.1 100")
        assert await client.line() == ""
        await client.send(body)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("status", "size", "authorization", "path"),
    [
        (401, 100_000, WRONG, CHAT),
        (401, 10, WRONG, CHAT),
        (413, BIG, BEARER, CHAT),
        (404, 10, BEARER, "/v1/nothing"),
        (405, 10, BEARER, "/v1/models"),
        (401, 10, WRONG, "/v1/models"),
    ],
    ids=["wrong key", "small", "too large", "no route", "no method", "key of another route"],
)
async def test_a_client_that_waits_for_100_continue_gets_a_refusal_instead(
    relay: Relay, status: int, size: int, authorization: tuple[str, str], path: str
) -> None:
    headers = (authorization, ("Expect", "100-continue"), ("Content-Length", str(size)))
    method = "GET" if path == "/v1/models" and status == 401 else "POST"
    async with relay.connection() as client:
        await client.send(request(method, path, None, headers))
        assert (await client.line()).startswith(f"HTTP/1.1 {status}")
        assert b"HTTP/1.1" not in await quickly(client.everything())


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused_without_reading_it_to_its_end(
    relay: Relay, log: MemoryLog, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(connection, "LINGER_MAX_BYTES", BIG)
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "9" * 12)
    block = b"x" * 65_536
    sent = 0
    async with relay.connection() as client:
        answering = asyncio.ensure_future(client.answer())
        await client.send(request("POST", CHAT, None, (BEARER, framing)))
        with pytest.raises(ConnectionError):
            while sent < 16 * BIG:
                await client.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
        answer = await answering
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.header("Connection") == "close" and answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("rejected", 413)
    assert not relay.provider.calls


@pytest.mark.parametrize("key", ["wrong", PROXY_KEY])
@pytest.mark.parametrize("chunked", [False, True])
async def test_httpx_reads_a_refusal_while_it_is_still_sending(
    relay: Relay, chunked: bool, key: str
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 524_288

    async with relay.http() as http:
        content = body() if chunked else b"x" * (40 * 524_288)
        headers = {"Authorization": f"Bearer {key}"}
        answer = await http.post(CHAT, content=content, headers=headers)
    assert answer.status_code == (413 if key == PROXY_KEY else 401)
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunked", [False, True])
async def test_curl_reads_a_refusal_while_it_is_still_sending(relay: Relay, chunked: bool) -> None:
    command = ["curl", "-sS", "-X", "POST", f"{relay.url}{CHAT}", "-w", "\n%{http_code}"]
    command += ["-H", f"Authorization: Bearer {PROXY_KEY}", "-H", "Expect:"]
    command += ["-T", "-"] if chunked else ["--data-binary", "@-"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(b"x" * (4 * BIG))
    body, _, status = out.decode().rpartition("\n")
    assert status == "413" and json.loads(body)["error"]["code"] == "request_too_large"


async def test_a_stranger_who_sends_for_ever_is_cut_off(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_MAX_BYTES", BIG)
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, None, (WRONG, ("Content-Length", "9" * 18))))
        answer = await client.answer()
        assert answer.status == 401
        with pytest.raises(ConnectionError):
            while True:
                await client.send(b"x" * 65_536)


async def test_a_stranger_who_sends_nothing_is_cut_off(
    relay: Relay, relay_server: ClientServer
) -> None:
    relay_server.patience_seconds["refused"] = 0.1
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, None, (WRONG, ("Content-Length", "100000"))))
        assert (await client.answer()).status == 401
        assert await quickly(client.ended(), 10)


async def test_a_path_and_a_model_that_are_no_unicode_do_not_break_an_answer(
    relay: Relay, log: MemoryLog
) -> None:
    fields = chat_fields(1, "error", status=500) | {"model": "\ud800", "enable_thinking": True}
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, json.dumps(fields).encode(), (BEARER,)))
        answer = await client.answer()
        assert answer.status == 500 and "\\ud800" in (answer.header("X-Proxy-Warning") or "")
        await client.send(request("POST", "/v1/%ff%ED%A0%80", b"{}", (BEARER,)))
        assert (await client.answer()).status == 404
        fields = {"model": "m\ud800", "enable_thinking": "yes"}
        await client.send(request("POST", CHAT, json.dumps(fields).encode(), (BEARER,)))
        assert (await client.answer()).error["code"] == "invalid_type"
    assert [row["model"] for row in log.responses] == ["\\ud800", "m\\ud800"]


async def test_an_answer_of_the_proxy_may_hold_what_is_no_unicode(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(handler: RootHandler) -> None:
        handler.answer_json(200, "a\ud800b")

    monkeypatch.setattr(RootHandler, "get", get)
    async with relay.connection() as client:
        await client.send(request("GET", "/"))
        assert (await client.answer()).json() == "a\ud800b"
