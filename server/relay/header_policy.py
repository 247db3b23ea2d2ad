"""Which headers cross the proxy, in both directions: one table each, and no other place.

Hop-by-hop headers end here (RFC 9110 section 7.6.1), those named by Connection too. Providers get
what is known to be meant for them and nothing else: an ingress or a browser adds headers that
nobody here has thought of, and some of them are credentials. Clients get what a provider sends, but
for its cookies, and for what would work on the proxy's own origin in a browser.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from open_llm_proxy.server.config import (
    HEADER_NAME,
    HOP_BY_HOP,
    NEVER_FORWARDED,
    ProviderConfig,
)
from open_llm_proxy.server.header_text import header_text
from open_llm_proxy.server.http1.headers import Headers

# What a provider gets of the client's headers, beside what its entry in config.json adds. All else
# is dropped and counted by name, but for what the proxy reads itself or sets anew.
FORWARDED = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "content-type",
        "http-referer",
        "idempotency-key",
        "openai-beta",
        "user-agent",
        "x-title",
        # Tracing.
        "b3",
        "traceparent",
        "tracestate",
        "x-client-request-id",
        "x-correlation-id",
        "x-request-id",
    }
)
FORWARDED_PREFIXES = ("x-stainless-", "x-b3-")
KEPT_FROM_CLIENT = HOP_BY_HOP | {
    "set-cookie",
    "set-cookie2",
    "server",
    "date",
    "via",
    "x-powered-by",
    # What a browser would do, or hold against the proxy's own origin from now on.
    "accept-ch",
    "activate-storage-access",
    "alt-svc",
    "authentication-info",
    "clear-site-data",
    "critical-ch",
    "document-policy",
    "expect-ct",
    "feature-policy",
    "link",
    "nel",
    "no-vary-search",
    "origin-agent-cluster",
    "p3p",
    "permissions-policy",
    "proxy-authentication-info",
    "referrer-policy",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-login",
    "sourcemap",
    "speculation-rules",
    "strict-transport-security",
    "supports-loading-mode",
    "timing-allow-origin",
    "use-as-dictionary",
    "www-authenticate",
    "x-dns-prefetch-control",
    "x-frame-options",
    "x-sourcemap",
    "x-xss-protection",
    # What a web server in front of the proxy would obey.
    "surrogate-control",
    "x-reproxy-url",
    "x-sendfile",
}
KEPT_FROM_CLIENT_PREFIXES = (
    "access-control-",
    "attribution-reporting-",
    "content-security-policy",
    "cross-origin-",
    "observe-browsing-",
    "public-key-pins",
    "sec-",
    "x-accel-",
    "x-lighttpd-",
    "x-proxy-",
)
# Of a refusal these are logged: they say whose limit was hit and whom to ask about it.
LOGGED_ON_ERRORS = (
    "retry-after", "x-request-id", "request-id", "cf-ray", "via", "server", "location",
)  # fmt: skip
LOGGED_ON_ERRORS_PREFIXES = ("x-ratelimit-", "ratelimit")
LOGGED_MAX_CHARACTERS = 500
REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-generation-id", "cf-ray")


def to_provider(
    headers: Headers,
    api_key: str,
    config: ProviderConfig,
    count_dropped: Callable[[str], None],
) -> list[tuple[str, str]]:
    """The headers of the call to the provider: some of the client's, and ours."""
    ours = {name.lower(): (name, value) for name, value in config.extra_headers.items()}
    ours["authorization"] = ("Authorization", f"Bearer {api_key}")
    ours["accept-encoding"] = ("Accept-Encoding", "identity")
    also_forwarded = {name.lower() for name in config.forward_headers}
    named = _named_by_connection(headers)
    out: list[tuple[str, str]] = []
    has_type = "content-type" in ours
    for name, value in headers.get_all():
        lower = name.lower()
        if lower in NEVER_FORWARDED:
            continue
        is_known = lower in FORWARDED or lower.startswith(FORWARDED_PREFIXES)
        if not is_known and lower not in also_forwarded:
            count_dropped(name)
        elif lower not in ours and lower not in named:
            out.append((name, value))
            has_type = has_type or lower == "content-type"
    if not has_type:
        out.append(("Content-Type", "application/json"))
    out += ours.values()
    return out


def to_client(headers: Headers, status: int, *, is_stream: bool = False) -> Headers:
    """The provider's headers that the client gets, repeated ones repeated.

    Content-Length is there once at most, as llhttp takes no other, and not where there is no body
    (RFC 9110, section 8.6). Nor has a stream one: its last byte would be the end, and there would
    be nothing to hold back. Proxies on the way are told to pass a stream on as it comes.
    """
    named = _named_by_connection(headers)
    out: list[tuple[str, str]] = []
    for name, value in headers.get_all():
        fate = _fate_of_answer(name)
        if fate == "kept" or (named and name.lower() in named):
            continue
        if fate == "length":
            if is_stream or status in (204, 304):
                continue
            value = str(int(value))
        out.append((name, value))
    if is_stream:
        out.append(("X-Accel-Buffering", "no"))
        if "Cache-Control" not in headers:
            out.append(("Cache-Control", "no-cache"))
    return Headers(out)


def logged_on_error(headers: Headers) -> dict[str, str]:
    """The allow-listed headers of a provider's error, for the log."""
    return {
        name.lower(): header_text(value)[:LOGGED_MAX_CHARACTERS]
        for name, value in headers.get_all()
        if name.lower() in LOGGED_ON_ERRORS or name.lower().startswith(LOGGED_ON_ERRORS_PREFIXES)
    }


def upstream_request_id(headers: Headers) -> str | None:
    """The provider's own id of the call, from whichever header it uses."""
    for name in REQUEST_ID_HEADERS:
        if value := headers.get(name):
            return header_text(value)[:LOGGED_MAX_CHARACTERS]
    return None


def _named_by_connection(headers: Headers) -> frozenset[str]:
    """The names, in lower case, that end here because the Connection header says so."""
    value = headers.get("Connection")
    return _names(value) if value else frozenset()


# Calls repeat the same few names and values; the bounds are for clients that do not.
@lru_cache(maxsize=64)
def _names(connection: str) -> frozenset[str]:
    tokens = (token.strip().lower() for token in connection.split(","))
    return frozenset(token for token in tokens if HEADER_NAME.fullmatch(token))


@lru_cache(maxsize=512)
def _fate_of_answer(name: str) -> Literal["passed", "kept", "length"]:
    lower = name.lower()
    if lower in KEPT_FROM_CLIENT or lower.startswith(KEPT_FROM_CLIENT_PREFIXES):
        return "kept"
    return "length" if lower == "content-length" else "passed"
