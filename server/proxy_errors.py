"""The errors that the proxy itself answers, in the shape of OpenAI's errors.

Shape and types follow OpenAI's API reference ("Error codes"), so that its SDKs raise their own
exceptions. Each message says what is wrong and what to do. A provider's errors pass unchanged and
never come through here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(slots=True, eq=False)
class ProxyError(Exception):
    """The proxy refuses or fails a call with this answer."""

    status: int
    code: str
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(code: str, message: str, param: str | None = None) -> ProxyError:
    return ProxyError(400, code, message, param=param)


def duplicate_field(name: str) -> ProxyError:
    shown = name[:200]
    return bad_request(
        "duplicate_name",
        f"An object of the request body has the field `{shown}` more than once, and readers "
        "disagree about which one counts. Send it once.",
        shown,
    )


def too_many_values(max_values: int) -> ProxyError:
    return bad_request(
        "too_many_values",
        f"The request body holds more than {max_values} JSON values, of which an object counts as "
        "four. Send fewer in one call.",
    )


def invalid_api_key(message: str) -> ProxyError:
    return ProxyError(
        401, "invalid_api_key", message, headers={"WWW-Authenticate": 'Bearer realm="proxy"'}
    )


def too_many_wrong_keys() -> ProxyError:
    return ProxyError(
        429,
        "too_many_wrong_keys",
        "Too many wrong API keys came from this address. Wait a second, and send the right one.",
        headers={"Retry-After": "1"},
    )


def key_expired(name: str, expired_at: datetime) -> ProxyError:
    return ProxyError(
        403,
        "key_expired",
        f"The API key {name!r} expired at {expired_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}. Ask the "
        "operator of this proxy for another one.",
        type="permission_error",
    )


def model_not_allowed(name: str, model: str, allowed: Sequence[str]) -> ProxyError:
    return ProxyError(
        403,
        "model_not_allowed",
        f"The API key {name!r} may not call the model {model[:200]!r}. It may call: "
        f"{', '.join(allowed[:50])}",
        type="permission_error",
        param="model",
    )


def rate_limit_exceeded(name: str, per_minute: int, seconds: int) -> ProxyError:
    return ProxyError(
        429,
        "rate_limit_exceeded",
        f"The API key {name!r} may make {per_minute} requests a minute. Wait {seconds} s.",
        type="rate_limit_error",
        headers={"Retry-After": str(seconds)},
    )


def no_proxy_key() -> ProxyError:
    return ProxyError(
        503,
        "proxy_key_missing",
        "This proxy has no proxy key, so it refuses every call. Its operator must set PROXY_KEY.",
        type="server_error",
    )


def model_not_found(model: str, served: list[str]) -> ProxyError:
    known = ", ".join(served[:50]) or "none"
    return ProxyError(
        404,
        "model_not_found",
        f"Model {model[:200]!r} is not served here. Use one of: {known}",
        param="model",
    )


def unknown_url(path: str) -> ProxyError:
    return ProxyError(404, "unknown_url", f"Unknown URL {path[:200]}; GET / lists the routes")


def route_not_offered(route: str, why: str) -> ProxyError:
    return ProxyError(
        404, "route_not_offered", f"{route[:200]} is not offered by this proxy: {why}"
    )


def method_not_allowed(path: str, allowed: list[str]) -> ProxyError:
    names = ", ".join(allowed)
    return ProxyError(
        405,
        "method_not_allowed",
        f"{path[:200]} does not support this method. Use {names}.",
        headers={"Allow": names},
    )


def ambiguous_framing(problem: str) -> ProxyError:
    return ProxyError(
        400,
        "ambiguous_framing",
        f"The end of this request is ambiguous: {problem}. Send one Content-Length, or "
        "`Transfer-Encoding: chunked`.",
    )


def malformed_request(problem: str) -> ProxyError:
    return ProxyError(
        400,
        "malformed_request",
        f"The request cannot be read as HTTP (RFC 9112): {problem}.",
    )


def headers_too_large() -> ProxyError:
    return ProxyError(
        431,
        "headers_too_large",
        "The request's line and headers exceed this proxy's limit of 64 KiB. Send less.",
    )


def unsupported_encoding(coding: str) -> ProxyError:
    return ProxyError(
        415,
        "unsupported_encoding",
        f"This proxy cannot read the Content-Encoding {coding[:100]!r}. Send the body as it is, "
        "or in gzip or deflate.",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


def invalid_encoding(coding: str, problem: str) -> ProxyError:
    return bad_request(
        "invalid_encoding",
        f"The request body is not the {coding} that its Content-Encoding announces: {problem}.",
    )


def body_too_large(max_bytes: int) -> ProxyError:
    return ProxyError(
        413,
        "request_too_large",
        f"The request body exceeds this proxy's limit of {max_bytes} bytes. Send less.",
    )


def body_stopped() -> ProxyError:
    return ProxyError(
        408,
        "request_timeout",
        "The request body stopped before its end. Send the request again.",
    )


def too_many_bodies() -> ProxyError:
    return ProxyError(
        503,
        "too_many_bodies",
        "The calls in progress hold as many bytes of request bodies as this proxy takes "
        "(MAX_BODIES_BYTES). Send the call again.",
        type="server_error",
        headers={"Retry-After": "2"},
    )


def provider_key_missing(provider: str, variable: str) -> ProxyError:
    return ProxyError(
        503,
        "provider_not_configured",
        f"Provider {provider!r} has no API key. The operator of this proxy must set {variable}.",
        type="server_error",
    )


def log_queue_unavailable(reason: str) -> ProxyError:
    return ProxyError(
        503,
        "log_queue_unavailable",
        f"The call cannot be logged, so it is refused: {reason}",
        type="server_error",
        headers={"Retry-After": "5"},
    )


def draining() -> ProxyError:
    return ProxyError(
        503,
        "shutting_down",
        "This server is shutting down. Send the call again.",
        type="server_error",
        headers={"Retry-After": "1"},
    )


def upstream_unreachable(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        502,
        "upstream_unreachable",
        f"Provider {provider!r} could not be reached: {reason}",
        type="server_error",
    )


def upstream_broken(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        502,
        "upstream_error",
        f"The answer of provider {provider!r} broke off: {reason}",
        type="server_error",
    )


def upstream_timeout(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        504,
        "upstream_timeout",
        f"Provider {provider!r} did not answer in time: {reason}",
        type="server_error",
    )


def upstream_redirect(provider: str, status: int, endpoint: str) -> ProxyError:
    return ProxyError(
        502,
        "upstream_redirect",
        f"Provider {provider!r} answered with a redirect ({status}), which this proxy does not "
        f"follow. Its operator must correct the provider's endpoint {endpoint} in config.json.",
        type="server_error",
    )


def internal_error() -> ProxyError:
    return ProxyError(
        500,
        "internal_error",
        "The proxy failed on this call. Its operator finds the cause in the proxy's stderr.",
        type="server_error",
    )
