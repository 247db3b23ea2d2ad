"""Which headers cross the proxy: the whole table, and the same seen on real sockets."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.config import ProviderConfig
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.relay import header_policy
from proxy_process import PROVIDER_KEY, PROXY_KEY
from raw_client import Headers as Pairs
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, chat

pytest_plugins = ("relay_fixtures",)

FORWARDED = (
    ("Accept", "application/json"),
    ("Content-Type", "application/json; charset=utf-8"),
    ("User-Agent", "OpenAI/Python 2.0"),
    ("OpenAI-Beta", "assistants=v2"),
    ("X-Stainless-Retry-Count", "1"),
    ("X-Stainless-Anything", "1"),
    ("Anthropic-Version", "2023-06-01"),
    ("Anthropic-Beta", "tools"),
    ("Idempotency-Key", "stainless-python-retry-1"),
    ("HTTP-Referer", "https://app.example"),
    ("X-Title", "App"),
    ("X-Request-Id", "r-1"),
    ("X-Request-Id", "r-2"),
    ("Traceparent", "00-1-2-03"),
    ("Tracestate", "a=1"),
    ("B3", "0"),
    ("X-B3-TraceId", "1"),
)
# Dropped without a word: the proxy reads them itself, sets them anew, or they end at every hop.
OURS = (
    ("Cookie", "session=1"),
    ("Proxy-Authorization", "Basic x"),
    ("Connection", "keep-alive, X-Title"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Trailer", "Expires"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "x"),
    ("Proxy-Connection", "keep-alive"),
    ("Accept-Encoding", "gzip, br"),
    ("Origin", "https://app.example"),
    ("Referer", "https://app.example/page?user=1"),
    ("X-Session-Id", "s"),
    ("X-Client", "c"),
)
# Credentials, networks and pages, some by names that nobody has listed anywhere.
DROPPED = (
    ("Api-Key", "k"),
    ("X-Api-Key", "k"),
    ("X-Goog-Api-Key", "k"),
    ("X-Auth-Token", "t"),
    ("X-Access-Token", "t"),
    ("X-Amz-Security-Token", "t"),
    ("Cf-Access-Jwt-Assertion", "j"),
    ("X-Amzn-Oidc-Data", "j"),
    ("X-Forwarded-Access-Token", "j"),
    ("X-Ms-Client-Principal", "p"),
    ("Remote-User", "u"),
    ("Helicone-Auth", "Bearer h"),
    ("X-Portkey-Api-Key", "p"),
    ("OpenAI-Organization", "org-1"),
    ("OpenAI-Project", "proj-1"),
    ("X-Original-Url", "/admin"),
    ("X-Rewrite-Url", "/admin"),
    ("X-Http-Method-Override", "DELETE"),
    ("Transfer_Encoding", "chunked"),
    ("Content_Length", "0"),
    ("X_Api_Key", "k"),
    ("Sec-Fetch-Mode", "cors"),
    ("Sec-CH-UA", "x"),
    ("DNT", "1"),
    ("Forwarded", "for=192.0.2.1"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Forwarded-Host", "proxy.test"),
    ("X-Real-IP", "192.0.2.1"),
    ("CF-Connecting-IP", "192.0.2.1"),
    ("Via", "1.1 ingress"),
    ("Range", "bytes=0-1"),
    ("Access-Control-Request-Method", "POST"),
    ("If-None-Match", '"x"'),
    ("Accept-Language", "de"),
    ("Priority", "u=1"),
    ("Baggage", "user=1"),
    ("X-Proxy-Anything", "x"),
    ("X-Extra", "client's"),
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
    ("Content-Disposition", "inline"),
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
    ("WWW-Authenticate", "Basic"),
    ("Authentication-Info", "x"),
    ("Refresh", "0; url=https://evil.example"),
    ("Service-Worker-Allowed", "/"),
    ("Content-Security-Policy", "sandbox"),
    ("Content-Security-Policy-Report-Only", "report-uri https://evil.example"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=*"),
    ("Referrer-Policy", "unsafe-url"),
    ("X-Frame-Options", "DENY"),
    ("Origin-Agent-Cluster", "?1"),
    ("Timing-Allow-Origin", "*"),
    ("Link", "<https://evil.example/a.js>; rel=preload"),
    ("SourceMap", "https://evil.example/map"),
    ("Speculation-Rules", '"/rules"'),
    ("Set-Login", "logged-in"),
    ("Accept-CH", "Sec-CH-UA"),
    ("Public-Key-Pins", "x"),
    ("X-Accel-Redirect", "/etc/passwd"),
    ("X-Accel-Buffering", "yes"),
    ("X-Sendfile", "/etc/passwd"),
    ("Attribution-Reporting-Register-Source", "{}"),
)


def pairs_of(headers: Headers) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in headers.get_all())


def lower(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in pairs)


def to_provider(
    sent: Pairs, extra: dict[str, str] | None = None, forward: tuple[str, ...] = ()
) -> tuple[Headers, list[str]]:
    """The headers of the call, and the names that were counted as dropped."""
    config = ProviderConfig(
        endpoint="http://127.0.0.1/v1/chat/completions",
        api_key_env="KEY",
        extra_headers=extra or {},
        forward_headers=forward,
    )
    dropped: list[str] = []
    got = header_policy.to_provider(Headers(sent), "key", config, dropped.append)
    return Headers(got), dropped


def test_what_the_provider_gets() -> None:
    sent = (*FORWARDED, *OURS, *DROPPED, ("Authorization", "Bearer client"))
    got, dropped = to_provider(sent, {"X-Extra": "1"})
    expected = [pair for pair in FORWARDED if pair[0] != "X-Title"]
    expected += [("X-Extra", "1"), ("Authorization", "Bearer key")]
    assert pairs_of(got) == lower([*expected, ("Accept-Encoding", "identity")])
    assert sorted(map(str.lower, dropped)) == sorted(name.lower() for name, _ in DROPPED)


def test_what_config_json_adds() -> None:
    sent = (("X-Title", "client's"), ("Accept-Language", "de"), ("X-Tenant", "t"), ("X-Other", "o"))
    got, dropped = to_provider(sent, {"X-Title": "Ours"}, ("accept-language", "X-Tenant"))
    assert (got.get("X-Title"), got.get("Accept-Language"), got.get("X-Tenant")) == (
        "Ours",
        "de",
        "t",
    )
    assert dropped == ["X-Other"]


def test_a_provider_is_told_that_it_gets_json_where_the_client_says_nothing() -> None:
    assert to_provider(())[0].get("Content-Type") == "application/json"


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True), st.just("v")))
@settings(deadline=None, database=None)
def test_no_other_name_reaches_a_provider(sent: dict[str, str]) -> None:
    got, _ = to_provider(tuple(sent.items()))
    known = header_policy.FORWARDED | {"authorization", "accept-encoding", "content-type"}
    for name, _ in got.get_all():
        assert name.lower() in known or name.lower().startswith(("x-stainless-", "x-b3-"))
    assert got.get("Authorization") == "Bearer key"


def test_what_the_client_gets() -> None:
    got = header_policy.to_client(Headers((*PASS_TO_CLIENT, *KEPT_FROM_CLIENT)), 200)
    assert pairs_of(got) == lower(PASS_TO_CLIENT)


@pytest.mark.parametrize(
    ("status", "lengths", "passed"),
    [
        (200, ["17"], "17"),
        (200, ["017"], "17"),
        (204, ["0"], None),
        (304, ["17"], None),
        (200, [], None),
    ],
)
def test_there_is_one_length_at_most(status: int, lengths: list[str], passed: str | None) -> None:
    headers = Headers([("Content-Length", length) for length in lengths])
    assert header_policy.to_client(headers, status).get("Content-Length") == passed


def test_of_an_error_the_log_keeps_whose_limit_it_was() -> None:
    headers = Headers((*PASS_TO_CLIENT, ("Server", "x" * 1000), ("Authorization", "no")))
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
def test_the_providers_id_of_a_call(headers: Pairs, request_id: str | None) -> None:
    assert header_policy.upstream_request_id(Headers(headers)) == request_id


@pytest.mark.parametrize("provider_config", [{"extra_headers": {"X-Extra": "1"}}])
async def test_the_provider_sees_these_headers_and_no_others(relay: Relay, log: MemoryLog) -> None:
    ours = [pair for pair in OURS if pair[0] != "Connection"]
    body = chat(1)
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body, (BEARER, *FORWARDED, *ours, *DROPPED)))
        assert (await client.answer()).status == 200
        await client.send(request("GET", "/metrics", None, (BEARER,)))
        metrics = (await client.answer()).body.decode()
    expected = [
        *FORWARDED,
        ("X-Extra", "1"),
        ("Authorization", f"Bearer {PROVIDER_KEY}"),
        ("Accept-Encoding", "identity"),
        ("Host", f"127.0.0.1:{relay.provider.port}"),
        ("Content-Length", str(len(body))),
    ]
    call = await relay.provider.call(1)
    assert lower(call.request.headers) == lower(expected)
    assert PROXY_KEY not in str(call.request) and PROXY_KEY not in str(log.rows)
    for name, _ in DROPPED:
        assert f'open_llm_proxy_dropped_headers_total{{name="{name.lower()}"}} 1.0' in metrics
    for name, _ in (*FORWARDED, *OURS, BEARER):
        assert f'"{name.lower()}"' not in metrics


def test_a_client_cannot_fill_the_metrics_with_names() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.count_dropped_header(f"X-{number}")
    page = metrics.page({}).decode()
    assert page.count("open_llm_proxy_dropped_headers_total{") == 101
    assert 'open_llm_proxy_dropped_headers_total{name="other"} 900.0' in page


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
