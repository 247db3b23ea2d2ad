"""Server-sent events out of arbitrary chunks of bytes.

Framing follows the WHATWG HTML standard, section 9.2.6: lines end in LF, CR or CR LF, a blank
line ends an event, ``data`` lines are joined by LF, lines that begin with a colon are comments,
and one byte order mark may come first. Chunks may be cut anywhere. The work is linear in the
bytes, one at a time or 64 MB at once, and what is kept is bounded by the largest event allowed.
"""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK_LINES = (b"\n", b"\r\n", b"\r")
_HEAD_BYTES = 1024


class Lines:
    """Cuts chunks into lines, each with its terminator; ``partial`` is the line under way."""

    def __init__(self) -> None:
        self.partial = bytearray()
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> tuple[bytes, list[bytes]]:
        """Return the LF that belongs to a CR already handed out, or b"", and the whole lines."""
        late = b""
        if self._ended_in_cr and chunk:
            self._ended_in_cr = False
            if chunk.startswith(b"\n"):
                late, chunk = b"\n", chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
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


class EventReader:
    """Takes the data of each event out of a stream.

    An event of more than ``max_event_bytes`` is left out and counted in ``dropped_events``; the
    beginning of the newest one stands in ``dropped_head``.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self.dropped_events = 0
        self.dropped_head = b""
        self._max_event_bytes = max_event_bytes
        self._lines = Lines()
        self._is_first_line = True
        self._is_between_events = False
        self._data: list[bytes] = []
        self._event_bytes = 0
        self._is_oversize = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that this chunk completes, their lines joined by LF."""
        events: list[bytes] = []
        if self._is_between_events and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            self._take_whole_events(chunk, events)
            return events
        _, lines = self._lines.feed(chunk)
        for line in lines:
            self._take_line(line, events)
        self._is_between_events = (
            not self._is_first_line and not self._lines.partial and chunk.endswith(b"\n\n")
        )
        if len(self._lines.partial) > self._max_event_bytes:
            if self._is_data(self._lines.partial):
                self._drop(self._lines.partial)
            self._lines.partial[:] = b":"  # what follows of this line is read as a comment
        return events

    def finish(self) -> list[bytes]:
        """Return the last event if its blank line is missing, which is where providers break off.

        The standard would drop it. What has arrived belongs in the log.
        """
        events: list[bytes] = []
        if self._lines.partial:
            self._take_line(bytes(self._lines.partial), events)
            self._lines.partial.clear()
        self._take_line(b"\n", events)
        return events

    def _take_whole_events(self, chunk: bytes, events: list[bytes]) -> None:
        """Take a chunk as most of them are: events of one data line each, none begun or open."""
        for block in chunk[:-2].split(b"\n\n"):
            is_simple = block.startswith(b"data: ") and b"\n" not in block
            if is_simple and len(block) < self._max_event_bytes:
                events.append(block[6:])
            else:
                for line in (block + b"\n\n").splitlines(keepends=True):
                    self._take_line(line, events)

    def _take_line(self, line: bytes, events: list[bytes]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) <= 2 and line in BLANK_LINES:
            if self._is_oversize:
                self.dropped_events += 1
            elif self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
            self._data = []
            self._event_bytes = 0
            self._is_oversize = False
        elif self._is_data(line):
            self._event_bytes += len(line)
            if self._event_bytes > self._max_event_bytes:
                self._drop(line)
            if not self._is_oversize:
                self._data.append(line[5:].removeprefix(b" ").rstrip(b"\r\n"))

    def _drop(self, line: bytes | bytearray) -> None:
        """Leave the event out that has grown too large with this line."""
        if not self._is_oversize:
            beginning = self._data[0] if self._data else line
            self.dropped_head = bytes(beginning[:_HEAD_BYTES])
        self._is_oversize = True
        self._data = []

    def _is_data(self, line: bytes | bytearray) -> bool:
        if self._is_first_line:
            line = line.removeprefix(BYTE_ORDER_MARK)
        return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"
