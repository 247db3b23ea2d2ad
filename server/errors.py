"""The answers that the proxy gives on its own account, in the shape of OpenAI's errors.

Shape and types follow OpenAI's API reference ("Error codes"), so that its SDKs raise their own
exceptions. Each message says what to do. A provider's own errors never come through here.
"""

from dataclasses import dataclass, field


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


def invalid_api_key(message: str) -> ProxyError:
    return ProxyError(
        401, "invalid_api_key", message, headers={"WWW-Authenticate": 'Bearer realm="proxy"'}
    )


def no_proxy_key() -> ProxyError:
    return ProxyError(
        503,
        "proxy_key_missing",
        "this proxy has no key configured and serves nobody: its operator must set PROXY_KEY",
        type="server_error",
    )


def model_not_found(model: str, served: list[str]) -> ProxyError:
    known = ", ".join(served[:50]) or "none"
    return ProxyError(
        404,
        "model_not_found",
        f"no provider of this proxy serves the model {model[:200]!r}; it serves: {known}",
        param="model",
    )


def method_not_allowed(path: str, allowed: list[str]) -> ProxyError:
    names = ", ".join(allowed)
    return ProxyError(
        405,
        "method_not_allowed",
        f"{path[:200]} does not take this method: use {names}",
        headers={"Allow": names},
    )


def ambiguous_framing(problem: str) -> ProxyError:
    return ProxyError(
        400,
        "ambiguous_framing",
        f"the end of this request is not certain ({problem}): send one Content-Length, or "
        "`Transfer-Encoding: chunked`",
        headers={"Connection": "close"},
    )


def body_too_large(max_bytes: int) -> ProxyError:
    return ProxyError(
        413,
        "request_too_large",
        f"the request body is over this proxy's limit of {max_bytes} bytes: send less",
    )


def provider_key_missing(provider: str, variable: str) -> ProxyError:
    return ProxyError(
        503,
        "provider_not_configured",
        f"provider {provider!r} has no API key here: the operator must set {variable}",
        type="server_error",
    )


def log_queue_unavailable(reason: str) -> ProxyError:
    return ProxyError(
        503,
        "log_queue_unavailable",
        f"the call cannot be logged, so it is not made: {reason}",
        type="server_error",
        headers={"Retry-After": "5"},
    )


def draining() -> ProxyError:
    return ProxyError(
        503,
        "shutting_down",
        "this server is shutting down: send the call again",
        type="server_error",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def upstream_unreachable(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        502,
        "upstream_unreachable",
        f"provider {provider!r} gave no answer: {reason}",
        type="server_error",
    )


def upstream_broken(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        502,
        "upstream_error",
        f"the answer of provider {provider!r} broke off: {reason}",
        type="server_error",
    )


def upstream_timeout(provider: str, reason: str) -> ProxyError:
    return ProxyError(
        504,
        "upstream_timeout",
        f"provider {provider!r} did not answer in time: {reason}",
        type="server_error",
    )


def internal_error() -> ProxyError:
    return ProxyError(
        500,
        "internal_error",
        "the proxy failed on this call; its operator finds the reason in the proxy's stderr",
        type="server_error",
    )
