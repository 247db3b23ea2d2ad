"""Who may call: the proxy's own keys, sent as ``Authorization: Bearer`` (RFC 6750).

Each key is compared in constant time, and all of them are compared even after a match, so that
response times reveal nothing about them. The log contains the name of a key, never the key.
"""

import hmac
from collections.abc import Iterable

from open_llm_proxy.server.proxy_errors import invalid_api_key, no_proxy_key
from open_llm_proxy.server.settings import DEFAULT_KEY_NAME

# The beginning of OpenAI's own message, which client libraries look for.
INCORRECT = "Incorrect API key provided"


class ProxyKeys:
    """PROXY_KEY (named ``default``) and the named keys of PROXY_KEYS_EXTRA."""

    def __init__(self, proxy_key: str, extra: Iterable[tuple[str, str]]) -> None:
        named = {DEFAULT_KEY_NAME: proxy_key} if proxy_key else {}
        self._keys = [(name, key.encode()) for name, key in (named | dict(extra)).items()]

    @property
    def is_configured(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str | None) -> str:
        """The name of the key in an Authorization header; raises `ProxyError` (401 or 503)."""
        if not self._keys:
            raise no_proxy_key()
        scheme, _, key = (authorization or "").partition(" ")
        if not key and not scheme:
            raise invalid_api_key(
                "No API key provided: send the proxy key as `Authorization: Bearer KEY`"
            )
        if scheme.lower() != "bearer":
            raise invalid_api_key(
                f"{INCORRECT}: the scheme must be Bearer, as in `Authorization: Bearer KEY`"
            )
        name = self._name_of(key)
        if name is None:
            raise invalid_api_key(f"{INCORRECT}: it is not one of the keys of this proxy")
        return name

    def is_known(self, authorization: str | None) -> bool:
        """Whether an Authorization header has one of the keys; for routes open to everybody."""
        scheme, _, key = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and self._name_of(key) is not None

    def _name_of(self, key: str) -> str | None:
        sent = key.strip().encode("utf-8", "surrogateescape")
        matches = [name for name, known in self._keys if hmac.compare_digest(sent, known)]
        return matches[0] if matches else None
