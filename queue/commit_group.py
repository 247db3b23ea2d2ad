"""What a group of appends writes in its one transaction, worked out before it begins.

A statement takes many rows at once. Python's sqlite3 gives up the interpreter lock at every step of
a statement, and gets it back from a busy event loop only after a switch interval; a step per row
would make a group wait for the loop as often as it has rows.
"""

from collections.abc import Sequence
from itertools import chain

from open_llm_proxy.queue.checksums import checksum
from open_llm_proxy.queue.database import ExecuteMany
from open_llm_proxy.queue.entry import Append, CallMark, Entry, finished_line

MAX_ROWS_PER_STATEMENT = 64


class CommitGroup:
    """Rows and open calls of one group, in the order in which its appends were handed over.

    `opened` and `closed` hold the request row's seq of each call.
    """

    def __init__(self, queue_id: str, last_seq: int) -> None:
        self.last_seq = last_seq
        self.size_bytes = 0
        self.rows: list[tuple[int, int, int, bytes]] = []
        self.opened: dict[CallMark, int] = {}
        self.closed: dict[CallMark, int] = {}
        self._queue_id = queue_id
        self._kept: list[tuple[int, int, int, bytes]] = []

    def add(self, append: Append) -> tuple[bytes, ...]:
        """Take one append in; returns its finished lines, none if its call is not open."""
        if append.closes is not None:
            call_seq = self.opened.get(append.closes, append.closes.seq)
            if call_seq is None or append.closes in self.closed:
                return ()
            self.closed[append.closes] = call_seq
        lines = tuple(self._line(entry) for entry in append.entries)
        if append.opens is not None:
            self._keep(append.opens, append.entries[-1].timestamp_ms, append.interrupted_head)
        return lines

    def write(self, execute_many: ExecuteMany) -> None:
        row = "(?, ?, ?, ?)"
        _write(execute_many, f"INSERT INTO rows VALUES {row}", f", {row}", "", self.rows)
        _write(execute_many, f"INSERT INTO open_calls VALUES {row}", f", {row}", "", self._kept)
        closed = [(seq,) for seq in self.closed.values()]
        _write(execute_many, "DELETE FROM open_calls WHERE seq IN (?", ", ?", ")", closed)

    def _line(self, entry: Entry) -> bytes:
        self.last_seq += 1
        line = finished_line(self._queue_id, self.last_seq, entry.body)
        crc32 = checksum(line, entry.timestamp_ms)
        self.rows.append((self.last_seq, entry.timestamp_ms, crc32, line))
        self.size_bytes += len(line)
        return line

    def _keep(self, call: CallMark, timestamp_ms: int, head: bytes) -> None:
        seq = self.last_seq
        self.opened[call] = seq
        self._kept.append((seq, timestamp_ms, checksum(head, seq, timestamp_ms), head))
        self.size_bytes += len(head)


def _write(
    execute_many: ExecuteMany,
    beginning: str,
    further: str,
    end: str,
    rows: Sequence[tuple[object, ...]],
) -> None:
    """Execute a statement that takes one row, or more with as many times `further`.

    The numbers of rows are powers of two, so that there are few statements to be compiled.
    """
    start = 0
    while start < len(rows):
        count = min(MAX_ROWS_PER_STATEMENT, 1 << (len(rows) - start).bit_length() - 1)
        part = rows[start : start + count]
        statement = beginning + further * (count - 1) + end
        execute_many(statement, part if count == 1 else [tuple(chain.from_iterable(part))])
        start += count
