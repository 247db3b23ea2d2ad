"""What a group of appends writes in its one transaction, worked out before it begins."""

from open_llm_proxy.queue.database import ExecuteMany
from open_llm_proxy.queue.entry import Append, CallRecord, Entry, finished_line
from open_llm_proxy.queue.integrity import checksum


class Change:
    """Rows and open calls of one group, in the order in which its appends were handed over.

    `opened` and `closed` hold the request row's seq of each call.
    """

    def __init__(self, queue_id: str, last_seq: int) -> None:
        self.last_seq = last_seq
        self.size_bytes = 0
        self.rows: list[tuple[int, int, int, bytes]] = []
        self.opened: dict[CallRecord, int] = {}
        self.closed: dict[CallRecord, int] = {}
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
        if append.opens is not None and append.interrupted is not None:
            self._keep(append.opens, append.interrupted)
        return lines

    def write(self, execute_many: ExecuteMany) -> None:
        execute_many("INSERT INTO rows VALUES (?, ?, ?, ?)", self.rows)
        execute_many("INSERT INTO open_calls VALUES (?, ?, ?, ?)", self._kept)
        execute_many(
            "DELETE FROM open_calls WHERE seq = ?", [(seq,) for seq in self.closed.values()]
        )

    def _line(self, entry: Entry) -> bytes:
        self.last_seq += 1
        line = finished_line(self._queue_id, self.last_seq, entry.body)
        crc32 = checksum(line, entry.timestamp_ms)
        self.rows.append((self.last_seq, entry.timestamp_ms, crc32, line))
        self.size_bytes += len(line)
        return line

    def _keep(self, call: CallRecord, interrupted: Entry) -> None:
        seq, timestamp_ms, body = self.last_seq, interrupted.timestamp_ms, interrupted.body
        self.opened[call] = seq
        self._kept.append((seq, timestamp_ms, checksum(body, seq, timestamp_ms), body))
        self.size_bytes += len(body)
