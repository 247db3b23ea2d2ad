"""What clients may do by the standards, and what they are told: one table for each kind."""

import json

import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.health import ROUTES
from raw_client import Answer, Headers, request
from relay_calls import BEARER, CHAT, Relay, chat, quickly

pytest_plugins = ("relay_fixtures",)

PAGE = ("Origin", "https://app.example")
GET_ROUTES = [route.removeprefix("GET ") for route in ROUTES if route.startswith("GET ")]
GET_ROUTES += ["/", "/v1/models/kimi"]


async def send(
    relay: Relay, method: str, path: str, headers: Headers = (BEARER,), body: bytes | None = None
) -> Answer:
    async with relay.connection() as client:
        await client.send(request(method, path, body, headers))
        answer = await quickly(client.begin())
        if method != "HEAD":
            await quickly(client.finish(answer))
    return answer


@pytest.mark.parametrize("headers", [(), (BEARER,)], ids=["stranger", "key"])
@pytest.mark.parametrize("path", GET_ROUTES)
async def test_head_is_get_without_a_body(relay: Relay, path: str, headers: Headers) -> None:
    get = await send(relay, "GET", path, headers)
    async with relay.connection() as client:
        await client.send(request("HEAD", path, None, headers))
        head = await quickly(client.begin())
        # Nothing of a body stands between this head and the next answer.
        await client.send(request("GET", "/ready"))
        assert (await quickly(client.answer())).json() == {"status": "ready"}
    assert (head.status, head.reason) == (get.status, get.reason)
    assert head.header("Content-Type") == get.header("Content-Type")
    assert head.header("Content-Length") is not None


async def test_other_methods_of_these_routes_are_told_of_head(relay: Relay) -> None:
    for path in GET_ROUTES:
        answer = await send(relay, "PUT", path)
        assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "provider_config", [{"models": ["kimi", "org/", "a/b"], "model_prefixes": ["pre-"]}]
)
@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("kimi", "kimi"),
        ("org/any", "org/any"),
        ("org%2Fany", "org/any"),
        ("a/b", "a/b"),
        ("pre-1", "pre-1"),
        ("left-to-the-default", "left-to-the-default"),
        ("m%C3%BCller", "müller"),
        ("m%C3%BCller%2F1", "müller/1"),
    ],
)
async def test_every_id_that_a_call_would_reach_is_a_model(
    relay: Relay, path: str, model: str
) -> None:
    answer = await send(relay, "GET", f"/v1/models/{path}")
    assert answer.status == 200
    assert {name: answer.json()[name] for name in ("id", "object", "owned_by")} == {
        "id": model, "object": "model", "owned_by": "nrp",
    }  # fmt: skip


@pytest.mark.parametrize(
    "query",
    ["api-version=2024-10-21", "a=1&a=2", "q=%C3%BC&x=%0d%0aX-A:b", "empty=", "?", "a=b?c", "b=+"],
)
async def test_query_parameters_go_to_the_provider(
    relay: Relay, log: MemoryLog, query: str
) -> None:
    for path in (CHAT, "/v1/embeddings"):
        answer = await send(relay, "POST", f"{path}?{query}", body=chat(1))
        assert answer.status == 200
        assert relay.provider.calls[-1].request.target == f"{path}?{query}"
        assert log.requests[-1]["endpoint"] == path


@pytest.mark.parametrize("target", [f"{CHAT}?q=\xc3\xbc", "/v1/models/m\xc3\xbcller"])
async def test_a_target_is_ascii(relay: Relay, target: str) -> None:
    answer = await send(relay, "POST", target, body=chat(1))
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        ("Müller".encode(), "Müller"),
        ("Müller".encode("latin-1"), "Müller"),
        ("研究 \U0001f30d".encode(), "研究 \U0001f30d"),
        (b"plain", "plain"),
    ],
)
async def test_a_headers_value_is_utf_8_where_it_can_be(
    relay: Relay, log: MemoryLog, sent: bytes, logged: str
) -> None:
    value = sent.decode("latin-1")
    headers = (BEARER, ("X-Client", value), ("X-Session-Id", value), ("X-Title", value))
    headers += (("Referer", value),)
    assert (await send(relay, "POST", CHAT, headers, chat(1))).status == 200
    for row in log.the_call():
        assert (row["client"], row["session_id"], row["origin"]) == (logged,) * 3
    # The provider gets the same bytes.
    assert relay.provider.calls[-1].request.header("X-Title") == value


async def test_a_providers_headers_are_utf_8_where_they_can_be(
    relay: Relay, log: MemoryLog
) -> None:
    relay.provider.shapes["it"] = [
        b"HTTP/1.1 429 No\r\nX-Request-Id: M\xc3\xbcller\r\nServer: M\xfcller\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    ]
    answer = await relay.ask(1, "shape", name="it")
    assert answer.header("X-Request-Id") == "M\xc3\xbcller", "the client gets the same bytes"
    response = log.the_call()[1]
    assert response["upstream_request_id"] == "Müller"
    assert "Müller" in response["upstream_headers_json"]


@pytest.mark.parametrize("value", ["100-continue", "100-Continue", "100-CONTINUE"])
async def test_a_client_that_waits_for_our_word_gets_it(relay: Relay, value: str) -> None:
    async with relay.connection() as client:
        raw = request("POST", CHAT, chat(1), (BEARER, ("Expect", value)))
        head, _, body = raw.partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await quickly(client.line())).startswith("HTTP/1.1 100")
        assert await client.line() == ""
        await client.send(body)
        assert (await quickly(client.answer())).status == 200


async def test_a_client_of_http_1_0_is_never_asked_to_go_on(relay: Relay) -> None:
    async with relay.connection() as client:
        headers = (BEARER, ("Expect", "100-continue"))
        await client.send(request("POST", CHAT, chat(1), headers, version="HTTP/1.0"))
        assert (await quickly(client.answer())).status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://proxy.test/v1/models", 200),
        ("HTTPS://other.test:8443/v1/models?a=1", 200),
        ("http://proxy.test", 200),
        ("http://proxy.test?a=http://b/", 200),
        ("http:///v1/models", 404),
        ("ftp://proxy.test/v1/models", 404),
    ],
)
async def test_a_target_may_be_a_whole_url(relay: Relay, target: str, status: int) -> None:
    assert (await send(relay, "GET", target)).status == status
    if target.endswith("/models"):
        expected = 200 if status == 200 else 404
        target = target.replace("/v1/models", CHAT)
        assert (await send(relay, "POST", target, body=chat(1))).status == expected


@pytest.mark.parametrize("after_a_call", [False, True])
@pytest.mark.parametrize("size", [70_000, 200_000, 3_000_000])
async def test_a_head_that_is_too_large_is_told_so(
    relay: Relay, log: MemoryLog, size: int, after_a_call: bool
) -> None:
    async with relay.connection() as client:
        if after_a_call:
            await client.send(request("GET", "/ready"))
            assert (await client.answer()).status == 200
        await client.send(request("POST", CHAT, b"{}", (BEARER, ("X-A", "a" * size))))
        answer = await quickly(client.answer())
        assert (answer.status, answer.header("Connection")) == (431, "close")
        assert answer.error["code"] == "headers_too_large" and answer.is_complete
        assert await quickly(client.ended())
    assert not log.rows and not relay.provider.calls


CHUNKED = (BEARER, ("Transfer-Encoding", "chunked"))
DATA = b"%x;name=value\r\n%b\r\n"


@pytest.mark.parametrize(
    "tail",
    [
        b"0\r\n\r\n",
        b"0;last\r\n\r\n",
        b'000;a=b;c="d;e"\r\n\r\n',
        b"0\r\nX-Checksum: abc\r\n\r\n",
        b"0\r\nX-A: 1\r\nHost: other\r\nAuthorization: Bearer x\r\n\r\n",
    ],
)
async def test_extensions_of_chunks_and_trailers_are_taken_and_mean_nothing(
    relay: Relay, tail: bytes
) -> None:
    async with relay.connection() as client:
        for number in (1, 2):
            body = chat(number)
            chunks = DATA % (10, body[:10]) + DATA % (len(body) - 10, body[10:])
            await client.send(request("POST", CHAT, None, CHUNKED) + chunks + tail)
            assert (await quickly(client.answer())).status == 200
            assert relay.provider.calls[-1].request.body == body
            assert relay.provider.calls[-1].request.header("X-Checksum") is None


@pytest.mark.parametrize(
    "body",
    [
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"2;a\rb\r\n{}\r\n0\r\n\r\n",
        b";a\r\n{}\r\n0\r\n\r\n",
        b"2 ;a\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX-A: 1\r\nContent-Length: 5\r\n\r\n",
        b"2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"2;aaaaaaaa\r\n{}\r\n" * 10_000 + b"0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX-A: b\nX-B: c\r\n\r\n",
        b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
        b"2\r\n{}\r\n0\r\n: no name\r\n\r\n",
        b"2\r\n{}\r\n0\r\n folded: line\r\n\r\n",
        b"2\r\n{}\r\n0\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
        b"2\r\n{}\r\n0\r\nX-A: " + b"b" * 100_000 + b"\r\n\r\n",
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_extensions_and_trailers_have_bounds_and_no_second_reading(
    relay: Relay, log: MemoryLog, body: bytes
) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, None, CHUNKED) + body)
        assert (await quickly(client.everything()))[:13] in (b"HTTP/1.1 400 ", b"")
    assert not log.rows and not relay.provider.calls


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("GET", "/", (), None),
        ("GET", "/health", (), None),
        ("GET", "/v1/models", (BEARER,), None),
        ("GET", "/v1/models", (), None),
        ("GET", "/nowhere", (), None),
        ("PUT", CHAT, (BEARER,), None),
        ("POST", CHAT, (), b"{}"),
        ("POST", CHAT, (BEARER,), b"{}"),
        ("POST", CHAT, (BEARER,), chat(1, "reset_before_headers")),
    ],
)
async def test_the_proxys_own_answers_have_the_id_that_sdks_read(
    relay: Relay, method: str, path: str, headers: Headers, body: bytes | None
) -> None:
    answer = await send(relay, method, path, headers, body)
    assert answer.header("X-Request-Id") == answer.header("X-Proxy-Request-Id") is not None


async def test_a_relayed_answer_has_the_providers_id_or_none(relay: Relay) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    for lines, given in ((b"X-Request-Id: theirs\r\n", "theirs"), (b"", None)):
        relay.provider.shapes["it"] = [head + lines + b"\r\n{}"]
        answer = await relay.ask(1, "shape", name="it")
        assert answer.header("X-Request-Id") == given


@pytest.mark.parametrize("name", ["X-Should-Retry", "Retry-After-Ms", "OpenAI-Model", "X-Any"])
async def test_a_page_may_read_every_header(relay: Relay, name: str) -> None:
    relay.provider.shapes["it"] = [
        b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n%b: 1\r\n\r\n{}" % name.encode()
    ]
    answer = await relay.ask(1, "shape", name="it", headers=(PAGE,))
    assert answer.header(name) == "1"
    # `*` stands for all headers where no cookies are allowed (Fetch, "CORS-exposed header-names").
    assert answer.header("Access-Control-Expose-Headers") == "*"
    assert answer.header("Access-Control-Allow-Credentials") is None


TEXT_OF_NOTHING = {"type": "text", "text": None}


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ([TEXT_OF_NOTHING, {"type": "text", "text": "call 000001"}], "call 000001"),
        ([{"type": "text", "text": "call 000001"}, TEXT_OF_NOTHING], "call 000001"),
        ([TEXT_OF_NOTHING], None),
        ([{"type": "input_text", "text": None}], None),
        ([{"type": "text", "text": ""}], None),
        ([], None),
        (None, None),
    ],
)
async def test_a_text_that_is_null_is_nothing(
    relay: Relay, log: MemoryLog, content: object, question: str | None
) -> None:
    fields = {"model": "kimi", "messages": [{"role": "user", "content": content}]}
    await send(relay, "POST", CHAT, body=json.dumps(fields).encode())
    row = log.the_call()[0]
    assert (row["user_question"], row["user_message_this_turn"]) == (question, question)
