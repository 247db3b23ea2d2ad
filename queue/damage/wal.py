"""The write-ahead log as SQLite left it, and the one kind of damage in it that can be proved.

Each frame's checksum covers all frames before it, so SQLite takes everything behind one flipped
bit for the torn end of the log and drops it without a word: a hundred committed rows become
fifty. But a commit is fsynced before the next one begins. Where a whole transaction that
verifies stands *behind* a frame that does not, that frame was once complete on the disk, and is
damaged now and not torn. Such a log is mended: the checksums are written anew over what is
there, so that SQLite reads all commits, and the CRC-32 of the rows tells which of them the
flipped bit has hit. A bad frame in the last two transactions is left to SQLite.

The format: https://sqlite.org/fileformat2.html#walformat
"""

import logging
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue.durable_files import fsync_file, fsync_folder, quarantine
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.schema import PAGE_BYTES

log = logging.getLogger(__name__)

HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, salts, checksum
FRAME = struct.Struct(">6I")  # page, pages after a commit or 0, salts, checksum
FRAME_BYTES = FRAME.size + PAGE_BYTES
MAGIC = 0x377F0682  # the last bit says that checksums are over big-endian words
VERSION = 3_007_000
MASK = 0xFFFFFFFF

Sum = tuple[int, int]


def mend_wal(path: Path, root: Path) -> int:
    """Mend the log at `path` if it is provably damaged; returns how many frames were.

    It is kept as it was found under the quarantine of `root`. The queue must not be open.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return 0
    wal = _Wal(bytearray(found))
    if not (damaged := wal.mend()):
        return 0
    kept = quarantine(root, f"{path.parent.name}-{time.time_ns()}.wal", found)
    temporary = path.with_name(f"{path.name}.mended")
    temporary.write_bytes(wal.data)
    fsync_file(temporary)
    reach("wal-written")
    os.replace(temporary, path)
    fsync_folder(path.parent)
    reach("wal-mended")
    log.error("%s had %d damaged frames and is mended; it was kept as %s", path, damaged, kept)
    return damaged


@dataclass(frozen=True, slots=True)
class WalCondition:
    """What stands in a log, counted in frames.

    `readable`: those that SQLite reads, up to the last commit before a bad one. `damaged`: bad
    ones that were complete once, as commits behind them prove, a bad header among them. All
    others are the end of a transaction that was never finished.
    """

    frames: int
    readable: int
    damaged: int


def condition(path: Path) -> WalCondition:
    """Look at the log at `path`, which need not exist, and change nothing."""
    try:
        return _Wal(bytearray(path.read_bytes())).condition()
    except FileNotFoundError:
        return WalCondition(0, 0, 0)


@dataclass(slots=True)
class _Wal:
    data: bytearray
    words: str = "<I"
    salts: Sum = (0, 0)
    start: Sum = (0, 0)  # the header's own checksum, from which the frames' goes on

    def mend(self) -> int:
        """Make all provably complete transactions verify; returns how many frames did not."""
        if self._whole_frames < 1:
            return 0
        header_is_good, frames, bad, commits = self._survey()
        complete, last = _provably_complete(commits, set(bad))
        damaged = [i for i in bad if i < complete]
        if complete == 0 or (header_is_good and not damaged):
            return 0
        pages = max(self._frame(i)[1] for i in frames if i not in bad)
        if not all([self._correct(i, pages) for i in damaged]):
            return 0  # more than a bit: nobody can tell where such a page belongs
        self.data[: HEADER.size] = self._header()
        seed = self._sum_before(0)
        for i in range(last + 1):
            seed = self._sign(i, seed)
        return len(damaged) + (not header_is_good)

    def condition(self) -> WalCondition:
        if self._whole_frames < 1:
            return WalCondition(0, 0, 0)
        header_is_good, frames, bad, commits = self._survey()
        complete, _ = _provably_complete(commits, set(bad))
        damaged = sum(i < complete for i in bad) + (complete > 0 and not header_is_good)
        first_bad = (bad[0] if bad else len(frames)) if header_is_good else 0
        readable = max((i + 1 for i in commits if i < first_bad), default=0)
        return WalCondition(len(frames), readable, damaged)

    @property
    def _whole_frames(self) -> int:
        return (len(self.data) - HEADER.size) // FRAME_BYTES

    def _survey(self) -> tuple[bool, range, list[int], list[int]]:
        """Whether the header is good, this turn's frames, those that are bad, and the commits."""
        header_is_good = self._read_header()
        # Frames of an earlier turn of the log follow those of this one; their salts differ.
        turn = [i for i in range(self._whole_frames) if self._frame(i)[2:4] == self.salts]
        frames = range(turn[-1] + 1 if turn else 0)
        bad = [i for i in frames if not self._verifies(i)]
        return header_is_good, frames, bad, [i for i in frames if self._frame(i)[1]]

    def _read_header(self) -> bool:
        magic, version, page, _, salt1, salt2, *stored = HEADER.unpack_from(self.data)
        self.words = ">I" if magic == MAGIC + 1 else "<I"
        self.start = stored[0], stored[1]
        good = (
            magic in (MAGIC, MAGIC + 1)
            and (version, page) == (VERSION, PAGE_BYTES)
            and self._sum(memoryview(self.data)[: HEADER.size - 8], (0, 0)) == self.start
        )
        if not good:
            _, _, salt1, salt2, *_ = self._frame(0)
        self.salts = salt1, salt2
        return good

    def _header(self) -> bytes:
        """The header as it should be."""
        magic, sequence = MAGIC + (self.words == ">I"), HEADER.unpack_from(self.data)[3]
        fields = (magic, VERSION, PAGE_BYTES, sequence, *self.salts)
        return HEADER.pack(*fields, *self._sum(struct.pack(">6I", *fields), (0, 0)))

    def _frame(self, i: int) -> tuple[int, ...]:
        return FRAME.unpack_from(self.data, HEADER.size + i * FRAME_BYTES)

    def _sum_of(self, i: int, seed: Sum, page_number: int, pages: int) -> Sum:
        at = HEADER.size + i * FRAME_BYTES
        page = memoryview(self.data)[at + FRAME.size : at + FRAME_BYTES]
        return self._sum(page, self._sum(struct.pack(">2I", page_number, pages), seed))

    def _sum(self, data: bytes | memoryview, seed: Sum) -> Sum:
        first, second = seed
        words = [word for (word,) in struct.iter_unpack(self.words, data)]
        for even, odd in zip(words[::2], words[1::2], strict=True):
            first = (first + even + second) & MASK
            second = (second + odd + first) & MASK
        return first, second

    def _seed(self, i: int) -> Sum:
        """The stored checksum before frame `i`: so each frame is judged by itself."""
        sums = self._frame(i - 1)[4:6] if i else self.start
        return sums[0], sums[1]

    def _sum_before(self, i: int) -> Sum:
        """The checksum before frame `i` as it would be of what stands there."""
        if i == 0:
            return self._sum(self._header()[:-8], (0, 0))
        return self._sum_of(i - 1, self._seed(i - 1), *self._frame(i - 1)[:2])

    def _verifies(self, i: int) -> bool:
        page_number, pages, *rest = self._frame(i)
        return tuple(rest) == (*self.salts, *self._sum_of(i, self._seed(i), page_number, pages))

    def _correct(self, i: int, most: int) -> bool:
        """Set a single flipped bit of the frame's page number or commit mark right.

        Those decide where the page goes; a bit inside the page stays as it is. Returns whether
        they are possible in a file of at most `most` pages. Only such are tried, as a high bit
        has the same effect on the checksum wherever it stands.
        """
        page_number, pages, _, _, *sums = self._frame(i)
        if self._sum_of(i, self._sum_before(i), page_number, pages) == tuple(sums):
            return True  # it is the checksum stored before this frame that is damaged
        for bit in range(64):
            number, size = page_number ^ (1 << bit & MASK), pages ^ (1 << bit >> 32)
            if not 0 < number <= most >= size:
                continue
            if self._sum_of(i, self._seed(i), number, size) == tuple(sums):
                struct.pack_into(">2I", self.data, HEADER.size + i * FRAME_BYTES, number, size)
                return True
        return 0 < page_number <= most >= pages

    def _sign(self, i: int, seed: Sum) -> Sum:
        page_number, pages = self._frame(i)[:2]
        sums = self._sum_of(i, seed, page_number, pages)
        at = HEADER.size + i * FRAME_BYTES
        FRAME.pack_into(self.data, at, page_number, pages, *self.salts, *sums)
        return sums


def _provably_complete(commits: list[int], bad: set[int]) -> tuple[int, int]:
    """(n, last): the first n frames were fsynced, as the transaction up to `last` verifies."""
    for before, last in zip(reversed(commits[:-1]), reversed(commits[1:]), strict=True):
        if not bad.intersection(range(before + 1, last + 1)):
            return before + 1, last
    return 0, 0
