"""A stored line as the readers of the log take it: lenient, and only what they show.

Lines of other versions, of other programs on the same stdout, or cut ones must not stop a
reader. A line that is no entry is counted and passed over.
"""

from collections.abc import Iterable, Iterator

import msgspec

from open_llm_proxy.archive.entry import LoggedToolCall, ToolResult


class LogRow(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a row that is shown; the names are those of entry.py."""

    queue_id: str | None = None
    seq: int | None = None
    timestamp: str
    type: str
    request_id: str | None = None
    session_id: str | None = None
    origin: str | None = None
    client: str | None = None
    key_name: str | None = None
    provider: str | None = None
    model: str | None = None
    endpoint: str | None = None
    stream: bool | None = None
    message_count: int | None = None
    user_question: str | None = None
    user_message_this_turn: str | None = None
    tool_results_this_turn: list[ToolResult] | None = None
    system_sha256: str | None = None
    outcome: str | None = None
    status: int | None = None
    latency_ms: int | None = None
    ttft_ms: int | None = None
    content: str | None = None
    content_preview: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[LoggedToolCall] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    error: str | None = None

    @property
    def order(self) -> tuple[str, str, int]:
        """Time first, as rows of several queues have no other order among each other."""
        return (self.timestamp, self.queue_id or "", self.seq or 0)

    def belongs_to(self, name: str) -> bool:
        """Whether `name` is this row's session or its request."""
        return name in (self.session_id, self.request_id)


class RowReader:
    """Decodes lines; `skipped` counts those that are no entries."""

    def __init__(self) -> None:
        self.skipped = 0
        self._decoder = msgspec.json.Decoder(LogRow)

    def row(self, line: bytes) -> LogRow | None:
        """The row of a line, None for one that is no entry; the head of an object is none."""
        try:
            row = self._decoder.decode(line)
            return None if row.type == "schema" else row
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.skipped += 1 if line.strip() else 0
            return None

    def rows(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, LogRow]]:
        """The entries among the lines, with their lines."""
        for line in lines:
            row = self.row(line)
            if row is not None:
                yield line, row
