"""The chunked transfer coding of a body (RFC 9112, section 7.1), from pieces cut anywhere.

Chunk extensions and trailers are read over, as a recipient must be able to (sections 7.1.1 and
7.1.2). All else is taken literally: a size is nothing but hexadecimal digits, a line ends in CR LF,
and a chunk is as long as it says, because two readers who disagree about that see two answers.
"""

import re

# Hexadecimal digits enough for every size, and few enough for an int of any other reader.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MAX_SIZE_LINE_BYTES = 1024
_MAX_TRAILER_BYTES = 16 * 1024


class ChunkedDecoder:
    """Decodes one body. `problem` says what is wrong with it, from where on nothing is decoded.

    `is_complete` tells that its end was seen, `has_excess` that more came in the same piece. It
    keeps no data, and of a line that is not whole yet at most 16 KiB.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.has_excess = False
        self.problem: str | None = None
        self._missing = 0  # bytes of the chunk under way that have not come yet
        self._is_behind_data = False  # the line end of a chunk is next
        self._is_behind_chunks = False  # only trailers are left
        self._trailer_bytes = 0
        self._rest = b""  # the beginning of a line

    def feed(self, data: bytes) -> bytes:
        """Return what the next piece holds of the body, up to a problem if there is one."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        found: list[bytes] = []
        position, end = 0, len(data)
        while position < end and not self._is_behind_chunks and self.problem is None:
            if self._missing:
                piece = data[position : position + self._missing]
                found.append(piece)
                position += len(piece)
                self._missing -= len(piece)
                self._is_behind_data = not self._missing
            elif self._is_behind_data:
                position = self._skip_line_end(data, position)
            else:
                position = self._begin_chunk(data, position, found)
        if self._is_behind_chunks and self.problem is None:
            self._skip_trailers(data, position)
        return found[0] if len(found) == 1 else b"".join(found)

    def _begin_chunk(self, data: bytes, position: int, found: list[bytes]) -> int:
        """Read a size, and the whole chunk where it is there; return the new position."""
        match = _SIZE_LINE.match(data, position)
        if match is None or match.end() - position > _MAX_SIZE_LINE_BYTES:
            if data.find(b"\r\n", position) >= 0 or len(data) - position > _MAX_SIZE_LINE_BYTES:
                self.problem = "a chunk does not begin with its size"
            self._rest = data[position:]
            return len(data)
        start, size = match.end(), int(match[1], 16)
        behind = start + size
        if size == 0:
            self._is_behind_chunks = True
        elif data[behind : behind + 2] == b"\r\n":
            found.append(data[start:behind])
            return behind + 2
        else:
            self._missing = size
        return start

    def _skip_line_end(self, data: bytes, position: int) -> int:
        line_end = data[position : position + 2]
        if line_end == b"\r\n":
            self._is_behind_data = False
        elif line_end == b"\r":
            self._rest = line_end
        else:
            self.problem = "a chunk is longer than its size says"
        return position + 2

    def _skip_trailers(self, data: bytes, position: int) -> None:
        while (line_end := data.find(b"\r\n", position)) > position:
            self._trailer_bytes += line_end + 2 - position
            position = line_end + 2
        is_end = line_end == position
        self._rest = b"" if is_end else data[position:]
        if self._trailer_bytes + len(self._rest) > _MAX_TRAILER_BYTES:
            self.problem = "its trailers do not end"
        elif is_end:
            self.is_complete = True
            self.has_excess = len(data) > position + 2
