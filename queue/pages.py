"""Table rows taken from raw pages, for a file that SQLite itself no longer reads.

A row of a queue can prove by its own CRC-32 that it is whole, so nothing else of the file need
be believed: neither its header, nor the tree of its tables, nor its lists of free pages. Every
page of the file and of its write-ahead log is looked at by itself. What has the form of a
table's leaf gives its cells; and wherever a line begins, the record around it is tried too, so
that a flipped bit in a page's or a cell's own header costs no row. A long row goes on in
overflow pages, which are followed by number.

The format: https://sqlite.org/fileformat2.html#b_tree_pages and #record_format
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from open_llm_proxy.queue import wal
from open_llm_proxy.queue.schema import PAGE_BYTES

LEAF_OF_A_TABLE = 0x0D
LINE_START = b'{"queue_id":"'
# The largest payload that stays on its page, and the least that does of a longer one.
LOCAL_MAX_BYTES = PAGE_BYTES - 35
LOCAL_MIN_BYTES = (PAGE_BYTES - 12) * 32 // 255 - 23
LINE_MAX_BYTES = 64 * 1024 * 1024
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
TIMESTAMP_TYPE, TIMESTAMP_BYTES = 5, 6  # of any time from 1970 to 6429

Value = int | bytes | None
Record = tuple[int | None, list[Value]]
# Where the newest version of a page stands in the log, by the page's number.
Overlay = dict[int, int]


class Unreadable(Exception):
    """A cell or record has no possible form."""


def records(database: Path, log: Path) -> Iterator[Record]:
    """(rowid, columns) of everything in the file and its log that has the form of a record.

    What was committed comes first, from the newest version of a page to the oldest; then what
    the log holds of unfinished transactions and of earlier turns. So records come more than
    once and in several versions, deleted ones among them, and the caller must have each prove
    itself. The rowid is None where only the line was found. Text comes as bytes. One page and
    one record are held at a time; neither file need exist.
    """
    with _Files(database, log) as files:
        for page in files.pages():
            yield from _records_on(page, files)


class _Files:
    """The file and its log as pages; an ExitStack closes what was opened."""

    def __init__(self, database: Path, log: Path) -> None:
        self._paths = database, log
        self._stack = ExitStack()
        self._database: BinaryIO | None = None
        self._log: BinaryIO | None = None
        self._frames: list[int] = []  # the page numbers
        self._readable = 0
        self.overlays: tuple[Overlay, ...] = ()

    def __enter__(self) -> "_Files":
        database, log = self._paths
        if database.exists():
            self._database = self._stack.enter_context(open(database, "rb"))
        if log.exists():
            self._log = self._stack.enter_context(open(log, "rb"))
            self._readable = wal.condition(log).readable
            self._read_frames(self._log)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _read_frames(self, log: BinaryIO) -> None:
        salts = []
        log.seek(wal.HEADER.size)
        while len(header := log.read(wal.FRAME.size)) == wal.FRAME.size:
            number, _, *salt = wal.FRAME.unpack(header)[:4]
            self._frames.append(number)
            salts.append(salt)
            log.seek(PAGE_BYTES, os.SEEK_CUR)
        order = range(len(self._frames))
        committed = {self._frames[i]: i for i in order[: self._readable]}
        # Frames of an earlier turn of the log follow those of this one.
        this_turn_last = sorted(order, key=lambda i: salts[i] == salts[0])
        everything = {self._frames[i]: i for i in this_turn_last}
        self.overlays = (committed, {}, everything)

    def pages(self) -> Iterator[bytes]:
        """Every whole page, the likeliest to be up to date first."""
        frames = range(len(self._frames))
        for i in reversed(frames[: self._readable]):
            yield from self._page(self._log, _frame_at(i))
        if self._database is not None:
            for at in range(0, os.fstat(self._database.fileno()).st_size, PAGE_BYTES):
                yield from self._page(self._database, at)
        for i in reversed(frames[self._readable :]):
            yield from self._page(self._log, _frame_at(i))

    def read(self, number: int, overlay: Overlay) -> bytes:
        """Page `number`, as the log has it where `overlay` says so; raises `Unreadable`."""
        frame = overlay.get(number)
        if frame is not None:
            found = self._page(self._log, _frame_at(frame))
        else:
            found = self._page(self._database, (number - 1) * PAGE_BYTES)
        for page in found:
            return page
        raise Unreadable

    def _page(self, file: BinaryIO | None, at: int) -> Iterator[bytes]:
        if file is not None and at >= 0:
            file.seek(at)
            if len(page := file.read(PAGE_BYTES)) == PAGE_BYTES:
                yield page


def _frame_at(i: int) -> int:
    return wal.HEADER.size + i * wal.FRAME_BYTES + wal.FRAME.size


def _records_on(page: bytes, files: _Files) -> Iterator[Record]:
    lines = page.count(LINE_START)
    if page[0] == LEAF_OF_A_TABLE:
        count = int.from_bytes(page[3:5], "big")
        for i in range(min(count, PAGE_BYTES // 4)):
            pointer = page[8 + 2 * i : 10 + 2 * i]
            try:
                size, at = _varint(page, int.from_bytes(pointer, "big"))
                rowid, at = _varint(page, at)
                for payload in _payloads(page, at, size, files):
                    columns = _columns(payload)
                    lines -= _is_line(columns[-1])
                    yield rowid, columns
            except (Unreadable, IndexError):
                continue
    if lines > 0:
        yield from _records_around_lines(page, files)


def _records_around_lines(page: bytes, files: _Files) -> Iterator[Record]:
    """Rows of table rows, found by their lines: the header stands right before the columns."""
    start = page.find(LINE_START)
    while start >= 0:
        for crc_bytes in INTEGER_BYTES:
            for header_bytes in range(5, 9):
                at = start - crc_bytes - TIMESTAMP_BYTES - header_bytes
                if at < 0 or page[at : at + 3] != bytes((header_bytes, 0, TIMESTAMP_TYPE)):
                    continue
                try:
                    size = _payload_bytes(page, at)
                    for payload in _payloads(page, at, size, files):
                        yield None, _columns(payload)
                except (Unreadable, IndexError):
                    continue
        start = page.find(LINE_START, start + 1)


def _is_line(value: Value) -> bool:
    return isinstance(value, bytes) and value.startswith(LINE_START)


def _payload_bytes(page: bytes, at: int) -> int:
    """The size of the record whose header begins at `at`."""
    header_bytes, here = _varint(page, at)
    total, end = header_bytes, at + header_bytes
    while here < end:
        kind, here = _varint(page, here)
        total += _size_of(kind)
    return total


def _payloads(page: bytes, at: int, size: int, files: _Files) -> Iterator[bytes]:
    """The payload of `size` bytes that begins at `at`: one, or its versions where log and file
    have different pages for its end."""
    if not 0 < size <= LINE_MAX_BYTES:
        raise Unreadable
    if size <= LOCAL_MAX_BYTES:
        if at + size <= PAGE_BYTES:
            yield page[at : at + size]
        return
    local = LOCAL_MIN_BYTES + (size - LOCAL_MIN_BYTES) % (PAGE_BYTES - 4)
    if local > LOCAL_MAX_BYTES:
        local = LOCAL_MIN_BYTES
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    given: list[tuple[bytes, ...]] = []
    for overlay in files.overlays or ({},):
        try:
            pieces = tuple(_overflow(following, size - local, files, overlay))
        except Unreadable:
            continue
        if pieces not in given:
            given.append(pieces)
            yield b"".join((page[at : at + local], *pieces))


def _overflow(number: int, left: int, files: _Files, overlay: Overlay) -> Iterator[bytes]:
    while left > 0:
        page = files.read(number, overlay)
        number = int.from_bytes(page[:4], "big")
        yield page[4 : 4 + left]
        left -= PAGE_BYTES - 4


def _columns(payload: bytes) -> list[Value]:
    header_bytes, at = _varint(payload, 0)
    body = header_bytes
    columns: list[Value] = []
    while at < header_bytes:
        kind, at = _varint(payload, at)
        size = _size_of(kind)
        value = payload[body : body + size]
        if kind >= 12:
            columns.append(value)
        elif kind in (8, 9):
            columns.append(kind - 8)
        else:
            columns.append(int.from_bytes(value, "big", signed=True) if size else None)
        body += size
    if body != len(payload) or not columns:
        raise Unreadable
    return columns


def _size_of(kind: int) -> int:
    """Bytes of a column of a serial type; raises `Unreadable` for what no column of ours is."""
    if kind >= 12:
        return (kind - 12) // 2
    if kind < len(INTEGER_BYTES):
        return INTEGER_BYTES[kind]
    if kind in (8, 9):
        return 0
    raise Unreadable


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
