"""Which of a provider's bytes may go on to the client now, and which must wait for the log.

Only what would tell the client "this answer is complete" is held back until the closing entry is
durable: of a stream the event that says so (`HeldStreamEnd`), of any other body its last piece
(`HeldBodyEnd`). Like the transcript's `EventReader`, which sees the same bytes, they take them cut
anywhere, work in linear time and keep a bounded number of them.
"""

import re

from open_llm_proxy.server.transcript.event_reader import BLANK_LINES, BYTE_ORDER_MARK, Lines
from open_llm_proxy.server.transcript.usage_chunk import holds_only_usage

# How a line begins that tells a client of the chat or completions API, or of the responses
# API, that the answer is complete. Clients of the first compare the beginning of the data.
_COMPLETION_LINES = tuple(
    beginning + rest
    for beginning, rest in [
        (b"data: ", b"[DONE]"),
        (b"data:", b"[DONE]"),
        (BYTE_ORDER_MARK + b"data: ", b"[DONE]"),
        (BYTE_ORDER_MARK + b"data:", b"[DONE]"),
        *(
            (beginning, b"response." + status)
            for status in (b"completed", b"incomplete", b"failed")
            for beginning in (
                b"event: ",
                b"event:",
                b'data: {"type":"',
                b'data: {"type": "',
                b'data:{"type":"',
            )
        ),
    ]
)
_COMPLETION = re.compile(b"(?<![^\r\n])(?:%s)" % b"|".join(map(re.escape, _COMPLETION_LINES)))
_NO_CHOICES = re.compile(rb'"choices"(?!\s*+:\s*+\[\s*+\{)')
_LONGEST_COMPLETION_LINE = max(map(len, _COMPLETION_LINES))
_BLANK_LINE = re.compile(rb"\n\n|\r\r|\r\n\r\n")
_LONGEST_BLANK_LINE = 4
_CR = ord("\r")  # a number is looked for faster than a byte
_DONE_BYTES = 16  # within these of a completion stands its [DONE]


class HeldStreamEnd:
    """Keeps the end of a stream back until the log entry of the call is durable.

    A client takes ``data: [DONE]``, or the last event of the responses API, for the completion
    of its answer. `pass_on` therefore returns every byte at once up to the start of such a line,
    and keeps that line and all that follows; `held` gives it out once the entry is on disk.
    At a chunk's end it also keeps what may yet become such a line, as in ``data: [D``. Together
    the two return exactly the provider's bytes.

    Not every last event can be told by how its line begins: JSON may have its type anywhere, and
    in a content coding there are no lines. So whoever reads the events says with ``is_complete``
    that this chunk brought the end of such an event; then all of it is kept.

    What is kept is not dropped and not passed for being long, as either would break a promise.
    When more than ``max_held_bytes`` have gathered behind the completion, ``is_full`` says so:
    the relay then makes its entry durable at once, although the provider is still sending,
    writes `held`, and all later bytes pass. A relay that does so keeps the memory bounded. A last
    event that is longer than that by itself goes on but for its end: no client reads it before.

    With ``hide_usage`` (the proxy asked for stream usage on its own account) only whole events
    and comment lines pass, and the first chunk that holds nothing but usage is dropped: the one
    exception to "exactly the provider's bytes". An event of more than ``max_event_bytes`` ends the
    search, and from there on bytes pass as they come.
    """

    def __init__(
        self,
        *,
        hide_usage: bool = False,
        max_event_bytes: int = 1 << 20,
        max_held_bytes: int = 4 << 20,
    ) -> None:
        self._usage_filter = _UsageFilter(max_event_bytes) if hide_usage else None
        self._max_held_bytes = max_held_bytes
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._is_complete = False  # the completion was seen: keep everything
        self._has_ended = False  # so has the event that is the completion
        self._is_open = False  # the entry is durable: keep nothing
        self._at_line_start = True

    @property
    def saw_completion(self) -> bool:
        """Whether a line was seen, or told of, that says that the answer is complete."""
        return self._is_complete

    @property
    def is_full(self) -> bool:
        """Tell whether the entry must become durable now, with what has arrived."""
        return self._kept_bytes > self._max_held_bytes

    def pass_on(self, chunk: bytes, *, is_complete: bool = False) -> bytes:
        """Take the provider's next bytes and return those that may be written to the client."""
        if self._usage_filter is not None:
            chunk = self._usage_filter.feed(chunk)
        if self._is_open or not chunk:
            return chunk
        if self._is_complete:
            self._keep(chunk)
            return self._beginning_of_long_event()
        if self._kept:
            chunk = self._take_kept() + chunk
        if is_complete or b"[DONE]" in chunk or b"response." in chunk:
            passed = self._completion_start(chunk, is_complete)
            if passed is not None:
                self._is_complete = True
                self._keep(chunk[passed:])
                return chunk[:passed] + self._beginning_of_long_event()
        if chunk.endswith((b"\n", b"\r")):
            self._at_line_start = True
            return chunk
        passed = self._maybe_start(chunk)
        self._at_line_start = passed < len(chunk)
        if self._at_line_start:
            self._keep(chunk[passed:])
        return chunk[:passed]

    def held(self) -> bytes:
        """Give out what was kept, to be written now, and let all later bytes pass."""
        rest = self._usage_filter.finish() if self._usage_filter is not None else b""
        self._usage_filter = None
        self._is_open = True
        return self._take_kept() + rest

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self._kept_bytes += len(data)

    def _take_kept(self) -> bytes:
        kept = b"".join(self._kept)
        self._kept = []
        self._kept_bytes = 0
        return kept

    def _beginning_of_long_event(self) -> bytes:
        """Take what may go on of a last event whose end has not come and that is too long."""
        if not self.is_full or self._has_ended:
            return b""
        kept = self._take_kept()
        self._has_ended = _BLANK_LINE.search(kept) is not None or b"[DONE]" in kept[:_DONE_BYTES]
        passed = 0 if self._has_ended else len(kept) - _LONGEST_BLANK_LINE
        self._keep(kept[passed:])
        return kept[:passed]

    def _completion_start(self, data: bytes, is_complete: bool) -> int | None:
        """Return from where on the data tells a client of the completion, None if it does not."""
        found = _COMPLETION.search(data)
        if found and found.start() == 0 and not self._at_line_start:
            found = _COMPLETION.search(data, 1)
        if is_complete and (found is None or found[0].endswith(b"[DONE]")):
            return 0  # before a [DONE] may stand the event that was told of
        return found.start() if found else None

    def _maybe_start(self, data: bytes) -> int:
        """Return where the unfinished line begins if it may yet tell of it, or the length."""
        nearest = max(0, len(data) - _LONGEST_COMPLETION_LINE)
        start = max(data.rfind(b"\n", nearest), data.rfind(b"\r", nearest)) + 1
        if start == 0 and (nearest > 0 or not self._at_line_start):
            return len(data)
        last_line = data[start:]
        if any(line.startswith(last_line) for line in _COMPLETION_LINES):
            return start
        return len(data)


class HeldBodyEnd:
    """Holds back the newest piece of a body that is not a stream, so that its end comes last."""

    is_full = False

    def __init__(self) -> None:
        self._piece = b""

    def pass_on(self, chunk: bytes, *, is_complete: bool = False) -> bytes:
        """Take the next piece and return what may be written to the client."""
        if not chunk:
            return b""
        passed, self._piece = self._piece, chunk
        return passed

    def held(self) -> bytes:
        """The end of the body."""
        rest, self._piece = self._piece, b""
        return rest


class _UsageFilter:
    """Passes a stream event by event and leaves the first usage chunk out.

    A line of comment between two events passes by itself: it is what keeps a connection alive
    while a model is still reading its prompt.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._lines = Lines()
        self._event: list[bytes] = []
        self._event_bytes = 0
        self._is_searching = True
        self._drops_late_lf = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that may go on: whole events, but for the usage chunk."""
        if not self._is_searching:
            return self._without_late_lf(chunk)
        if not self._event and self._lines.is_at_start and self._is_harmless(chunk):
            return chunk
        late, lines = self._lines.feed(chunk)
        passed: list[bytes] = []
        (self._event or passed).append(late)
        for line in lines:
            if self._is_searching:
                passed.append(self._take_line(line))
            else:
                passed.append(self._without_late_lf(line))
        if self._event_bytes + len(self._lines.partial) > self._max_event_bytes:
            self._is_searching = False
        if not self._is_searching:
            passed.append(self._without_late_lf(self._take_rest()))
        return b"".join(passed)

    def finish(self) -> bytes:
        """Return what is left: an event without its blank line, unless that is the usage chunk."""
        rest = self._take_rest()
        return b"" if self._is_searching and self._is_usage_chunk(rest) else rest

    def _take_line(self, line: bytes) -> bytes:
        if not self._event and line.startswith(b":"):
            return line
        self._event.append(line)
        self._event_bytes += len(line)
        if line not in BLANK_LINES:
            return b""
        event = b"".join(self._event)
        self._event = []
        self._event_bytes = 0
        if self._is_usage_chunk(event):
            self._is_searching = False
            self._drops_late_lf = line == b"\r"
            return b""
        return event

    def _take_rest(self) -> bytes:
        rest = b"".join(self._event) + bytes(self._lines.partial)
        self._event = []
        self._event_bytes = 0
        self._lines.partial.clear()
        return rest

    def _without_late_lf(self, data: bytes) -> bytes:
        """Drop the LF of a CR LF whose CR went with the usage chunk, at a chunk's edge."""
        if self._drops_late_lf and data:
            self._drops_late_lf = False
            return data.removeprefix(b"\n")
        return data

    def _is_harmless(self, events: bytes) -> bool:
        """Whether these are whole events, as far as is seen cheaply, and none a usage chunk."""
        is_whole = events.endswith(b"\n\n") and _CR not in events
        return is_whole and (b'"usage"' not in events or not _NO_CHOICES.search(events))

    def _is_usage_chunk(self, event: bytes) -> bool:
        return b'"usage"' in event and holds_only_usage(event)
