"""Who may call: the proxy's own keys, sent as ``Authorization: Bearer`` (RFC 6750).

Keys are compared in constant time, and every key is compared whichever matches, so that the
time of an answer tells nothing about them. The log names a key and never holds it.
"""

import hmac
from collections.abc import Iterable

from open_llm_proxy.server.errors import invalid_api_key, no_proxy_key

DEFAULT_NAME = "default"


class ProxyKeys:
    """PROXY_KEY (named ``default``) and the named keys of PROXY_KEYS_EXTRA."""

    def __init__(self, proxy_key: str, extra: Iterable[tuple[str, str]]) -> None:
        named = {DEFAULT_NAME: proxy_key} if proxy_key else {}
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
            raise invalid_api_key("no API key: send the proxy key as `Authorization: Bearer KEY`")
        if scheme.lower() != "bearer":
            raise invalid_api_key(
                "the API key must be sent as `Authorization: Bearer KEY`, in no other scheme"
            )
        sent = key.strip().encode("utf-8", "surrogateescape")
        matches = [name for name, known in self._keys if hmac.compare_digest(sent, known)]
        if not matches:
            raise invalid_api_key("the API key is not one of this proxy's keys")
        return matches[0]
