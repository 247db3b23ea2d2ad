"""Table rows taken from raw pages, for a file that SQLite itself no longer reads.

A row of a queue can prove by its own CRC-32 that it is whole, so nothing else of the file need
be believed: neither its header, nor the tree of its tables, nor its lists of free pages. Every
page of the file and of its write-ahead log is looked at by itself, and what has the form of a
table's leaf gives its cells. A long row goes on in overflow pages; those are followed by number.

The format: https://sqlite.org/fileformat2.html#b_tree_pages and #record_format
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from open_llm_proxy.queue.schema import PAGE_BYTES

LEAF_OF_A_TABLE = 0x0D
WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
# The largest payload that stays on its page, and the least that does of a longer one.
LOCAL_MAX_BYTES = PAGE_BYTES - 35
LOCAL_MIN_BYTES = (PAGE_BYTES - 12) * 32 // 255 - 23
LINE_MAX_BYTES = 64 * 1024 * 1024
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)

Value = int | bytes | None
Record = tuple[int, list[Value]]
ReadPage = Callable[[int], bytes]


class Unreadable(Exception):
    """A cell or record has no possible form."""


def records(database: Path, wal: Path) -> Iterator[Record]:
    """(rowid, columns) of every cell that can be read in the file and its WAL.

    Rows may come more than once, in several versions, and deleted ones may come too. Text
    columns come as bytes. One page is held at a time; neither file need exist.
    """
    for path, first, step in (
        (wal, WAL_HEADER_BYTES + FRAME_HEADER_BYTES, PAGE_BYTES + FRAME_HEADER_BYTES),
        (database, 0, PAGE_BYTES),
    ):
        if not path.exists():
            continue
        with open(path, "rb") as file, _pages_of(database, wal) as read_page:
            file.seek(first)
            while len(page := file.read(PAGE_BYTES)) == PAGE_BYTES:
                yield from _cells(page, read_page)
                file.seek(step - PAGE_BYTES, 1)


@contextmanager
def _pages_of(database: Path, wal: Path) -> Iterator[ReadPage]:
    """Reads a page by its number: as the WAL last wrote it, else from the file."""
    newest = _wal_pages(wal)
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(open(path, "rb")) for path in (database, wal) if path.exists()
        }

        def read(number: int) -> bytes:
            in_wal = number in newest
            file = files.get(wal if in_wal else database)
            if file is None or number < 1:
                raise Unreadable
            file.seek(newest[number] if in_wal else (number - 1) * PAGE_BYTES)
            page = file.read(PAGE_BYTES)
            if len(page) < PAGE_BYTES:
                raise Unreadable
            return page

        yield read


def _wal_pages(wal: Path) -> dict[int, int]:
    """Where the newest version of each page stands in the WAL.

    Frames of an earlier turn of the log may follow those of this one; their salts differ.
    """
    found: dict[int, int] = {}
    if not wal.exists():
        return found
    with open(wal, "rb") as file:
        file.seek(WAL_HEADER_BYTES)
        salts = None
        while len(header := file.read(FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES:
            salts = salts or header[8:16]
            if header[8:16] == salts:
                found[int.from_bytes(header[:4], "big")] = file.tell()
            file.seek(PAGE_BYTES, 1)
    return found


def _cells(page: bytes, read_page: ReadPage) -> Iterator[Record]:
    for start in (0, 100):  # the first page of a file begins with the file's header
        if page[start] != LEAF_OF_A_TABLE:
            continue
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        for i in range(min(count, PAGE_BYTES // 4)):
            at = start + 8 + 2 * i
            try:
                yield _cell(page, int.from_bytes(page[at : at + 2], "big"), read_page)
            except (Unreadable, IndexError):
                continue


def _cell(page: bytes, at: int, read_page: ReadPage) -> Record:
    size, at = _varint(page, at)
    rowid, at = _varint(page, at)
    if not 0 < size <= LINE_MAX_BYTES:
        raise Unreadable
    if size <= LOCAL_MAX_BYTES:
        return rowid, _columns(page[at : at + size])
    local = LOCAL_MIN_BYTES + (size - LOCAL_MIN_BYTES) % (PAGE_BYTES - 4)
    if local > LOCAL_MAX_BYTES:
        local = LOCAL_MIN_BYTES
    pieces = [page[at : at + local]]
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    left = size - local
    while left > 0:
        overflow = read_page(following)
        following = int.from_bytes(overflow[:4], "big")
        pieces.append(overflow[4 : 4 + left])
        left -= PAGE_BYTES - 4
    return rowid, _columns(b"".join(pieces))


def _columns(payload: bytes) -> list[Value]:
    header_size, at = _varint(payload, 0)
    body = header_size
    columns: list[Value] = []
    while at < header_size:
        kind, at = _varint(payload, at)
        if kind in (8, 9):
            columns.append(kind - 8)
        elif kind < len(INTEGER_BYTES):
            size = INTEGER_BYTES[kind]
            columns.append(
                int.from_bytes(payload[body : body + size], "big", signed=True) if size else None
            )
            body += size
        elif kind >= 12:
            size = (kind - 12) // 2
            columns.append(payload[body : body + size])
            body += size
        else:
            raise Unreadable  # a float or a reserved kind: no column of ours
    if body != len(payload):
        raise Unreadable
    return columns


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
