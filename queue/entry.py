"""What the queue is given: finished JSON objects, and calls that are opened and closed.

The queue knows no HTTP and no language models. An entry is an opaque JSON object with the
time that decides its window; an open call is a promise that exactly one closing entry follows,
with the beginning of the entry to use should the process die first. What else the queue must know
of the log's format are the three texts of a `LogFormat`.
"""

from dataclasses import dataclass, field, replace

# The finished lines of an append, in order.
Lines = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry: `body` is a JSON object of at least one field, UTF-8, on one line."""

    body: bytes
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class LogFormat:
    """What is fixed in a queue's file at birth, so that whoever finishes it builds no entry.

    `head`: a JSON object, without queue_id, seq and timestamp, of which the first line of every
    object is made; empty where objects have none. `interrupted_tail`: the end of the entry that
    closes a call after a death; the opening append brings its beginning. `damaged_body`: the
    entry that takes the place of a lost row, see damaged_rows.py.
    """

    head: bytes
    interrupted_tail: bytes
    damaged_body: bytes


@dataclass(slots=True, eq=False)
class CallMark:
    """By which the writer knows an opened call: its request row's seq, from commit to closing.

    Only the writer's thread touches `seq`. None before the opening is stored, after the
    closing is, and for ever when the opening was refused.
    """

    seq: int | None = field(default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """Entries that become rows in one transaction, and what they do to an open call.

    `opens` with `interrupted_head`: the last entry opens the call; should nothing close it, that
    head and the queue's `interrupted_tail` do. `closes`: the entries are written only if the call
    is still open, so that a call can never be closed twice; `slim` is written instead of them
    where there is no room left for them.
    """

    entries: tuple[Entry, ...]
    opens: CallMark | None = None
    interrupted_head: bytes = b""
    closes: CallMark | None = None
    slim: Entry | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.interrupted_head) + sum(len(entry.body) for entry in self.entries)

    @property
    def forms(self) -> "tuple[Append, ...]":
        """What may be stored for this append, the best first."""
        if self.slim is None:
            return (self,)
        return (self, replace(self, entries=(self.slim,), slim=None))


def finished_line(queue_id: str, seq: int, body: bytes) -> bytes:
    """The line as it is stored, printed and uploaded: queue_id and seq are put in front."""
    return b'{"queue_id":"%b","seq":%d,%b\n' % (queue_id.encode("ascii"), seq, body[1:])
