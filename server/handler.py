"""What all handlers share: a bound on bodies, CORS, the proxy's own answers.

Whether a request is taken is decided from its head, before its body is read; a body that nobody
asked for is thrown away while it comes. `judge` is where a route adds its own conditions.
"""

import asyncio
import json
import logging
import random
from typing import ClassVar

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.http1.answer import Answer
from open_llm_proxy.server.http1.connection import ClientConnection, ClientGone
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.proxy_errors import ProxyError, internal_error, method_not_allowed
from open_llm_proxy.server.request_body import SMALL_BYTES, RequestBody
from open_llm_proxy.server.routes_not_offered import why_not_offered
from open_llm_proxy.server.services import Services

log = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Paths that stand for a route; the provider's URL and the log have the route.
ALIASES = {"/chat": "/v1/chat/completions"}


class ProxyHandler:
    """An `Exchange`: answers JSON, errors in OpenAI's shape, and preflights; handlers only add
    their verbs, `get` and `post`."""

    methods: ClassVar[list[str]]

    def __init_subclass__(cls) -> None:
        verbs = {"HEAD": "get"}
        cls.methods = [m for m in METHODS if hasattr(cls, verbs.get(m, m.lower()))]

    def __init__(self, services: Services, connection: ClientConnection, request: Request) -> None:
        self.services = services
        self.connection = connection
        self.request = request
        self.path = ALIASES.get(request.path, request.path)
        # Not of os.urandom, which gives the interpreter lock up, to a thread that commits.
        self.request_id = f"{random.getrandbits(64):016x}"
        self.body = RequestBody(request, self.max_body_bytes, services.bodies)
        self.answer = Answer(
            connection, request, self._common_headers(), services.lifecycle.is_leaving
        )
        self._refusal: ProxyError | None = None
        self._has_failed = False  # the rest of the body does not come
        self.task: asyncio.Task[None] | None = None

    @property
    def max_body_bytes(self) -> int:
        return SMALL_BYTES

    def judge(self) -> None:
        """Whether this route takes the request, by its head; raises `ProxyError` where not."""
        self.body.forget()
        if self.body.is_too_large:
            raise proxy_errors.body_too_large(self.max_body_bytes)

    async def options(self) -> None:
        """CORS preflight."""
        self.answer.headers |= self.services.cors.preflight(self.request.headers)
        self.answer.status = 204
        self.answer.end()

    def check_key(self) -> str:
        """The name of the request's key; raises `ProxyError`, see `ProxyKeys.check`."""
        name = self.services.keys.check(self.request)
        self.connection.has_shown_key = True
        return name

    # Called by the connection.

    def head_came(self) -> None:
        try:
            method = self.request.method
            why = why_not_offered(method, self.path)
            if why is not None:
                raise proxy_errors.route_not_offered(f"{method} {self.path}", why)
            if method not in self.methods:
                raise method_not_allowed(self.path, self.methods)
            self.judge()
        except ProxyError as error:
            self.refuse(error)
        else:
            if self.request.awaits_100:
                self.connection.write(CONTINUE)

    def body_came(self, piece: bytes) -> None:
        self.body.add(piece)
        if self._refusal is not None:
            return
        if self.body.is_too_large:
            self.refuse(proxy_errors.body_too_large(self.max_body_bytes))
        elif self.body.has_no_room:
            self.refuse(proxy_errors.too_many_bodies())

    def body_ended(self) -> None:
        if self._refusal is None:
            self.task = asyncio.get_running_loop().create_task(self._run())
        elif self.task is None:
            self._answer_refusal(self._refusal)

    def body_failed(self, error: ProxyError) -> None:
        self._has_failed = True
        if self._refusal is None:
            self.refuse(error)
        elif self.task is None:
            self._answer_refusal(self._refusal)

    def client_left(self) -> None:
        self.body.forget()

    # Refusals.

    def refuse(self, error: ProxyError) -> None:
        """Log the request, where such are logged, and answer with the error."""
        self.body.forget()
        self._refusal = error
        if self.is_logged(error):
            self.task = asyncio.get_running_loop().create_task(self._log_and_refuse(error))
        else:
            self._decide_when(error)

    def is_logged(self, error: ProxyError) -> bool:
        """Whether the log has requests that are refused like this, and `logged` is to be called."""
        return False

    async def logged(self, error: ProxyError) -> ProxyError:
        """Log a request that is refused; what to answer."""
        return error

    async def _log_and_refuse(self, error: ProxyError) -> None:
        try:
            self._refusal = await self.logged(error)
        except Exception:
            self._refusal = self._defect()
        self.task = None
        self._decide_when(self._refusal)

    def _decide_when(self, error: ProxyError) -> None:
        """Answer, unless a body is to come that is so short that the connection can go on."""
        self.services.metrics.count_refusal(error.code)
        comes = not (self.request.has_ended or self.request.awaits_100 or self._has_failed)
        if not (comes and self.body.is_small):
            self._answer_refusal(error)

    def _answer_refusal(self, error: ProxyError) -> None:
        self.answer.closes = self.answer.closes or not self.request.has_ended
        self._try_to_answer(error)

    # Answers.

    async def _run(self) -> None:
        """Call the method's verb; whatever it raises is answered without a secret."""
        verb = "get" if self.request.method == "HEAD" else self.request.method.lower()
        try:
            await getattr(self, verb)()
        except ProxyError as error:
            self._try_to_answer(error)
        except ClientGone:
            log.debug("Client of request %s closed the connection", self.request_id)
        except Exception:
            self._try_to_answer(self._defect())
        finally:
            self.body.forget()

    def _defect(self) -> ProxyError:
        log.exception("Request %s failed by a defect of the proxy", self.request_id)
        return internal_error()

    def answer_json(self, status: int, document: object) -> None:
        """Send a whole JSON answer."""
        # A lone surrogate, from somebody's path or model, becomes the JSON escape that it was.
        text = json.dumps(document, ensure_ascii=False)
        self.answer_text(status, "application/json", text.encode("utf-8", "backslashreplace"))

    def answer_text(self, status: int, content_type: str, text: bytes) -> None:
        """Send a whole answer."""
        self.answer.status = status
        self.answer.headers["Content-Type"] = content_type
        self.answer.end(text)

    def answer_error(self, error: ProxyError) -> None:
        """Send one of the proxy's own errors."""
        self.answer.headers |= error.headers
        self.answer_json(error.status, error.body())

    def _try_to_answer(self, error: ProxyError) -> None:
        """An answer under way must not be completed by an error."""
        if self.answer.has_begun:
            self.answer.cut()
        elif not self.connection.is_closed:
            self.answer_error(error)

    def _common_headers(self) -> dict[str, str]:
        # X-Request-Id is what SDKs read; an answer of a provider has the provider's, or none.
        ids = {"X-Proxy-Request-Id": self.request_id, "X-Request-Id": self.request_id}
        return ids | self.services.cors.headers(self.request.headers.get("Origin"))


class UnknownPathHandler(ProxyHandler):
    """404 for every other path, naming the routes there are."""

    def judge(self) -> None:
        if self.request.method != "OPTIONS":
            raise proxy_errors.unknown_url(self.path)
        super().judge()


UnknownPathHandler.methods = list(METHODS)


class UnreadableHandler(ProxyHandler):
    """The answer to what is no request, and then the end of the connection."""

    def __init__(
        self, services: Services, connection: ClientConnection, problem: ProxyError
    ) -> None:
        super().__init__(services, connection, Request("GET", "/", "1.1", Headers()))
        self._problem = problem

    def head_came(self) -> None:
        self._has_failed = True
        self.refuse(self._problem)
