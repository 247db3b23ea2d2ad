"""Who may call: the proxy's own keys, sent as ``Authorization: Bearer`` (RFC 6750).

Each key is compared in constant time, and all of them are compared even after a match, so that
response times reveal nothing about them. The log contains the name of a key, never the key.
"""

import hmac
from collections.abc import Mapping

from tornado.httputil import HTTPServerRequest

from open_llm_proxy.server.proxy_errors import invalid_api_key, no_proxy_key, too_many_wrong_keys
from open_llm_proxy.server.wrong_keys import WrongKeys

# The beginning of OpenAI's own message, which client libraries look for.
INCORRECT = "Incorrect API key provided"


class ProxyKeys:
    """The named keys of PROXY_KEY (`default`), PROXY_KEYS_EXTRA and the key files."""

    def __init__(self, keys: Mapping[str, str], wrong_keys: WrongKeys | None = None) -> None:
        self._wrong_keys = wrong_keys or WrongKeys()
        self.replace(keys)

    def replace(self, keys: Mapping[str, str]) -> None:
        """From now on these are the keys; calls that are under way go on."""
        self._keys = [(name, key.encode()) for name, key in keys.items()]

    @property
    def is_configured(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._keys]

    def check(self, request: HTTPServerRequest) -> str:
        """The name of a request's key.

        Raises `ProxyError`: 401, 503 where there is no key at all, and 429 where the address has
        tried too many wrong ones.
        """
        name = self.known_name(request)
        if name is not None:
            return name
        if not self._keys:
            raise no_proxy_key()
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if not key and not scheme:
            raise invalid_api_key(
                "No API key provided: send the proxy key as `Authorization: Bearer KEY`"
            )
        if scheme.lower() != "bearer":
            raise invalid_api_key(
                f"{INCORRECT}: the scheme must be Bearer, as in `Authorization: Bearer KEY`"
            )
        raise invalid_api_key(f"{INCORRECT}: it is not one of the keys of this proxy")

    def known_name(self, request: HTTPServerRequest) -> str | None:
        """The name of a request's key, None where it has none of ours; for routes open to all.

        A wrong key is counted: raises `ProxyError` (429) where there were too many.
        """
        authorization = request.headers.get("Authorization")
        if authorization is None or not self._keys:
            return None
        scheme, _, key = authorization.partition(" ")
        sent = key.strip().encode("utf-8", "surrogateescape")
        matches = [name for name, known in self._keys if hmac.compare_digest(sent, known)]
        if matches and scheme.lower() == "bearer":
            return matches[0]
        forwarded = request.headers.get("X-Forwarded-For")
        if self._wrong_keys.is_too_often(request.remote_ip or "", forwarded):
            raise too_many_wrong_keys()
        return None
