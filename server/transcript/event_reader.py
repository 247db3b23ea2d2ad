"""Server-sent events out of arbitrary chunks of bytes.

Framing follows the WHATWG HTML standard, section 9.2.6: lines end in LF, CR or CR LF, a blank
line ends an event, ``data`` lines are joined by LF, lines that begin with a colon are comments,
and one byte order mark may come first. Chunks may be cut anywhere.

Where the standard drops something, the reader keeps it, because providers hide the reason of a
failure there: names of events, comments, lines of no known field (a bare line of JSON or of text),
events without data, and a last event without its blank line. What they mean is for others to say.

The work is linear in the bytes, one at a time or 64 MB at once. What is kept is bounded by the
largest event allowed: one that is longer goes on as a `ReducedJSON`, whose `work` is still to be
done when the event is handed out.
"""

from collections.abc import Iterator

import msgspec

from open_llm_proxy.server.transcript.reduced_json import ReducedJSON

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK_LINES = (b"\n", b"\r\n", b"\r")
_LF, _CR = b"\n\r"  # a number is looked for faster than a byte
FIELDS = (b"data:", b"event:", b"id:", b"retry:")
_COMMENT_BYTES = 4096  # of one event

Document = bytes | ReducedJSON


class Event(msgspec.Struct, gc=False):
    """One event, or what stands between two blank lines without being one.

    ``data`` is None where no line of it came. ``stray`` are the lines of no known field, joined.
    """

    data: Document | None = None
    name: bytes = b""
    comments: bytes = b""
    stray: Document | None = None

    @property
    def is_long(self) -> bool:
        return isinstance(self.data, ReducedJSON) or isinstance(self.stray, ReducedJSON)


class Lines:
    """Cuts chunks into lines, each with its terminator; ``partial`` is the line under way."""

    def __init__(self) -> None:
        self.partial = bytearray()
        self._ended_in_cr = False

    @property
    def is_at_start(self) -> bool:
        """Whether what comes next begins a line."""
        return not self.partial and not self._ended_in_cr

    def feed(self, chunk: bytes) -> tuple[bytes, list[bytes]]:
        """Return the LF that belongs to a CR already handed out, or b"", and the whole lines."""
        late = b""
        if self._ended_in_cr and chunk:
            self._ended_in_cr = False
            if chunk.startswith(b"\n"):
                late, chunk = b"\n", chunk[1:]
        if _LF not in chunk and _CR not in chunk:
            self.partial += chunk
            return late, []
        if self.partial:
            chunk = bytes(self.partial) + chunk
            self.partial.clear()
        lines = chunk.splitlines(keepends=True)
        if chunk.endswith(b"\r"):
            self._ended_in_cr = True
        elif not chunk.endswith(b"\n"):
            self.partial += lines.pop()
        return late, lines


class _Block:
    """Lines that belong together; beyond ``max_bytes`` they are reduced while they come."""

    def __init__(self, max_bytes: int, text_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._text_bytes = text_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self._reduced: ReducedJSON | None = None

    def add(self, line: bytes | bytearray, *, is_long: bool = False) -> None:
        """Take a line; of a long one the rest comes by `extend`."""
        if self._reduced is not None:
            self._reduced.feed(b"\n")
            self._reduced.feed(line)
            return
        self._lines.append(bytes(line))
        self._size += len(line) + 1
        if is_long or self._size > self._max_bytes:
            self._reduced = ReducedJSON(self._text_bytes)
            self._reduced.defer(b"\n".join(self._lines))
            self._lines.clear()

    def extend(self, piece: bytes) -> None:
        """Go on with the last line, a long one."""
        assert self._reduced is not None, "only a long line comes in pieces"
        self._reduced.feed(piece)

    def work(self) -> Iterator[None]:
        """Reduce what has come of a long document, a little at a time."""
        return iter(()) if self._reduced is None else self._reduced.work()

    @property
    def is_long(self) -> bool:
        return self._reduced is not None

    def take(self) -> Document | None:
        """Return what has come, None where nothing did, and begin anew."""
        reduced, self._reduced = self._reduced, None
        lines, self._lines, self._size = self._lines, [], 0
        if reduced is not None or not lines:
            return reduced
        return lines[0] if len(lines) == 1 else b"\n".join(lines)


class EventReader:
    """Takes the events out of a stream.

    An event of more than ``max_event_bytes`` is reduced, to texts of ``text_bytes``.
    """

    def __init__(self, max_event_bytes: int, text_bytes: int | None = None) -> None:
        self._max_event_bytes = max_event_bytes
        self._lines = Lines()
        self._is_first_line = True
        self.is_between_events = False  # as far as is seen cheaply
        text_bytes = max_event_bytes if text_bytes is None else text_bytes
        self._data = _Block(max_event_bytes, text_bytes)
        self._stray = _Block(max_event_bytes, text_bytes)
        self._comments = b""
        self._name = b""
        self._is_empty = True  # nothing of the next event has come
        self._long_line: _Block | None = None

    @property
    def is_long(self) -> bool:
        """Whether the event under way is a long one, so that there may be `work`."""
        return self._data.is_long or self._stray.is_long

    def work(self) -> Iterator[None]:
        """Reduce what has come of the event under way, a little at a time."""
        yield from self._data.work()
        yield from self._stray.work()

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes."""
        events: list[Event] = []
        if self.is_long:
            for _ in self.work():  # what the caller did not do
                pass
        if self.is_between_events and chunk.endswith(b"\n\n") and _CR not in chunk:
            self._take_whole_events(chunk, events)
            return events
        if self._long_line is not None:
            chunk = self._take_long_line(chunk, self._long_line)
        _, lines = self._lines.feed(chunk)
        for line in lines:
            self._take_line(line, events)
        self.is_between_events = (
            not self._is_first_line and not self._lines.partial and chunk.endswith(b"\n\n")
        )
        if len(self._lines.partial) > self._max_event_bytes:
            self._begin_long_line(self._lines.partial)
        return events

    def finish(self) -> list[Event]:
        """Return the last event if its blank line is missing, which is where providers break off.

        The standard would drop it. What has arrived belongs in the log.
        """
        events: list[Event] = []
        last = bytes(self._lines.partial)
        self._lines.partial.clear()
        if last == b"data" or not any(field.startswith(last) and field != last for field in FIELDS):
            self._take_line(last, events)
        self._take_line(b"\n", events)
        return events

    def _take_whole_events(self, chunk: bytes, events: list[Event]) -> None:
        """Take a chunk as most of them are: events of one data line each, none begun or open."""
        for block in chunk[:-2].split(b"\n\n"):
            if not block:
                continue
            is_simple = block.startswith(b"data: ") and _LF not in block
            if is_simple and len(block) < self._max_event_bytes:
                events.append(Event(block[6:]))
            else:
                for line in (block + b"\n\n").splitlines(keepends=True):
                    self._take_line(line, events)

    def _take_line(self, line: bytes, events: list[Event]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) <= 2 and line in BLANK_LINES:
            if not self._is_empty:
                events.append(
                    Event(self._data.take(), self._name, self._comments, self._stray.take())
                )
                self._name = self._comments = b""
                self._is_empty = True
            return
        line = line.rstrip(b"\r\n")
        self._is_empty = False
        if line.startswith(b"data:"):
            self._data.add(line[5:].removeprefix(b" "))
        elif line.startswith(b":"):
            self._add_comment(line)
        elif line.startswith(b"event:"):
            self._name = line[6:_COMMENT_BYTES].removeprefix(b" ")
        elif line == b"data":
            self._data.add(b"")
        elif not line.startswith((b"id:", b"retry:")) and line not in (b"event", b"id", b"retry"):
            self._stray.add(line)

    def _add_comment(self, line: bytes | bytearray) -> None:
        comment = bytes(line[1:_COMMENT_BYTES]).strip()
        if comment and len(self._comments) < _COMMENT_BYTES:
            self._comments += (b"\n" if self._comments else b"") + comment

    def _begin_long_line(self, line: bytearray) -> None:
        """Hand on what has come of a line that is too long to wait for its end."""
        if self._is_first_line:
            self._is_first_line = False
            del line[: len(BYTE_ORDER_MARK) if line.startswith(BYTE_ORDER_MARK) else 0]
        self._is_empty = False
        if line.startswith(b":"):
            self._add_comment(line)
        elif line.startswith(b"data:"):
            self._long_line = self._data
            self._data.add(line[6 if line.startswith(b"data: ") else 5 :], is_long=True)
        elif not line.startswith(FIELDS):
            self._long_line = self._stray
            self._stray.add(line, is_long=True)
        line[:] = b":"  # the rest of it, and its end, are a comment to `_take_line`

    def _take_long_line(self, chunk: bytes, block: _Block) -> bytes:
        """Take the rest of a long line from the chunk; returns what follows, its end first."""
        ends = [end for end in (chunk.find(b"\n"), chunk.find(b"\r")) if end >= 0]
        end = min(ends, default=len(chunk))
        block.extend(chunk[:end])
        if end < len(chunk):
            self._long_line = None
        return chunk[end:]
