"""The tools of a recorded session: its results again, or live ones where an MCP server has them."""

import json
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from .mcp_tools import ToolResult, ToolServer
from .recording import Recording, call_key


class RecordedTools:
    """Offers the functions of the session as they were; the same interface as `ToolServer`.

    A call that the session made before gets the result that it had then; made more than once, the
    results come in their order, and the last one stays. With `live`, calls go to the MCP server
    for the tools that it has.
    """

    def __init__(self, recording: Recording, live: ToolServer | None) -> None:
        self._recording = recording
        self._live = live
        self._next: dict[str, int] = {}
        self._stack = AsyncExitStack()
        self.functions = recording.functions
        self.instructions: str | None = None
        self.version: str | None = None
        self.notes: list[str] = []

    async def __aenter__(self) -> Self:
        if self._live is not None:
            await self._stack.enter_async_context(self._live)
            self.version = self._live.version
            missing = [name for name in names_of(self.functions) if name not in self._live.tools]
            if missing:
                names = ", ".join(missing)
                self.notes.append(f"The MCP server has no {names}: recorded results are given.")
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """The recorded or live result. Raises ToolServerError."""
        if self._live is not None and name in self._live.tools:
            return await self._live.call(name, arguments)
        key = call_key(name, json.dumps(arguments))
        results = self._recording.results.get(key)
        if results is None:
            text = f"The recorded session did not call {name} with these arguments"
            return ToolResult(f"{text}, and only recorded results can be given.", True, True)
        number = self._next.get(key, 0)
        self._next[key] = number + 1
        return ToolResult(results[min(number, len(results) - 1)], False)


def names_of(functions: list[dict[str, Any]]) -> list[str]:
    """The names of functions as a request offers them."""
    named = (function.get("function") for function in functions)
    return [str(f["name"]) for f in named if isinstance(f, dict) and "name" in f]
