"""Table rows taken from raw pages, for a file that SQLite itself no longer reads.

A row of a queue can prove by its own CRC-32 that it is whole, so nothing else of the file need
be believed: neither its header, nor the tree of its tables, nor its lists of free pages. Every
page of the file and of its write-ahead log is looked at by itself. What has the form of a
table's leaf gives its cells; and where that does not account for all of a page, each place that
could be the header of a row is tried, so that a flipped bit in a page's or a cell's own header
costs no row. A long row goes on in overflow pages, which are followed by number.

The format: https://sqlite.org/fileformat2.html#b_tree_pages and #record_format
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from open_llm_proxy.queue.damage import wal, wal_frames
from open_llm_proxy.queue.schema import PAGE_BYTES

LEAF_OF_A_TABLE = 0x0D
LINE_START = b'{"queue_id":"'
# The largest payload that stays on its page, and the least that does of a longer one.
LOCAL_MAX_BYTES = PAGE_BYTES - 35
LOCAL_MIN_BYTES = (PAGE_BYTES - 12) * 32 // 255 - 23
LINE_MAX_BYTES = 64 * 1024 * 1024
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
# In the header of a row or an open call: seq is NULL, as the rowid stands for it, and a time is
# an integer of six bytes (type 5).
HEADER_MARK = bytes((0, 5))
HEADER_BYTES = range(5, 9)
# A page of the pointer map tells of so many that follow it what they are.
MAPPED_PAGES = PAGE_BYTES // 5
FREE_PAGE = 2

Value = int | bytes | None
# Where the newest version of a page stands in the log, by the page's number.
Overlay = dict[int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What has the form of a record; text comes as bytes.

    `rowid` is None, or one that may be meant, where only the record itself was found.
    `is_current`: on the newest version of a page that is in use, so that it was not deleted.
    """

    rowid: int | None
    columns: list[Value]
    is_current: bool


class Unreadable(Exception):
    """A cell or record has no possible form."""


def records(database: Path, log: Path) -> Iterator[Record]:
    """Everything in the file and its log that has the form of a record.

    What was committed comes first, from the newest version of a page to the oldest; then what
    the log holds of unfinished transactions and of earlier turns. So records come more than
    once and in several versions, deleted ones among them, and the caller must have each prove
    itself. One page and one record are held at a time; neither file need exist.
    """
    with _Files(database, log) as files:
        for page, is_current in files.pages():
            for rowid, columns in _records_on(page, files):
                yield Record(rowid, columns, is_current)


class _Files:
    """The file and its log as pages; an ExitStack closes what was opened."""

    def __init__(self, database: Path, log: Path) -> None:
        self._paths = database, log
        self._stack = ExitStack()
        self._database: BinaryIO | None = None
        self._log: BinaryIO | None = None
        self._frames: list[int] = []  # the page numbers
        self._readable = 0
        self._map: tuple[int, bytes] = (0, b"")  # the page of the pointer map that was read last
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
        log.seek(wal_frames.HEADER.size)
        while len(header := log.read(wal_frames.FRAME.size)) == wal_frames.FRAME.size:
            number, _, *salt = wal_frames.FRAME.unpack(header)[:4]
            self._frames.append(number)
            salts.append(salt)
            log.seek(PAGE_BYTES, os.SEEK_CUR)
        order = range(len(self._frames))
        committed = {self._frames[i]: i for i in order[: self._readable]}
        # Frames of an earlier turn of the log follow those of this one.
        this_turn_last = sorted(order, key=lambda i: salts[i] == salts[0])
        everything = {self._frames[i]: i for i in this_turn_last}
        self.overlays = (committed, {}, everything)

    def pages(self) -> Iterator[tuple[bytes, bool]]:
        """Every whole page, the likeliest to be up to date first, and whether it is current."""
        frames = range(len(self._frames))
        committed = self.overlays[0] if self.overlays else {}
        for i in reversed(frames[: self._readable]):
            number = self._frames[i]
            for page in self._page(self._log, _frame_at(i)):
                yield page, committed[number] == i and not self._is_free(number)
        if self._database is not None:
            for at in range(0, os.fstat(self._database.fileno()).st_size, PAGE_BYTES):
                number = at // PAGE_BYTES + 1
                for page in self._page(self._database, at):
                    yield page, number not in committed and not self._is_free(number)
        for i in reversed(frames[self._readable :]):
            for page in self._page(self._log, _frame_at(i)):
                yield page, False

    def _is_free(self, number: int) -> bool:
        """Whether the pointer map calls the page unused: its content is what was deleted."""
        map_number = (number - 2) // (MAPPED_PAGES + 1) * (MAPPED_PAGES + 1) + 2
        if self._map[0] != map_number:
            try:
                committed = self.overlays[0] if self.overlays else {}
                self._map = map_number, self.read(map_number, committed)
            except Unreadable:
                self._map = map_number, bytes(PAGE_BYTES)
        at = 5 * (number - map_number - 1)
        return 0 <= at < PAGE_BYTES and self._map[1][at] == FREE_PAGE

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
    return wal_frames.HEADER.size + i * wal_frames.FRAME_BYTES + wal_frames.FRAME.size


def _records_on(page: bytes, files: _Files) -> Iterator[tuple[int | None, list[Value]]]:
    lines = page.count(LINE_START)
    is_whole = page[0] == LEAF_OF_A_TABLE
    if is_whole:
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
                is_whole = False
    if lines > 0 or not is_whole:
        yield from _records_by_header(page, files)


def _records_by_header(page: bytes, files: _Files) -> Iterator[tuple[int | None, list[Value]]]:
    """Rows and open calls by what their headers begin with, under each rowid that may be meant."""
    found = page.find(HEADER_MARK)
    while found >= 0:
        at = found - 1
        if at >= 0 and page[at] in HEADER_BYTES:
            try:
                for payload in _payloads(page, at, _payload_bytes(page, at), files):
                    columns = _columns(payload)
                    for rowid in (None, *_rowids_before(page, at)):
                        yield rowid, columns
            except (Unreadable, IndexError):
                found = page.find(HEADER_MARK, found + 1)  # it was no header after all
                continue
        found = page.find(HEADER_MARK, found + 1)


def _rowids_before(page: bytes, at: int) -> Iterator[int]:
    for start in range(max(0, at - 5), at):
        rowid, end = _varint(page, start)
        if end == at:
            yield rowid


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
