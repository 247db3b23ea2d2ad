"""Who may call: the proxy's own keys, sent as ``Authorization: Bearer`` (RFC 6750).

Each key is compared in constant time, and all of them are compared even after a match, so that
response times reveal nothing about them. The log contains the name of a key, never the key.
"""

import hmac
from collections.abc import Callable, Mapping

from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.proxy_errors import (
    invalid_api_key,
    key_expired,
    model_not_allowed,
    no_proxy_key,
    rate_limit_exceeded,
    too_many_wrong_keys,
)
from open_llm_proxy.server.proxy_key import ProxyKey
from open_llm_proxy.server.request_rate import RequestRates
from open_llm_proxy.server.wrong_keys import WrongKeys

# The beginning of OpenAI's own message, which client libraries look for.
INCORRECT = "Incorrect API key provided"


class ProxyKeys:
    """The named keys of PROXY_KEY (`default`), PROXY_KEYS_EXTRA and the key files."""

    def __init__(
        self,
        keys: Mapping[str, ProxyKey],
        wrong_keys: WrongKeys | None = None,
        rates: RequestRates | None = None,
    ) -> None:
        self._wrong_keys = wrong_keys or WrongKeys()
        self._rates = rates or RequestRates()
        self.replace(keys)

    def replace(self, keys: Mapping[str, ProxyKey]) -> None:
        """From now on these are the keys; calls that are under way go on."""
        self._by_name = dict(keys)
        self._keys = [(name, key.key.encode()) for name, key in keys.items()]
        self._rates.keep(self._by_name)

    @property
    def is_configured(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._keys]

    def admit(self, name: str) -> None:
        """Count a call of the key `name`; raises `ProxyError` (429) where it is one too many."""
        key = self._by_name.get(name)
        if key is not None and key.requests_per_minute is not None:
            seconds = self._rates.seconds_to_wait(name, key.requests_per_minute)
            if seconds:
                raise rate_limit_exceeded(name, key.requests_per_minute, seconds)

    def check_model(self, name: str, model: str) -> None:
        """Raises `ProxyError` (403) where the key `name` may not call `model`."""
        key = self._by_name.get(name)
        if key is not None and not key.allows(model):
            raise model_not_allowed(name, model, key.models)

    def allowed(self, name: str) -> Callable[[str], bool] | None:
        """Says whether the key `name` may call a model; None where it may call all."""
        key = self._by_name.get(name)
        return key.allows if key is not None and key.models else None

    def check(self, request: Request) -> str:
        """The name of a request's key.

        Raises `ProxyError`: 401, 403 for a key that has expired, 503 where there is no key at all,
        and 429 where the address has tried too many wrong ones.
        """
        name = self._matching(request)
        if name is not None:
            known = self._by_name[name]
            if known.expires_at is not None and known.is_expired():
                raise key_expired(name, known.expires_at)
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

    def known_name(self, request: Request) -> str | None:
        """The name of a request's key, None where it has none that is valid; for routes that are
        open to all. Raises `ProxyError` (429) as `check` does."""
        name = self._matching(request)
        return None if name is None or self._by_name[name].is_expired() else name

    def _matching(self, request: Request) -> str | None:
        """The name of the key that was sent. A wrong one is counted, and may be one too many."""
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
