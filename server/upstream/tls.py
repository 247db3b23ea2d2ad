"""TLS settings of client connections, one `ssl.SSLContext` for each set of them.

Without settings a server is verified against the authorities of the system, or against those in
the file or folder that the environment names in SSL_CERT_FILE or SSL_CERT_DIR. A context is made
once, when it is first needed, because making one reads the certificates of all authorities; and
connections may only be shared where the context is the same.
"""

import ssl
from typing import Any, NamedTuple

from tornado.httpclient import HTTPRequest
from tornado.netutil import ssl_options_to_context

Options = dict[str, Any] | ssl.SSLContext


class _Settings(NamedTuple):
    validate_cert: bool = True
    ca_certs: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


class TLSContexts:
    """Finds the context for a request; `client_options` are for requests that set nothing."""

    def __init__(self, client_options: Options | None) -> None:
        self._client_options = client_options
        self._made: dict[object, ssl.SSLContext] = {}
        self._default: ssl.SSLContext | None = None

    def default(self) -> ssl.SSLContext:
        """For requests that set nothing; raises `OSError` for a file that cannot be read."""
        if self._default is None:
            if self._client_options is not None:
                self._default = self._of_options(self._client_options)
            else:
                self._default = self._of_settings(_Settings())
        return self._default

    def of(self, request: HTTPRequest, defaults: dict[str, Any]) -> ssl.SSLContext:
        """From the request's `ssl_options`, else its single settings, else `default`.

        Raises `OSError` for a file that cannot be read.
        """
        if request.ssl_options is not None:
            return self._of_options(request.ssl_options)
        given = {name: getattr(request, name) for name in _Settings._fields}
        for name in _Settings._fields:
            if given[name] is None:
                given[name] = defaults.get(name)
        settings = _Settings(**given)
        return self.default() if settings == _Settings() else self._of_settings(settings)

    def _of_options(self, options: Options) -> ssl.SSLContext:
        if isinstance(options, ssl.SSLContext):
            return options
        key = tuple(sorted(options.items()))
        if key not in self._made:
            self._made[key] = ssl_options_to_context(options, server_side=False)
        return self._made[key]

    def _of_settings(self, settings: _Settings) -> ssl.SSLContext:
        context = self._made.get(settings)
        if context is None:
            context = ssl.create_default_context(cafile=settings.ca_certs)
            if not settings.validate_cert:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if settings.client_cert is not None:
                context.load_cert_chain(settings.client_cert, settings.client_key)
            # Some servers refuse a client that does not say which protocol it speaks.
            context.set_alpn_protocols(["http/1.1"])
            self._made[settings] = context
        return context
