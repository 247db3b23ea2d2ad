"""CORS, handled by the application and not by an ingress (Fetch standard, "CORS protocol").

Browser apps call from any origin with a key in the Authorization header. Cookies are not used, so
`*` is a safe default and credentials are never allowed. The requested headers are echoed, because
`*` does not cover Authorization and every SDK sends headers of its own. Pages may read all headers
of an answer: `*` covers those, as long as no cookies are sent.
"""

import re

from open_llm_proxy.server.http1.headers import Headers

_HEADER_LIST = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")


class CorsPolicy:
    """`allow_origins` holds ``*`` or whole origins such as ``https://app.example.org``."""

    def __init__(self, allow_origins: tuple[str, ...]) -> None:
        self._any = "*" in allow_origins
        self._origins = frozenset(allow_origins)

    def headers(self, origin: str | None) -> dict[str, str]:
        """The CORS headers of every answer to a page from `origin`."""
        if self._any:
            allowed = {"Access-Control-Allow-Origin": "*"}
        elif origin in self._origins:
            allowed = {"Access-Control-Allow-Origin": str(origin), "Vary": "Origin"}
        else:
            return {"Vary": "Origin"}
        return allowed | {"Access-Control-Expose-Headers": "*"}

    def preflight(self, request_headers: Headers) -> dict[str, str]:
        """The additional headers of an answer to a preflight (OPTIONS) request."""
        asked = request_headers.get("Access-Control-Request-Headers", "")
        allowed = asked if _HEADER_LIST.fullmatch(asked) else "Authorization, Content-Type"
        return {
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "86400",
        }
