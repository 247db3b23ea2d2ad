"""The client's side of a call: the head, the bytes, and one of two ends.

An answer ends complete, after its closing entry is durable, or visibly broken off. A stream that
breaks off gets an error event first, and the client a moment to take it, because browsers drop
what they have not read when the connection is cut.
"""

import asyncio
import logging

from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.http1.connection import ClientGone
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay.stream_error import StreamError

log = logging.getLogger(__name__)

# How long a client that reads slowly has to take the error that ends its stream, and how long
# one has to read it before the connection is cut.
ERROR_EVENT_SECONDS = 2.0
CUT_DELAY_SECONDS = 0.1


class ClientResponse:
    """Writes the answer of one call."""

    def __init__(self, handler: ProxyHandler) -> None:
        self.is_sending = False  # bytes wait for the client to take them
        self.request_id = handler.request_id
        self._handler = handler
        self._answer = handler.answer
        self._connection = handler.connection
        self._stream_error: StreamError | None = None  # where the answer is a stream

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The task that answers."""
        return self._handler.task

    @property
    def begun(self) -> bool:
        """Whether the head was sent, so that no other answer can be given any more."""
        return self._answer.has_begun

    def begin(self, status: int, reason: str, headers: Headers, *, is_stream: bool) -> None:
        """Set the head of the answer; for a stream, send it."""
        answer = self._answer
        answer.status = status
        answer.reason = reason
        answer.headers.pop("X-Request-Id", None)
        answer.passed_on = headers
        if is_stream:
            self._stream_error = StreamError()
            answer.begin()

    async def send(self, data: bytes) -> None:
        """Send bytes and wait until the client's socket has taken them."""
        if self._stream_error is not None:
            self._stream_error.follow(data)
        self._answer.write(data)
        if self._connection.is_sending:
            self.is_sending = True
            await self._connection.sent()
            self.is_sending = False

    async def end(self, held: bytes) -> None:
        """The closing entry is durable: let the client have the end of its answer."""
        if not self._connection.is_closed:
            self._answer.end(held)
            await self._connection.sent()

    async def fail(self, error: ProxyError) -> None:
        """Say in place of the answer, or of its rest, why there is none."""
        if self._connection.is_closed:
            return
        answer = self._answer
        if not answer.has_begun:
            answer.passed_on = None
            answer.reason = ""
            answer.headers["X-Request-Id"] = self.request_id
            self._handler.answer_error(error)
            return
        is_coded = answer.passed_on is not None and "Content-Encoding" in answer.passed_on
        if self._stream_error is not None and not is_coded:
            try:
                answer.write(self._stream_error.event(error.body()))
                await asyncio.wait_for(self._connection.sent(), ERROR_EVENT_SECONDS)
                await self._pause_before_the_cut()
            except (ClientGone, TimeoutError):
                log.debug("The client of call %s did not take its error", self.request_id)
        # A stream has told of its error; else an old client would take its end for a whole one.
        answer.cut(resets=self._stream_error is None)

    async def _pause_before_the_cut(self) -> None:
        await asyncio.sleep(CUT_DELAY_SECONDS)
