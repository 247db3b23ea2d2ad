"""A JSON document of any size, read piece by piece into one of bounded size.

What is too long to be kept whole is almost always one string: a text, an image, a sound. The
reduction keeps the document's structure, its names, numbers and short strings, wherever in it they
stand, and cuts long strings, each with a mark that tells its length. So the usage behind a text of
5 MB, the transcript behind a sound, the finish reason of an event that no buffer would hold are
read by the same code as those of a short answer. Vectors and log probabilities, which the log has
no use for, become a placeholder.

The work is linear in the bytes. What is kept: strings up to ``text_bytes`` together (a string
beyond that still keeps its first half kilobyte) and structure up to ``STRUCTURE_BYTES``; behind
that only the members in ``FACTS``, a quarter of a megabyte of them.

The same reading completes a document that breaks off: what was open is closed, half a number or
half a name is left out, because half a number is a wrong number.
"""

import re
from collections.abc import Iterator

from open_llm_proxy.archive.text import cut_mark
from open_llm_proxy.server.json_text import MAX_DEPTH, whole_characters, without_half_escape
from open_llm_proxy.server.transcript.known_members import DATA, FACTS, PATHS, TEXTS, VECTORS
from open_llm_proxy.server.transcript.open_values import OpenContainer, OpenString

STRUCTURE_BYTES = 3 << 17
HEAD_BYTES = 16384  # of the document as it came, for the case that it is no JSON
_FACT_BYTES = 1 << 18
_SLICE_BYTES = 1 << 16
_STEP_BYTES = 1 << 14  # of the smallest values this is 10 ms of work
_LABEL_BYTES = 2048
_NAME_BYTES = 1024
_DATA_BYTES = 256
_SCALAR_BYTES = 4096
_VALUE_BYTES = 48  # what a value counts beside its text: there may be very many

_PLACEHOLDER = '"…"'.encode()

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb'[^\s"\[\]{},:]++')
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*+)*+', re.DOTALL)
# The second half of a surrogate pair is no character of its own.
_ESCAPE = re.compile(rb"\\(?:u(?:([dD][c-fC-F])|[0-9a-fA-F]{2})[0-9a-fA-F]{2}|.)", re.DOTALL)
_CONTINUATION = bytes(range(0x80, 0xC0))
_UNBRACKETED = rb'[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"'
# Some values at a time, where nothing has to be decided about each: not all, because where they do
# not fit, one of them is taken and the others are looked at again.
_SCALARS = re.compile(rb'(?:(?:[^\s"\[\]{},:]++|\{\}|\[\])[ \t\r\n]*+,[ \t\r\n]*+){1,256}+')
_NO_FACTS = re.compile(
    rb'(?:"(?!(?:%b)")[^"\\]*+"[ \t\r\n]*+:[ \t\r\n]*+(?:[^\s"\[\]{},:]++|"[^"\\]*+")'
    rb"[ \t\r\n]*+,[ \t\r\n]*+)++" % b"|".join(sorted(FACTS))
)
_RUN = re.compile(rb"[\[{]++|[\]}]++")
# All up to the next bracket that matters to who only looks for the end of a value.
_SKIPPED = re.compile(
    rb"(?:%b|\[[^\"\[\]{}]*+\]|\{(?:%b)*+\})*+" % (_UNBRACKETED, _UNBRACKETED), re.DOTALL
)


class _Broken(Exception):
    """The document is no JSON from here on."""


class ReducedJSON:
    """Feed it a document; `document` closes and returns the reduced one.

    ``is_whole`` says that the document came to its own end, ``is_cut`` that something of it was
    left out or shortened, ``has_gaps`` that texts or calls were left out without a mark.
    ``behind`` is the beginning of what stands behind its end, white space left out.
    """

    def __init__(self, text_bytes: int) -> None:
        self.size = 0
        self.head = b""
        self.is_whole = False
        self.is_cut = False
        self.has_gaps = False
        self.behind = b""
        self._is_broken = False
        self._text_left = text_bytes
        self._structure_left = STRUCTURE_BYTES
        self._facts_left = _FACT_BYTES
        self._out = bytearray()
        self._stack: list[OpenContainer] = []
        self._string: OpenString | None = None
        self._skipped_depth = 0
        self._skips_rest = False  # of the innermost array, and not one value only
        self._rest = b""
        self._deferred = bytearray()

    @property
    def is_json(self) -> bool:
        """Whether it began as a JSON object or array, and went on as one."""
        return bool(self._out) and not self._is_broken

    def defer(self, chunk: bytes | bytearray) -> None:
        """Take bytes that are read by `work` only, and all that come before that behind them."""
        self._deferred += chunk

    def work(self) -> Iterator[None]:
        """Read what was deferred, a little at a time; to be done before anything is asked."""
        while self._deferred:
            chunk = bytes(self._deferred[:_STEP_BYTES])
            del self._deferred[:_STEP_BYTES]
            self._feed(chunk)
            yield

    def feed(self, chunk: bytes | bytearray) -> None:
        """Take the next bytes."""
        if self._deferred:
            self.defer(chunk)
        else:
            self._feed(chunk)

    def _feed(self, chunk: bytes | bytearray) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += bytes(chunk[: HEAD_BYTES - len(self.head)])
        self.size += len(chunk)
        view = memoryview(chunk)
        for start in range(0, len(chunk), _SLICE_BYTES):
            if self.is_whole:
                self._take_behind(bytes(view[start:]))
                return
            if self._is_broken:
                return
            data = self._rest + bytes(view[start : start + _SLICE_BYTES])
            self._rest = b""
            try:
                self._take(data)
            except _Broken:
                self._is_broken = True

    def document(self) -> bytes:
        """Return the reduced document, closed where the document has not closed it."""
        for _ in self.work():
            pass
        if self._string is not None and not self._skipped_depth:
            string, self._string = self._string, None
            if not string.is_key:
                if string.length == len(string.kept):
                    string.kept = bytearray(_whole_end(string.kept))
                    string.length = len(string.kept)
                self._write_string(string)
        closers = bytes(b"}"[0] if open_.is_object else b"]"[0] for open_ in reversed(self._stack))
        return bytes(self._out) + closers

    def _take(self, data: bytes) -> None:
        position = 3 if not self._out and data.startswith(b"\xef\xbb\xbf") else 0
        while position < len(data) and not self.is_whole:
            if self._string is not None:
                position = self._take_string(data, position, self._string)
            elif self._skipped_depth:
                position = self._skip(data, position)
            else:
                position = self._take_token(data, position)
            if self._rest:
                return
        self._take_behind(data[position:])

    def _take_behind(self, data: bytes) -> None:
        data = data if self.behind else data.lstrip(b" \t\r\n")
        if len(self.behind) < HEAD_BYTES:
            self.behind += data[: HEAD_BYTES - len(self.behind)]

    def _take_token(self, data: bytes, position: int) -> int:
        found = _SPACE.match(data, position)
        position = found.end() if found else position
        if position == len(data):
            return position
        top = self._stack[-1] if self._stack else None
        if top is not None and (run := self._take_run(data, position, top)) > position:
            return run
        symbol = data[position : position + 1]
        if symbol == b'"':
            self._begin_string()
        elif symbol in b"{[":
            self._open(symbol == b"{")
        elif symbol in b"}]":
            self._close(symbol == b"}")
        elif symbol in b",:":
            self._separate(symbol)
        else:
            return self._take_scalar(data, position, top)
        return position + 1

    def _take_scalar(self, data: bytes, position: int, top: OpenContainer | None) -> int:
        scalar = _SCALAR.match(data, position)
        end = scalar.end() if scalar else position + 1
        if end == len(data):
            if len(data) - position > _SCALAR_BYTES:
                raise _Broken
            self._rest = data[position:]
            return end
        if top is None or top.expects != "value":
            raise _Broken
        if self._begin_value(end - position):
            self._write(data[position:end])
        self._end_value()
        return end

    def _take_run(self, data: bytes, position: int, top: OpenContainer) -> int:
        """Take numbers of an array, or members that are no facts, as one; returns their end."""
        if top.expects == "value" and not top.is_object and self._structure_left > 0:
            found = _SCALARS.match(data, position)
            if found is None:
                return position
            run = found[0].translate(None, b" \t\r\n")[:-1]
            size = len(run) + run.count(b",") * _VALUE_BYTES
            if size + _VALUE_BYTES > self._structure_left:
                return position
            self._begin_value(size)
            self._write(run)
        elif top.expects == "key" and self._structure_left <= 0 and not top.is_fact:
            found = _NO_FACTS.match(data, position)
            self.is_cut = True
        else:
            return position
        return position if found is None else found.end()

    def _separate(self, symbol: bytes) -> None:
        top = self._stack[-1] if self._stack else None
        if top is None or top.expects != ("comma" if symbol == b"," else "colon"):
            raise _Broken
        top.expects = "key" if symbol == b"," and top.is_object else "value"

    def _open(self, is_object: bool) -> None:
        if self._stack and self._stack[-1].expects != "value":
            raise _Broken
        name, is_fact = b"", False
        if self._stack:
            top = self._stack[-1]
            name = top.key if top.is_object else top.name
            is_fact = top.is_fact or (
                self._structure_left <= 0 and name in FACTS and name not in PATHS
            )
        if name in VECTORS and self._stack[-1].is_object:
            if self._begin_value(0):
                self._write(_PLACEHOLDER)
            self._skipped_depth = 1
        elif len(self._stack) >= MAX_DEPTH or not self._begin_value(2):
            self.is_cut = True
            self._skipped_depth += 1
        else:
            self._write(b"{" if is_object else b"[")
            expects = "key" if is_object else "value"
            self._stack.append(OpenContainer(is_object, is_fact, name, expects=expects))

    def _close(self, is_object: bool) -> None:
        top = self._stack[-1] if self._stack else None
        if top is None or top.is_object != is_object:
            raise _Broken
        if top.expects == "colon" or (is_object and top.expects == "value"):
            raise _Broken
        self._stack.pop()
        self._write(b"}" if is_object else b"]")
        self._end_value()

    def _begin_value(self, size: int) -> bool:
        """Make room for a value of so many bytes; False if it is to be left out."""
        if not self._stack:
            return True
        top = self._stack[-1]
        size += len(top.key) + _VALUE_BYTES
        if len(top.key) > _NAME_BYTES:
            self.is_cut = True
            return False
        if self._structure_left > 0:
            self._structure_left -= size
        else:
            name = top.key if top.is_object else top.name
            is_fact = top.is_fact or name in PATHS or (top.is_object and name in FACTS)
            if not is_fact or self._facts_left < size:
                self.is_cut = True
                self.has_gaps |= top.name in TEXTS or top.key in TEXTS
                if not top.is_object:
                    self._skips_rest, self._skipped_depth = True, 1
                return False
            self._facts_left -= size
        if not top.is_empty:
            self._write(b",")
        top.is_empty = False
        if top.is_object:
            self._write(b'"' + top.key + b'":')
        return True

    def _end_value(self) -> None:
        if self._stack:
            self._stack[-1].expects = "comma"
        else:
            self.is_whole = True

    def _write(self, data: bytes) -> None:
        self._out += data

    def _begin_string(self) -> None:
        top = self._stack[-1] if self._stack else None
        if top is None or top.expects not in ("key", "value"):
            raise _Broken
        if top.expects == "key":
            self._string = OpenString(True, _NAME_BYTES + 1)
            return
        name = top.key if top.is_object else top.name
        is_data = name in DATA
        if name in VECTORS or is_data:
            room = _DATA_BYTES
        else:
            room = max(self._text_left, min(_LABEL_BYTES, self._facts_left))
        self._string = OpenString(False, room, is_data)

    def _take_string(self, data: bytes, position: int, string: OpenString) -> int:
        found = _STRING_REST.match(data, position)
        end = found.end() if found else position
        if not self._skipped_depth:
            self._count(string, data[position:end])
        if end == len(data):
            return end
        if data[end] != ord('"'):
            if len(data) - end >= 6:
                raise _Broken
            self._rest = data[end:]  # an escape whose end has not come
            return len(data)
        self._string = None
        if self._skipped_depth:
            return end + 1
        top = self._stack[-1]
        if string.is_key:
            top.key, top.expects = bytes(string.kept), "colon"
        else:
            self._write_string(string)
            self._end_value()
        return end + 1

    def _count(self, string: OpenString, piece: bytes) -> None:
        room = string.room - len(string.kept)
        if room > 0:
            string.kept += piece[:room]
        string.length += len(piece)
        string.end = (string.end + piece[-2:])[-2:]
        string.characters += len(piece.translate(None, _CONTINUATION))
        if b"\\" in piece:
            for escape in _ESCAPE.finditer(piece):
                string.characters -= escape.end() - escape.start() - (escape[1] is None)

    def _write_string(self, string: OpenString) -> None:
        kept = bytes(string.kept)
        is_cut = len(kept) < string.length
        if is_cut:
            kept = _whole_end(kept)
            kept += cut_mark(string.characters, "characters").encode()
            if string.is_data:  # so that who computes the bytes of base64 sees its padding
                kept += b"=" * string.end.count(b"=")
        if not self._begin_value(0 if len(kept) > _LABEL_BYTES else len(kept)):
            return
        self.is_cut |= is_cut
        if len(kept) > _LABEL_BYTES:
            self._text_left -= len(kept)
        self._write(b'"' + kept + b'"')

    def _skip(self, data: bytes, position: int) -> int:
        found = _SKIPPED.match(data, position)
        position = found.end() if found else position
        if position == len(data):
            return position
        run = _RUN.match(data, position)
        if run is None:
            self._string = OpenString(False, 0)
            return position + 1
        if data[position] in b"[{":
            self._skipped_depth += run.end() - position
            return run.end()
        closed = min(run.end() - position, self._skipped_depth)
        self._skipped_depth -= closed
        if not self._skipped_depth:
            if self._skips_rest:
                self._skips_rest = False
                self._stack.pop()
                self._write(b"]")
            self._end_value()
        return position + closed


def _whole_end(kept: bytes | bytearray) -> bytes:
    """Take off what is left of a character or an escape that was cut in two."""
    return without_half_escape(whole_characters(kept).encode())
