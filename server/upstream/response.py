"""One request and its answer: from a connection of the pool until it is given back.

Bytes are parsed as they arrive and the caller pulls what was found, so that a slow client slows the
provider. Every byte that arrives is handed over before the answer fails; what arrived together is
handed over together; memory holds no more than twice 32 KiB of an answer.
"""

import asyncio
from types import TracebackType

from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.upstream.answer_parser import AnswerParser
from open_llm_proxy.server.upstream.connection import CHUNK_BYTES, Connection
from open_llm_proxy.server.upstream.exceptions import (
    ConnectionLost,
    FetchTimeout,
    MalformedResponse,
    UpstreamError,
)
from open_llm_proxy.server.upstream.origin import Origin
from open_llm_proxy.server.upstream.pool import ConnectionPool
from open_llm_proxy.server.upstream.request import RequestHead, StreamingRequest
from open_llm_proxy.server.upstream.timeouts import NEVER, SharedTimer

# A connection that the server closed while it was idle shows it within a round trip of our
# sending. One that ends later was being worked on, and its request is not sent a second time.
_STALE_SECONDS = 5.0


class UpstreamResponse:
    """The answer to one request, made by `PooledHTTPClient.stream` for one `async with`.

    The block begins when `status`, `reason` and `headers` are there. Leaving it before the body's
    end closes the connection at once. The total time-out counts within it, and is raised at its
    end.
    """

    status: int
    reason: str
    headers: Headers
    _task: "asyncio.Task[object]"
    _parser: AnswerParser

    def __init__(
        self,
        request: StreamingRequest,
        origin: Origin,
        head: RequestHead,
        pool: ConnectionPool,
        timer: SharedTimer,
        max_header_bytes: int,
    ) -> None:
        self._request = request
        self._origin = origin
        self._head = head
        self._pool = pool
        self._timer = timer
        self._max_header_bytes = max_header_bytes
        self._connection: Connection | None = None
        self._failure: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._total_over_at = self._idle_over_at = self._end_over_at = NEVER
        self._is_over = False  # by the total time-out

    async def __aenter__(self) -> "UpstreamResponse":
        task = asyncio.current_task()
        assert task is not None, "asyncio runs coroutines in tasks"
        self._task, self._cancelling = task, task.cancelling()
        if seconds := self._request.timeouts.total_seconds:
            self._total_over_at = self._timer.after(seconds)
        self._timer.watched.add(self)
        try:
            self._connection = await self._pool.acquire(self._origin, self._request)
            if not await self._exchange(self._connection):
                self._connection = await self._pool.replace(self._connection, self._request)
                await self._exchange(self._connection)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)

    async def read(self) -> bytes:
        """The next piece of the body as soon as it arrives, or b"" at the body's end.

        Raises `ConnectionLost`, `MalformedResponse` or `FetchTimeout("idle")`.
        """
        parser = self._parser
        while not (data := parser.take()):
            if self._failure is not None:
                raise self._failure
            if parser.is_complete:
                return b""
            if seconds := self._request.timeouts.idle_seconds:
                self._idle_over_at = self._timer.after(seconds)
            await self._news()
        if len(data) > CHUNK_BYTES and self._connection is not None:
            self._connection.resume()
        return data

    def end_within(self, seconds: float) -> None:
        """Close the connection if the body's end does not come in time, so that `read` fails."""
        if self._end_over_at == NEVER and not self._parser.is_complete:
            self._end_over_at = self._timer.after(seconds)

    def check(self, now: float) -> float:
        """Called by the timer."""
        if self._total_over_at <= now:
            self._total_over_at = NEVER
            self._is_over = True
            self._task.cancel()
        if self._idle_over_at <= now:
            self._idle_over_at = NEVER
            seconds = self._request.timeouts.idle_seconds
            self._failure = FetchTimeout("idle", seconds, self._origin)
            self._close_connection()
        if self._end_over_at <= now:
            self._end_over_at = NEVER
            self._close_connection()
        return min(self._total_over_at, self._idle_over_at, self._end_over_at)

    async def _exchange(self, connection: Connection) -> bool:
        """Send the request and read the final head of its answer, after any 1xx.

        False where the connection was stale. Raises `ConnectionLost` or `MalformedResponse`.
        """
        request = self._request
        self._parser = parser = AnswerParser(request.method, self._max_header_bytes)
        self._failure = None
        began = asyncio.get_running_loop().time()
        request.attempts.sends += 1
        connection.begin(self, self._head.data + (request.body or b""))
        while not parser.has_head:
            if self._failure is not None:
                is_quick = asyncio.get_running_loop().time() - began < _STALE_SECONDS
                if connection.reused and is_quick and not parser.head_bytes:
                    return False
                raise self._failure
            await self._news()
        self.status, self.reason, self.headers = parser.status, parser.reason, parser.headers
        return True

    def _leave(self, error: BaseException | None) -> None:
        """Give the connection back, and say so if the block's time was over."""
        self._timer.watched.discard(self)
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.end()
            self._parser.close()
            reusable = self._parser.reusable and not self._head.says_close
            self._pool.release(connection, reusable=reusable)
        if self._is_over:
            # As `asyncio.timeout` has it: the cancellation was ours, unless others cancelled too.
            is_ours = self._task.uncancel() <= self._cancelling
            if is_ours and isinstance(error, asyncio.CancelledError):
                seconds = self._request.timeouts.total_seconds
                raise FetchTimeout("total", seconds, self._origin) from error

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _news(self) -> "asyncio.Future[None]":
        """To be awaited: something has arrived, or nothing will any more."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        self._idle_over_at = NEVER  # now, as the time may be over before the waiter runs
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the connection.

    def data_received(self, data: memoryview) -> None:
        parser = self._parser
        parser.feed(data)
        if parser.problem is not None and self._failure is None:
            self._failure = MalformedResponse(f"{self._origin}: the answer: {parser.problem}")
        if parser.waiting_bytes > CHUNK_BYTES and self._connection is not None:
            self._connection.pause()
        self._wake()

    def connection_ended(self, error: Exception | None) -> None:
        parser = self._parser
        if parser.ends_with_connection and error is None:
            parser.is_complete = True
        elif not parser.is_complete and self._failure is None:
            self._failure = self._lost(error)
        self._wake()

    def _lost(self, error: Exception | None) -> ConnectionLost:
        parser = self._parser
        begun = parser.head_bytes > 0
        how = "was closed" if error is None else "was broken off"
        where = "within the head of the answer" if begun else "before any answer"
        if parser.has_head and error is not None:
            how, where = "broke", f"after {parser.body_bytes} bytes of the body"
        elif parser.has_head:
            length = parser.headers.get("Content-Length")
            of = "" if length is None else f" of {length}"
            where = f"after {parser.body_bytes}{of} bytes of the body, before its end"
        lost = ConnectionLost(
            f"{self._origin}: the connection {how} {where}", response_started=begun
        )
        lost.__cause__ = error
        return lost
