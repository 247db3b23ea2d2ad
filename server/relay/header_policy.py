"""Which headers cross the proxy, in both directions: one table each, and no other place.

Hop-by-hop headers end here (RFC 9110 section 7.6.1), those named by Connection too. Towards the
provider, credentials of the client and what a browser says about its page and its network stay
behind. Towards the client, the provider's cookies, server name and CORS decisions do.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from tornado.httputil import HTTPHeaders

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
KEPT_FROM_PROVIDER = HOP_BY_HOP | {
    # Credentials of the client, who has one for the proxy only.
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "cookie",
    "cookie2",
    # The exchange's own framing and encoding are set anew.
    "host",
    "content-length",
    "accept-encoding",
    "expect",
    # What a browser and the ingress say about a person, their page and their network.
    "origin",
    "referer",
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-forwarded-for",
    "x-original-uri",
    "x-scheme",
    "dnt",
    # Meant for the proxy.
    "x-session-id",
    "x-client",
}
KEPT_FROM_PROVIDER_PREFIXES = ("sec-", "x-forwarded-", "access-control-", "x-proxy-", "if-")
KEPT_FROM_CLIENT = HOP_BY_HOP | {
    "set-cookie",
    "set-cookie2",
    "server",
    "date",
    "via",
    "x-powered-by",
    # What a browser would hold against the proxy's own origin from now on.
    "alt-svc",
    "clear-site-data",
    "nel",
    "report-to",
    "reporting-endpoints",
    "strict-transport-security",
}
KEPT_FROM_CLIENT_PREFIXES = ("access-control-", "x-proxy-")
# Of a refusal these are logged: they say whose limit was hit and whom to ask about it.
LOGGED_ON_ERRORS = (
    "retry-after", "x-request-id", "request-id", "cf-ray", "via", "server", "location",
)  # fmt: skip
LOGGED_ON_ERRORS_PREFIXES = ("x-ratelimit-", "ratelimit")
LOGGED_MAX_CHARACTERS = 500
REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-generation-id", "cf-ray")
# A shorter key is no secret, and masking it would garble texts that only happen to hold it.
MASKED_KEY_CHARACTERS = 8


def to_provider(
    headers: HTTPHeaders, api_key: str, extra_headers: Mapping[str, str]
) -> HTTPHeaders:
    """The headers of the call to the provider: the client's end-to-end ones, ours on top."""
    out = HTTPHeaders()
    for name, value in _passed(headers, _stays_from_provider):
        _add(out, name, value)
    for name, value in extra_headers.items():
        out[name] = value
    out["Authorization"] = f"Bearer {api_key}"
    out["Accept-Encoding"] = "identity"
    out.setdefault("Content-Type", "application/json")
    return out


def to_client(headers: HTTPHeaders, status: int, api_key: str) -> HTTPHeaders:
    """The provider's headers that the client gets, repeated ones repeated.

    There is one Content-Length at most, and none where there is no body (RFC 9110, section 8.6);
    it must be valid, as `PooledHTTPClient` promises. The provider's key is masked in all values.
    """
    out = HTTPHeaders()
    for name, value in _passed(headers, _stays_from_client):
        _add(out, name, masked(value, api_key))
    lengths = out.get("Content-Length")
    if lengths is not None:
        del out["Content-Length"]
        if status not in (204, 304):
            out["Content-Length"] = str(int(lengths.partition(",")[0]))
    return out


def masked(text: str, api_key: str) -> str:
    """`text` with asterisks for every occurrence of the key; as long as before."""
    if len(api_key) < MASKED_KEY_CHARACTERS:
        return text
    return text.replace(api_key, "*" * len(api_key))


def logged_on_error(headers: HTTPHeaders) -> dict[str, str]:
    """The allow-listed headers of a provider's error, for the log."""
    return {
        name.lower(): value[:LOGGED_MAX_CHARACTERS]
        for name, value in headers.get_all()
        if name.lower() in LOGGED_ON_ERRORS or name.lower().startswith(LOGGED_ON_ERRORS_PREFIXES)
    }


def upstream_request_id(headers: HTTPHeaders) -> str | None:
    """The provider's own id of the call, from whichever header it uses."""
    ids = (headers[name] for name in REQUEST_ID_HEADERS if name in headers)
    return next((value[:LOGGED_MAX_CHARACTERS] for value in ids if value), None)


def _passed(headers: HTTPHeaders, stays_here: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    connection = headers.get("Connection")
    named_by_connection = {token.strip().lower() for token in (connection or "").split(",")}
    for name, value in headers.get_all():
        if not stays_here(name) and name.lower() not in named_by_connection:
            yield name, value


# Calls repeat the same few names; the bound is for clients that do not.
@lru_cache(maxsize=512)
def _stays_from_provider(name: str) -> bool:
    lower = name.lower()
    return lower in KEPT_FROM_PROVIDER or lower.startswith(KEPT_FROM_PROVIDER_PREFIXES)


@lru_cache(maxsize=512)
def _stays_from_client(name: str) -> bool:
    lower = name.lower()
    return lower in KEPT_FROM_CLIENT or lower.startswith(KEPT_FROM_CLIENT_PREFIXES)


def _add(headers: HTTPHeaders, name: str, value: str) -> None:
    """Add a header that was parsed from the wire, and so checked, without checking it again."""
    if name in headers:
        headers.add(name, value)
    else:
        headers[name] = value
