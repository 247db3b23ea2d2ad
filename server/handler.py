"""What all handlers share: strict framing, a bound on bodies, CORS, the proxy's own answers.

Whether a request is taken is decided from its head, before its body is read; a body that nobody
asked for is thrown away while it comes. `judge` is where a route adds its own conditions.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.client_stream import ClientStream
from open_llm_proxy.server.proxy_errors import ProxyError, internal_error, method_not_allowed
from open_llm_proxy.server.request_body import (
    LINGER_SECONDS,
    LINGER_SILENCE_SECONDS,
    SMALL_BYTES,
    RequestBody,
    framing_problem,
)
from open_llm_proxy.server.routes_not_offered import why_not_offered
from open_llm_proxy.server.services import Services

log = logging.getLogger(__name__)

CONTINUE = "100-continue"
# Paths that stand for a route; the provider's URL and the log have the route.
ALIASES = {"/chat": "/v1/chat/completions"}


@stream_request_body
class ProxyHandler(RequestHandler):
    """Answers JSON, errors in OpenAI's shape, and preflights; handlers only add their verb."""

    services: Services
    request_id: str

    def __init_subclass__(cls) -> None:
        # HEAD is GET, whose body Tornado then leaves out.
        if "get" in vars(cls):
            cls.head = cls.get

    def initialize(self, services: Services) -> None:
        self.services = services
        self.request_id = os.urandom(8).hex()
        self.request.path = ALIASES.get(self.request.path, self.request.path)
        headers = self.request.headers
        if headers.get("Expect", "").lower() == CONTINUE:
            # RFC 9110, section 10.1.1: in any case, but not of HTTP/1.0. Tornado sees to neither.
            del headers["Expect"]
            if self.request.version != "HTTP/1.0":
                headers["Expect"] = CONTINUE
        self.body = RequestBody(headers, self.max_body_bytes, services.bodies)
        self.client_stream.head_came(self.body_stopped)
        self._refusal: ProxyError | None = None
        self._set_common_headers()

    @property
    def max_body_bytes(self) -> int:
        return SMALL_BYTES

    def prepare(self) -> Awaitable[None] | None:
        """Decide by the request's head; Tornado reads the body afterwards."""
        request = self.request
        # The limit is ours to enforce, with an answer; Tornado's own would only hang up.
        self.connection.set_max_body_size(sys.maxsize)
        problem = framing_problem(request.version, request.headers)
        if problem is not None:
            error = proxy_errors.ambiguous_framing(problem)
            self.services.metrics.count_refusal(error.code)
            self._refuse_at_once(error)
            return None
        try:
            if self.client_stream.head_is_too_large:
                raise proxy_errors.headers_too_large()
            why = why_not_offered(str(request.method), request.path)
            if why is not None:
                raise proxy_errors.route_not_offered(f"{request.method} {request.path}", why)
            if request.method not in (methods := self._allowed_methods()):
                raise method_not_allowed(request.path, methods)
            return self.judge()
        except ProxyError as error:
            self.refuse(error)
            return None

    def judge(self) -> Awaitable[None] | None:
        """Whether this route takes the request; raises `ProxyError` where it does not."""
        self.body.forget()
        if self.body.is_too_large:
            raise proxy_errors.body_too_large(self.max_body_bytes)
        return None

    def check_key(self) -> str:
        """The name of the request's key; raises `ProxyError`, see `ProxyKeys.check`."""
        name = self.services.keys.check(self.request)
        self.client_stream.has_shown_key = True
        return name

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self.body.add(chunk)
        if self._refusal is not None:
            if self.body.has_lingered and not self._finished:
                self.finish()
        elif self.body.is_too_large or self.body.has_no_room:
            return self.overflow()
        return None

    def overflow(self) -> Awaitable[None] | None:
        """More of the body has come than the route takes."""
        self.refuse(proxy_errors.body_too_large(self.max_body_bytes))
        return None

    def body_stopped(self) -> None:
        """Nothing more of the body has come for too long."""
        self._stopping = asyncio.ensure_future(self._refuse_stopped())

    async def _refuse_stopped(self) -> None:
        if self._refusal is None:
            self.body.forget()
            self._refusal = await self.logged_refusal(proxy_errors.body_stopped())
            self.services.metrics.count_refusal(self._refusal.code)
        if self.head_sent and not self._finished:
            self.finish()
        elif not self._finished:
            self._refuse_at_once(self._refusal)

    async def logged_refusal(self, error: ProxyError) -> ProxyError:
        """Log the request that is refused, where it is one that is logged; what to answer."""
        return error

    def refuse(self, error: ProxyError) -> None:
        """Answer ahead of the body; see request_body.py for what becomes of the body."""
        self.services.metrics.count_refusal(error.code)
        self._refusal = error
        self.body.forget()
        # Tornado calls the verb once the body was read, and looks it up on the instance.
        setattr(self, str(self.request.method).lower(), self._answer_refusal)
        if not self.body.is_coming:  # Tornado would ask for it
            self._refuse_at_once(error)
            return
        if self.body.is_small:
            return
        self.set_header("Connection", "close")
        self.answer_error(error)
        self.set_header("Content-Length", str(sum(map(len, self._write_buffer))))
        self.flush()
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_SECONDS
        loop.call_later(LINGER_SILENCE_SECONDS, self._linger, until, 0)

    def _answer_refusal(self, *_: str) -> None:
        if not self.head_sent and self._refusal is not None:
            self.answer_error(self._refusal)

    def _refuse_at_once(self, error: ProxyError) -> None:
        """Answer and hang up, whatever of the body may come."""
        self.set_header("Connection", "close")
        self.answer_error(error)
        self.finish()

    def _linger(self, until: float, received_before: int) -> None:
        """Hang up once a refused body stops coming, or comes for too long."""
        if self._finished:
            return
        loop, received = asyncio.get_running_loop(), self.body.received_bytes
        if received == received_before or loop.time() > until:
            self.finish()
        else:
            loop.call_later(LINGER_SILENCE_SECONDS, self._linger, until, received)

    def _set_common_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Proxy-Request-Id", self.request_id)
        # The one that SDKs read; an answer of a provider has the provider's, or none.
        self.set_header("X-Request-Id", self.request_id)
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
    def client_stream(self) -> ClientStream:
        return cast(ClientStream, self.connection.stream)

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
        # A lone surrogate, from somebody's path or model, becomes the JSON escape that it was.
        text = json.dumps(document, ensure_ascii=False)
        self.answer_json_text(status, text.encode("utf-8", "backslashreplace"))

    def answer_json_text(self, status: int, text: bytes) -> None:
        """Write a whole JSON answer that is text already."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.write(text)

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

    def flush(self, include_footers: bool = False) -> "asyncio.Future[None]":
        """Tornado's way to send what was written; the head goes with the first of it."""
        if self.services.lifecycle.draining and not self.head_sent:
            self.set_header("Connection", "close")
        return super().flush(include_footers)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> "asyncio.Future[None]":
        """Tornado lets a handler announce `Connection: close`; here that is done, too."""
        sent = super().finish(chunk)
        closes = self._headers.get("Connection", "").lower() == "close"
        stream = self.connection.stream
        if closes and not stream.closed():
            # Resolves when all that was written before has gone out, the last chunk included.
            stream.write(b"").add_done_callback(lambda _: stream.close())
        return sent

    def on_finish(self) -> None:
        self.body.forget()

    def on_connection_close(self) -> None:
        self.body.forget()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A refusal is no defect, and neither is a client that leaves."""
        if isinstance(value, StreamClosedError):
            log.debug("Client of request %s closed the connection", self.request_id)
        elif not isinstance(value, ProxyError):
            super().log_exception(typ, value, tb)


class UnknownPathHandler(ProxyHandler):
    """404 for every other path, naming the routes there are."""

    def judge(self) -> Awaitable[None] | None:
        if self.request.method != "OPTIONS":
            raise proxy_errors.unknown_url(self.request.path)
        return super().judge()

    def _allowed_methods(self) -> list[str]:
        return list(self.SUPPORTED_METHODS)
