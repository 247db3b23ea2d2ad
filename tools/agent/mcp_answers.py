"""What an MCP server answers, read before the MCP library judges it.

The library refuses a list of tools for one odd tool and a result for one odd part, and it raises
the same error for what a tool said, for an HTTP status and for a lost connection. `Answers` stands
between transport and library: it passes on what the library takes, and marks each error with where
it came from.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx2
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, ErrorData, JSONRPCError, JSONRPCResponse

from .content import result_text
from .tool_schemas import usable_tools

# How the library's transport begins what it says where an answer broke off.
BROKEN_STREAM = ("SSE stream ended", "SSE stream failed")
SESSION_HEADER = "mcp-session-id"
# With these a server refuses the calls of a session that it has forgotten.
FORGOTTEN = frozenset({401, 403, 404, 410, 503})
MEANINGS = {
    401: "it wants credentials, or refuses those in the URL",
    403: "it forbids this",
    404: "there is nothing at this URL",
    503: "it is not available at present",
    504: "a gateway waited too long for it",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status in place of an answer. `str` gives it in words."""

    status: int
    retry_after: str | None
    in_session: bool

    @property
    def is_forgotten_session(self) -> bool:
        """Whether a new session may help; the call has surely not begun."""
        return self.status in FORGOTTEN or (self.status == 400 and self.in_session)

    @property
    def may_have_run(self) -> bool:
        return self.status >= 500 and self.status not in (501, 503)

    def __str__(self) -> str:
        known = self.status in HTTPStatus._value2member_map_
        name = f" {HTTPStatus(self.status).phrase}" if known else ""
        wait = f"it asks to wait {self.retry_after} s" if self.retry_after else None
        meaning = "; ".join(filter(None, (MEANINGS.get(self.status), wait)))
        return f"HTTP {self.status}{name}" + (f" ({meaning})" if meaning else "")


class Told(dict[str, Any]):
    """An error's data, with where it came from: in a message, and not from the library itself."""

    def __init__(self, data: object, refusal: Refusal | None, broke_off: bool) -> None:
        super().__init__(data if isinstance(data, dict) else {})
        self.refusal = refusal
        self.broke_off = broke_off


class Refusals:
    """The HTTP errors of one connection, by the id of the request that got one."""

    def __init__(self) -> None:
        self.last_status: int | None = None
        self.last: Refusal | None = None
        self._by_id: dict[object, Refusal] = {}

    async def note(self, response: httpx2.Response) -> None:
        """A hook for httpx2: sees each response before the library does."""
        self.last_status, self.last = response.status_code, None
        if response.status_code < 400:
            return
        wait = response.headers.get("retry-after", "")
        in_session = SESSION_HEADER in response.request.headers
        self.last = Refusal(response.status_code, wait if wait.isdecimal() else None, in_session)
        try:
            self._by_id[json.loads(response.request.content).get("id")] = self.last
        except (ValueError, AttributeError, httpx2.RequestNotRead):
            return  # a stream that the library opens for itself

    def taken(self, request_id: object) -> Refusal | None:
        return self._by_id.pop(request_id, None)


class Answers:
    """The stream of messages from a server, as the MCP library reads it.

    `notes` says what of the server's tools was left out or changed.
    """

    def __init__(self, stream: Any, refusals: Refusals, notes: list[str]) -> None:
        self._stream = stream
        self._refusals = refusals
        self._notes = notes

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        return self._read(await self._stream.receive())

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return self._read(await self._stream.__anext__())

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stream.__aexit__(error_type, error, traceback)

    def _read(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, JSONRPCError):
            error = message.error
            broke_off = error.code == CONNECTION_CLOSED and error.message.startswith(BROKEN_STREAM)
            told = Told(error.data, self._refusals.taken(message.id), broke_off)
            message.error = ErrorData(code=error.code, message=error.message, data=told)
        elif isinstance(message, JSONRPCResponse):
            message.result = self._usable(message.result)
        return item

    def _usable(self, result: dict[str, Any]) -> dict[str, Any]:
        """A result in the form that the library takes; null is as good as absent."""
        usable = {key: value for key, value in result.items() if value is not None}
        if "tools" in result:
            usable["tools"], notes = usable_tools(result["tools"])
            self._notes += [note for note in notes if note not in self._notes]
            if not isinstance(usable.get("nextCursor", ""), str):
                del usable["nextCursor"]
        elif result.keys() & {"content", "structuredContent", "isError"}:
            kind = {k: v for k, v in usable.items() if k == "resultType"}
            text = {"type": "text", "text": result_text(result)}
            return {**kind, "content": [text], "isError": result.get("isError") is True}
        return usable
