"""CORS as a browser sees it: on answers, errors and preflights of every route."""

import pytest
from tornado.httputil import HTTPHeaders

from open_llm_proxy.server.cors import CorsPolicy
from raw_client import Answer, Headers, request
from relay_calls import BEARER, CHAT, Relay, chat

pytest_plugins = ("relay_fixtures",)

APP = "https://app.example"
LISTED = {"cors_allow_origins": (APP, "http://localhost:5173")}
ROUTES = ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/kimi", CHAT, "/nowhere")


async def send(relay: Relay, method: str, path: str, headers: Headers, body: bytes = b"") -> Answer:
    async with relay.connection() as client:
        await client.send(request(method, path, body or None, headers))
        return await client.answer()


@pytest.mark.parametrize("path", ROUTES)
async def test_any_page_may_ask_any_route(relay: Relay, path: str) -> None:
    headers = (
        ("Origin", APP),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, content-type, x-stainless-lang"),
    )
    answer = await send(relay, "OPTIONS", path, headers)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Allow-Methods") == "GET, POST, DELETE, OPTIONS"
    allowed = answer.header("Access-Control-Allow-Headers")
    assert allowed == "authorization, content-type, x-stainless-lang"
    assert answer.header("Access-Control-Max-Age") == "86400"
    assert answer.header("Access-Control-Allow-Credentials") is None


@pytest.mark.parametrize("asked", ["", "a\u00ff", "x y", ",", "a,,b", "a;b", "<script>"])
def test_nothing_but_a_list_of_names_is_echoed(asked: str) -> None:
    headers = HTTPHeaders({"Access-Control-Request-Headers": asked})
    allowed = CorsPolicy(("*",)).preflight(headers)["Access-Control-Allow-Headers"]
    assert allowed == "Authorization, Content-Type"


@pytest.mark.parametrize("relay_settings", [LISTED])
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (APP, APP),
        ("http://localhost:5173", "http://localhost:5173"),
        ("https://evil.example", None),
        ("https://app.example.evil.example", None),
        ("http://app.example", None),
        ("null", None),
        (None, None),
    ],
)
async def test_only_listed_pages_may_ask(
    relay: Relay, origin: str | None, allowed: str | None
) -> None:
    headers = (("Origin", origin),) if origin else ()
    for answer in (
        await send(relay, "OPTIONS", CHAT, headers),
        await send(relay, "POST", CHAT, (*headers, BEARER), chat(1)),
        await send(relay, "POST", CHAT, (*headers, BEARER), chat(1, stream=True)),
        await send(relay, "POST", CHAT, headers, b"{}"),
    ):
        assert answer.header("Access-Control-Allow-Origin") == allowed
        assert answer.header("Vary") == "Origin"


@pytest.mark.parametrize("relay_settings", [LISTED])
async def test_a_provider_cannot_undo_that_answers_vary_by_origin(relay: Relay) -> None:
    head = b"HTTP/1.1 200 OK\r\nVary: Accept-Encoding\r\nContent-Length: 2\r\n\r\n"
    relay.provider.shapes["it"] = [head + b"{}"]
    answer = await relay.ask(1, "shape", name="it")
    assert answer.all("Vary") == ["Origin", "Accept-Encoding"]


@pytest.mark.parametrize("behaviour", ["ok", "rate_limited", "reset_before_headers"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_page_can_read_what_it_needs_of_every_answer(
    relay: Relay, stream: bool, behaviour: str
) -> None:
    answer = await relay.ask(1, behaviour, stream=stream, headers=(("Origin", APP),))
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Expose-Headers") == "*"
    assert answer.header("X-Proxy-Request-Id")


@pytest.mark.parametrize("body", [b"{}", b"x" * (6 << 20)], ids=["400", "413"])
async def test_a_page_can_read_a_refusal(relay: Relay, body: bytes) -> None:
    for headers in ((BEARER,), ()):
        answer = await send(relay, "POST", CHAT, (*headers, ("Origin", APP)), body)
        assert answer.status in (400, 401, 413)
        assert answer.header("Access-Control-Allow-Origin") == "*"
