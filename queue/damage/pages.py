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
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.wal_frames import FRAME, FRAME_BYTES, HEADER
from open_llm_proxy.queue.durable_files import open_regular
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.schema import PAGE_BYTES

LEAF_OF_A_TABLE = 0x0D
LINE_START = b'{"queue_id":"'
# The largest payload that stays on its page, and the least that does of a longer one.
LOCAL_MAX_BYTES = PAGE_BYTES - 35
LOCAL_MIN_BYTES = (PAGE_BYTES - 12) * 32 // 255 - 23
LINE_MAX_BYTES = 64 * 1024 * 1024
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
# How the header of a row or an open call begins: its own size, then NULL for seq, as the rowid
# stands for that, and a time as an integer of six bytes (type 5).
HEADER_FRONT = re.compile(rb"[\x05-\x08](?=\x00\x05)")
# A page of the pointer map tells of so many that follow it what they are.
MAPPED_PAGES = PAGE_BYTES // 5
FREE_PAGE = 2

Value = int | bytes | None
Found = tuple[int | None, list[Value]]  # rowid and columns
# Which frame of the log holds the newest version of a page, by the page's number.
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
    try:
        readable = wal.condition(log).readable
    except NotAQueue:
        readable = 0  # it is too large for anybody to tell what was committed
    with ExitStack() as stack:
        opened: list[BinaryIO | None] = []
        for path in (database, log):
            is_there = os.path.lexists(path)
            file = os.fdopen(open_regular(path), "rb") if is_there else None
            opened.append(stack.enter_context(file) if file is not None else None)
        files = _Files(opened[0], opened[1], readable)
        for page, is_current in files.pages():
            for rowid, columns in _records_on(page, files):
                yield Record(rowid, columns, is_current)


class _Files:
    """The whole pages of the file and of its log, whose first `readable` frames are committed."""

    def __init__(self, database: BinaryIO | None, log: BinaryIO | None, readable: int) -> None:
        self._database, self._log = database, log
        self._file_pages = _size(database) // PAGE_BYTES
        self._numbers: list[int] = []  # of the page in each frame
        salts: list[bytes] = []
        for i in range((_size(log) - HEADER.size) // FRAME_BYTES):
            header = _read(log, _frame_at(i), FRAME.size)
            self._numbers.append(int.from_bytes(header[:4], "big"))
            salts.append(header[8:16])
        self._readable = readable
        self._committed = {self._numbers[i]: i for i in range(readable)}
        # Frames of an earlier turn of the log, whose salts differ, follow those of this one.
        this_turn_last = sorted(range(len(salts)), key=lambda i: salts[i] == salts[0])
        everything = {self._numbers[i]: i for i in this_turn_last}
        # Where an overflow page may be found: as of the last commit, in the file alone, anywhere.
        self.overlays: tuple[Overlay, ...] = (self._committed, {}, everything)
        self._map: tuple[int, bytes] = (0, b"")  # the page of the pointer map that was read last

    def pages(self) -> Iterator[tuple[bytes, bool]]:
        """Every page, the likeliest to be up to date first, and whether it is current."""
        for i in reversed(range(self._readable)):
            number = self._numbers[i]
            is_newest = self._committed[number] == i
            yield self._frame(i), is_newest and not self._is_free(number)
        for number in range(1, self._file_pages + 1):
            is_newest = number not in self._committed
            yield self.read(number, {}), is_newest and not self._is_free(number)
        for i in reversed(range(self._readable, len(self._numbers))):
            yield self._frame(i), False

    def read(self, number: int, overlay: Overlay) -> bytes:
        """Page `number`, as the log has it where `overlay` says so; raises `Unreadable`."""
        if (frame := overlay.get(number)) is not None:
            return self._frame(frame)
        if not 1 <= number <= self._file_pages:
            raise Unreadable
        return _read(self._database, (number - 1) * PAGE_BYTES, PAGE_BYTES)

    def _frame(self, i: int) -> bytes:
        return _read(self._log, _frame_at(i) + FRAME.size, PAGE_BYTES)

    def _is_free(self, number: int) -> bool:
        """Whether the pointer map calls the page unused: its content is what was deleted."""
        map_number = (number - 2) // (MAPPED_PAGES + 1) * (MAPPED_PAGES + 1) + 2
        if self._map[0] != map_number:
            self._map = map_number, bytes(PAGE_BYTES)
            with suppress(Unreadable):
                self._map = map_number, self.read(map_number, self._committed)
        at = 5 * (number - map_number - 1)
        return 0 <= at < PAGE_BYTES and self._map[1][at] == FREE_PAGE


def _size(file: BinaryIO | None) -> int:
    return os.fstat(file.fileno()).st_size if file is not None else 0


def _read(file: BinaryIO | None, at: int, size: int) -> bytes:
    if file is None:
        raise Unreadable
    file.seek(at)
    return file.read(size)


def _frame_at(i: int) -> int:
    return HEADER.size + i * FRAME_BYTES


def _records_on(page: bytes, files: _Files) -> Iterator[Found]:
    """By the page's own header and, where that leaves lines over, by those of the rows."""
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


def _records_by_header(page: bytes, files: _Files) -> Iterator[Found]:
    """Rows and open calls by what their headers begin with, under each rowid that may be meant."""
    for front in HEADER_FRONT.finditer(page):
        at = front.start()
        with suppress(Unreadable, IndexError):  # it is no header after all
            kinds, body = _header(page, at)
            size = body - at + sum(map(_size_of, kinds))
            for payload in _payloads(page, at, size, files):
                columns = _columns(payload)
                for rowid in (None, *_rowids_before(page, at)):
                    yield rowid, columns


def _rowids_before(page: bytes, at: int) -> Iterator[int]:
    for start in range(max(0, at - 5), at):
        rowid, end = _varint(page, start)
        if end == at:
            yield rowid


def _is_line(value: Value) -> bool:
    return isinstance(value, bytes) and value.startswith(LINE_START)


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
    given: list[bytes] = []
    for overlay in files.overlays:
        with suppress(Unreadable):
            rest = b"".join(_overflow(following, size - local, files, overlay))
            if rest not in given:
                given.append(rest)
                yield page[at : at + local] + rest


def _overflow(number: int, left: int, files: _Files, overlay: Overlay) -> Iterator[bytes]:
    while left > 0:
        page = files.read(number, overlay)
        number = int.from_bytes(page[:4], "big")
        yield page[4 : 4 + left]
        left -= PAGE_BYTES - 4


def _columns(payload: bytes) -> list[Value]:
    kinds, body = _header(payload, 0)
    columns: list[Value] = []
    for kind in kinds:
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


def _header(data: bytes, at: int) -> tuple[list[int], int]:
    """The serial types of the columns of the record at `at`, and where its columns begin."""
    header_bytes, here = _varint(data, at)
    kinds = []
    while here < at + header_bytes:
        kind, here = _varint(data, here)
        kinds.append(kind)
    return kinds, at + header_bytes


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
