"""What all handlers share: CORS, the request's id, the proxy's own answers."""

import asyncio
import json
import logging
import secrets
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from open_llm_proxy.server.proxy_errors import ProxyError, internal_error, method_not_allowed
from open_llm_proxy.server.services import Services

log = logging.getLogger(__name__)


class ProxyHandler(RequestHandler):
    """Answers JSON, errors in OpenAI's shape, and preflights; handlers only add their verb."""

    services: Services
    request_id: str

    def initialize(self, services: Services) -> None:
        self.services = services
        self.request_id = secrets.token_hex(8)
        self._set_common_headers()

    def _set_common_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Proxy-Request-Id", self.request_id)
        if self.services.lifecycle.draining:
            self.set_header("Connection", "close")
        for name, value in self.services.cors.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def set_default_headers(self) -> None:
        # Tornado calls this before `initialize`, and again when it starts an answer anew.
        if hasattr(self, "services"):
            self._set_common_headers()

    def options(self, *_: str) -> None:
        """CORS preflight."""
        for name, value in self.services.cors.preflight(self.request.headers).items():
            self.set_header(name, value)
        self.clear_header("Content-Type")
        self.set_status(204)

    def compute_etag(self) -> str | None:
        return None

    @property
    def connection(self) -> HTTP1Connection:
        return cast(HTTP1Connection, self.request.connection)

    @property
    def head_sent(self) -> bool:
        """Whether the head of the answer was sent, so that no other can be given any more."""
        return self._headers_written

    @property
    def is_coded(self) -> bool:
        """Whether the answer's body has a content coding."""
        return "Content-Encoding" in self._headers

    def take_headers(self, headers: HTTPHeaders) -> None:
        """Put a provider's headers into the answer, in place of ours; only `Vary` adds up."""
        ours = self._headers
        for name in headers:
            first, *more = headers.get_list(name)
            if name == "Vary" and name in ours:
                ours.add(name, first)
            else:
                ours[name] = first
            for value in more:
                ours.add(name, value)

    def answer_json(self, status: int, document: object) -> None:
        """Write a whole JSON answer."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        # A lone surrogate, from somebody's path or model, becomes the JSON escape that it was.
        text = json.dumps(document, ensure_ascii=False)
        self.write(text.encode("utf-8", "backslashreplace"))

    def answer_error(self, error: ProxyError) -> None:
        """Write one of the proxy's own errors."""
        for name, value in error.headers.items():
            self.set_header(name, value)
        self.answer_json(error.status, error.body())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook for whatever was raised: no page of HTML, no traceback, no secret."""
        raised = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(raised, ProxyError):
            error = raised
        elif status_code == 405:
            error = method_not_allowed(self.request.path, self._allowed_methods())
        elif isinstance(raised, HTTPError) and status_code < 500:
            error = ProxyError(status_code, "invalid_request", raised.log_message or self._reason)
        else:
            error = internal_error()
        self.answer_error(error)
        if not self._finished:
            self.finish()

    def _allowed_methods(self) -> list[str]:
        """The methods that this handler has, for the Allow header (RFC 9110, section 15.5.6)."""
        missing = RequestHandler._unimplemented_method
        handler = type(self)
        return [m for m in self.SUPPORTED_METHODS if getattr(handler, m.lower()) is not missing]

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> "asyncio.Future[None]":
        """Tornado lets a handler announce `Connection: close`; here that is done, too."""
        closes = self._headers.get("Connection", "").lower() == "close"
        sent = super().finish(chunk)
        stream = self.connection.stream
        if closes and not stream.closed():
            # Resolves when all that was written before has gone out, the last chunk included.
            stream.write(b"").add_done_callback(lambda _: stream.close())
        return sent

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A refusal is no defect, and neither is a client that leaves."""
        if isinstance(value, StreamClosedError):
            log.debug("Client of request %s closed the connection", self.request_id)
        elif not isinstance(value, ProxyError):
            super().log_exception(typ, value, tb)


class UnknownPathHandler(ProxyHandler):
    """404 for every other path, naming the routes there are."""

    def prepare(self) -> None:
        if self.request.method != "OPTIONS":
            raise ProxyError(
                404, "unknown_url", f"Unknown URL {self.request.path[:200]}; GET / lists the routes"
            )
