"""Which headers cross the proxy: the whole table, and the same seen on real sockets."""

from collections.abc import Sequence

import pytest
from tornado.httputil import HTTPHeaders

from memory_log import MemoryLog
from open_llm_proxy.server.relay import header_policy
from proxy_process import PROVIDER_KEY, PROXY_KEY
from raw_client import Headers, request
from relay_calls import BEARER, CHAT, Relay, chat

pytest_plugins = ("relay_fixtures",)

PASS_TO_PROVIDER = (
    ("Accept", "application/json"),
    ("Content-Type", "application/json; charset=utf-8"),
    ("User-Agent", "OpenAI/Python 2.0"),
    ("X-Stainless-Retry-Count", "1"),
    ("Idempotency-Key", "stainless-python-retry-1"),
    ("OpenAI-Organization", "org-1"),
    ("OpenAI-Beta", "assistants=v2"),
    ("HTTP-Referer", "https://app.example"),
    ("X-Title", "App"),
    ("X-Request-Id", "r-1"),
    ("Traceparent", "00-1-2-03"),
    ("Accept-Language", "de"),
    ("X-Repeated", "one"),
    ("X-Repeated", "two"),
)
KEPT_FROM_PROVIDER = (
    ("Api-Key", "k"),
    ("X-Api-Key", "k"),
    ("X-Goog-Api-Key", "k"),
    ("Cookie", "session=1"),
    ("Proxy-Authorization", "Basic x"),
    ("Connection", "keep-alive, X-Hop"),
    ("X-Hop", "named by Connection"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Trailer", "Expires"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "x"),
    ("Proxy-Connection", "keep-alive"),
    ("Origin", "https://app.example"),
    ("Referer", "https://app.example/page?user=1"),
    ("Sec-Fetch-Mode", "cors"),
    ("Sec-CH-UA", "x"),
    ("DNT", "1"),
    ("Forwarded", "for=192.0.2.1"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Forwarded-Host", "proxy.test"),
    ("X-Real-IP", "192.0.2.1"),
    ("X-Client-IP", "192.0.2.1"),
    ("CF-Connecting-IP", "192.0.2.1"),
    ("True-Client-IP", "192.0.2.1"),
    ("Via", "1.1 ingress"),
    ("Access-Control-Request-Method", "POST"),
    ("If-None-Match", '"x"'),
    ("X-Session-Id", "s"),
    ("X-Client", "c"),
    ("X-Proxy-Anything", "x"),
)
PASS_TO_CLIENT = (
    ("Content-Type", "application/json"),
    ("Content-Encoding", "br"),
    ("Retry-After", "7"),
    ("X-RateLimit-Remaining-Tokens", "9"),
    ("OpenAI-Processing-Ms", "12"),
    ("OpenAI-Organization", "org-1"),
    ("X-Request-Id", "r-1"),
    ("CF-Ray", "8f"),
    ("Cache-Control", "no-store"),
    ("ETag", '"x"'),
    ("Vary", "Accept-Encoding"),
    ("WWW-Authenticate", "Bearer"),
    ("X-Repeated", "one"),
    ("X-Repeated", "two"),
)
KEPT_FROM_CLIENT = (
    ("Set-Cookie", "a=1"),
    ("Set-Cookie", "b=2"),
    ("Server", "uvicorn"),
    ("X-Powered-By", "Express"),
    ("Via", "1.1 cache"),
    ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("Connection", "keep-alive, X-Hop"),
    ("X-Hop", "named by Connection"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic"),
    ("Trailer", "Expires"),
    ("Upgrade", "h2c"),
    ("Access-Control-Allow-Origin", "https://provider.example"),
    ("Access-Control-Allow-Credentials", "true"),
    ("X-Proxy-Request-Id", "not ours"),
    ("Alt-Svc", 'h3=":443"'),
    ("Strict-Transport-Security", "max-age=1"),
    ("Clear-Site-Data", '"cookies"'),
    ("NEL", "{}"),
    ("Report-To", "{}"),
)


def headers_of(pairs: Headers) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in pairs:
        headers.add(name, value)
    return headers


def pairs_of(headers: HTTPHeaders) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in headers.get_all())


def lower(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in pairs)


def test_what_the_provider_gets() -> None:
    sent = headers_of((*PASS_TO_PROVIDER, *KEPT_FROM_PROVIDER, ("Authorization", "Bearer client")))
    got = header_policy.to_provider(sent, "key", {"X-Title": "Ours", "X-Extra": "1"})
    expected = [pair for pair in PASS_TO_PROVIDER if pair[0] != "X-Title"]
    expected += [("X-Title", "Ours"), ("X-Extra", "1"), ("Authorization", "Bearer key")]
    assert pairs_of(got) == lower([*expected, ("Accept-Encoding", "identity")])


def test_a_provider_is_told_that_it_gets_json_where_the_client_says_nothing() -> None:
    assert header_policy.to_provider(HTTPHeaders(), "key", {})["Content-Type"] == "application/json"


def test_what_the_client_gets() -> None:
    got = header_policy.to_client(headers_of((*PASS_TO_CLIENT, *KEPT_FROM_CLIENT)), 200, "key")
    assert pairs_of(got) == lower(PASS_TO_CLIENT)


@pytest.mark.parametrize(
    ("status", "lengths", "passed"),
    [
        (200, ["17"], "17"),
        (200, ["17", "17"], "17"),
        (200, ["017, 17"], "17"),
        (204, ["0"], None),
        (304, ["17"], None),
        (200, [], None),
    ],
)
def test_there_is_one_length_at_most(status: int, lengths: list[str], passed: str | None) -> None:
    headers = headers_of([("Content-Length", length) for length in lengths])
    assert header_policy.to_client(headers, status, "key").get("Content-Length") == passed


def test_a_key_is_masked_at_its_own_length_and_a_word_is_not() -> None:
    assert header_policy.masked("a secret-key b", "secret-key") == "a ********** b"
    assert header_policy.masked("a key b", "key") == "a key b"


def test_of_an_error_the_log_keeps_whose_limit_it_was() -> None:
    headers = headers_of((*PASS_TO_CLIENT, ("Server", "x" * 1000), ("Authorization", "no")))
    assert header_policy.logged_on_error(headers) == {
        "retry-after": "7",
        "x-ratelimit-remaining-tokens": "9",
        "x-request-id": "r-1",
        "cf-ray": "8f",
        "server": "x" * 500,
    }


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ((("X-Request-Id", "a"), ("CF-Ray", "b")), "a"),
        ((("CF-Ray", "b"),), "b"),
        ((("X-Request-Id", ""), ("Request-Id", "c" * 900)), "c" * 500),
        ((), None),
    ],
)
def test_the_providers_id_of_a_call(headers: Headers, request_id: str | None) -> None:
    assert header_policy.upstream_request_id(headers_of(headers)) == request_id


@pytest.mark.parametrize("provider_config", [{"extra_headers": {"X-Extra": "1"}}])
async def test_the_provider_sees_these_headers_and_no_others(relay: Relay, log: MemoryLog) -> None:
    sent = (BEARER, ("Accept-Encoding", "gzip, br"), *PASS_TO_PROVIDER, *KEPT_FROM_PROVIDER)
    body = chat(1)
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body, sent))
        assert (await client.answer()).status == 200
    expected = [
        *PASS_TO_PROVIDER,
        ("X-Extra", "1"),
        ("Authorization", f"Bearer {PROVIDER_KEY}"),
        ("Accept-Encoding", "identity"),
        ("Host", f"127.0.0.1:{relay.provider.port}"),
        ("Content-Length", str(len(body))),
    ]
    call = await relay.provider.call(1)
    assert lower(call.request.headers) == lower(expected)
    assert PROXY_KEY not in str(call.request) and PROXY_KEY not in str(log.rows)


async def test_the_client_sees_no_cookie_server_or_permission_of_the_provider(
    relay: Relay,
) -> None:
    for stream in (False, True):
        answer = await relay.ask(1, "odd_headers", stream=stream)
        names = {name.lower() for name, _ in answer.headers}
        assert not names & {"set-cookie", "server", "x-hop", "keep-alive", "upgrade", "connection"}
        assert answer.all("X-End") == ["first", "second"]
        assert answer.header("Access-Control-Allow-Origin") == "*"
        assert answer.header("Access-Control-Allow-Credentials") is None
        assert "X-Secret" not in (answer.header("Access-Control-Expose-Headers") or "")
        assert answer.header("OpenAI-Processing-Ms") == "12"
