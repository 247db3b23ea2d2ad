"""The write-ahead log of SQLite as frames: pages with their numbers, commit marks and checksums.

A checksum is two sums modulo 2**32, in which the n-th word from the end counts as often as the
n-th Fibonacci number says. So for each word of a bad frame it can be computed what it was, if it
alone was changed. Mostly one word is possible; but the effect of a highest bit is the same for
every third word, of the next for every sixth, and the page number is one of the words.

The format: https://sqlite.org/fileformat2.html#walformat
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from open_llm_proxy.queue.schema import PAGE_BYTES

HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, salts, checksum
FRAME = struct.Struct(">6I")  # page, pages after a commit or 0, salts, checksum
FRAME_BYTES = FRAME.size + PAGE_BYTES
MAGIC = 0x377F0682  # the last bit says that checksums are over big-endian words
VERSION = 3_007_000
MASK = 0xFFFFFFFF


def _fibonacci() -> list[int]:
    numbers = [0, 1]
    while len(numbers) <= SUMMED_WORDS + 1:
        numbers.append((numbers[-2] + numbers[-1]) & MASK)
    return numbers


# A frame's checksum covers its page number, its commit mark and its page. A change of the word
# that is the n-th from the end adds WEIGHTS[n - 1] and WEIGHTS[n] times itself to the two sums;
# the two sums of the frame before count like two words in front of all.
SUMMED_WORDS = 2 + PAGE_BYTES // 4
WEIGHTS = _fibonacci()

Sum = tuple[int, int]
# What a frame may have been: a page's number and its content.
Origin = tuple[int, bytes]


@dataclass(slots=True)
class WalFrames:
    """The content of a log. Frames of an earlier turn of it may follow those of this one."""

    data: bytearray
    words: str = "<I"
    salts: Sum = (0, 0)
    start: Sum = (0, 0)  # the header's own checksum, from which the frames' goes on
    # Of each frame by itself, as if it were the first, by the order of bytes too.
    _sums: dict[tuple[int, str], Sum] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return (len(self.data) - HEADER.size) // FRAME_BYTES

    def read_header(self) -> bool:
        """Take over what the header says, or what it must have said; returns if it is good."""
        magic, version, page, _, salt1, salt2, *stored = HEADER.unpack_from(self.data)
        self.words = ">I" if magic == MAGIC + 1 else "<I"
        self.salts = salt1, salt2
        self.start = stored[0], stored[1]
        if (
            magic in (MAGIC, MAGIC + 1)
            and (version, page) == (VERSION, PAGE_BYTES)
            and self._sum(memoryview(self.data)[: HEADER.size - 8], (0, 0)) == self.start
        ):
            return True
        _, _, salt1, salt2, *_ = self.frame(0)
        self.salts = salt1, salt2
        for self.words in (">I", "<I"):
            computed = HEADER.unpack(self._header())[6:]
            for self.start in ((computed[0], computed[1]), (stored[0], stored[1])):
                if self.adds_up(0):
                    return False
        return False

    def _header(self) -> bytes:
        """The header as it should be."""
        magic, sequence = MAGIC + (self.words == ">I"), HEADER.unpack_from(self.data)[3]
        fields = (magic, VERSION, PAGE_BYTES, sequence, *self.salts)
        return HEADER.pack(*fields, *self._sum(struct.pack(">6I", *fields), (0, 0)))

    def frame(self, i: int) -> tuple[int, ...]:
        return FRAME.unpack_from(self.data, HEADER.size + i * FRAME_BYTES)

    def _stored(self, i: int) -> Sum:
        *_, first, second = self.frame(i)
        return first, second

    def page(self, i: int) -> bytes:
        at = HEADER.size + i * FRAME_BYTES
        return bytes(self.data[at + FRAME.size : at + FRAME_BYTES])

    def put(self, i: int, number: int, page: bytes) -> None:
        """Write another page into frame `i`; its checksum stays as it is."""
        at = HEADER.size + i * FRAME_BYTES
        struct.pack_into(">I", self.data, at, number)
        self.data[at + FRAME.size : at + FRAME_BYTES] = page
        self._sums.clear()

    def _sum_of(self, i: int, seed: Sum) -> Sum:
        """The checksum of what is in frame `i`, after a frame with checksum `seed`."""
        if (i, self.words) not in self._sums:
            at = HEADER.size + i * FRAME_BYTES
            frame = memoryview(self.data)[at : at + FRAME_BYTES]
            own = self._sum(frame[FRAME.size :], self._sum(frame[:8], (0, 0)))
            self._sums[i, self.words] = own
        (first, second), (own_first, own_second) = seed, self._sums[i, self.words]
        before, last, behind = WEIGHTS[-3:]
        return (
            own_first + first * before + second * last & MASK,
            own_second + first * last + second * behind & MASK,
        )

    def _seed(self, i: int) -> Sum:
        """The stored checksum before frame `i`: so each frame is judged by itself."""
        return self._stored(i - 1) if i else self.start

    def _sum_before(self, i: int) -> Sum:
        """The checksum before frame `i`, computed from what is there."""
        if i == 0:
            return self._sum(self._header()[:-8], (0, 0))
        return self._sum_of(i - 1, self._seed(i - 1))

    def verifies(self, i: int) -> bool:
        """Whether SQLite accepts the frame, if it accepts all before it."""
        return self.frame(i)[2:] == (*self.salts, *self._sum_of(i, self._seed(i)))

    def adds_up(self, i: int) -> bool:
        """Whether page number, mark and page are those that the frame's checksum was made of."""
        if self._sum_of(i, self._seed(i)) == self._stored(i):
            return True
        # The checksum that is stored before this frame may be what was hit.
        return self._sum_of(i, self._sum_before(i)) == self._stored(i)

    def is_checksum_hit(self, i: int) -> bool:
        """Whether the checksum of frame `i` is what was hit, as the frame behind it proves."""
        return self._sum_of(i + 1, self._sum_before(i + 1)) == self._stored(i + 1)

    def sign(self, last: int) -> None:
        """Write the header and the checksums of all frames up to `last` anew."""
        self.data[: HEADER.size] = self._header()
        sums = self._sum_before(0)
        for i in range(last + 1):
            sums = self._sum_of(i, sums)
            at = HEADER.size + i * FRAME_BYTES
            FRAME.pack_into(self.data, at, *self.frame(i)[:2], *self.salts, *sums)

    def origins(self, i: int) -> Iterator[Origin]:
        """What frame `i` may have been, if one word of it was changed; another number first."""
        missing, (number, *_) = self._missing(i), self.frame(i)
        for change in _changes(missing, SUMMED_WORDS):
            yield self._changed(struct.pack(">I", number), 0, change), self.page(i)
        for _ in _changes(missing, SUMMED_WORDS - 1):
            yield number, self.page(i)  # its commit mark, which decides nothing
        for n in range(1, SUMMED_WORDS - 1):
            for change in _changes(missing, n):
                at = PAGE_BYTES - 4 * n
                page = bytearray(self.page(i))
                word = self._changed(page, at, change)
                struct.pack_into(">I", page, at, word)
                yield number, bytes(page)

    def _missing(self, i: int) -> Sum:
        """What the sums over frame `i` lack to be the stored ones."""
        first, second = self._sum_of(i, self._seed(i))
        stored_first, stored_second = self._stored(i)
        return stored_first - first & MASK, stored_second - second & MASK

    def _changed(self, data: bytes | bytearray, at: int, change: int) -> int:
        """The word at `at` after `change` to it, as a big-endian number."""
        (word,) = struct.unpack_from(self.words, data, at)
        return int.from_bytes(struct.pack(self.words, word + change & MASK), "big")

    def _sum(self, data: bytes | memoryview, seed: Sum) -> Sum:
        first, second = seed
        words = struct.unpack(f"{self.words[0]}{len(data) // 4}I", data)
        for even, odd in zip(words[::2], words[1::2], strict=True):
            first = (first + even + second) & MASK
            second = (second + odd + first) & MASK
        return first, second


def _changes(missing: Sum, n: int) -> Iterator[int]:
    """By how much the n-th word from the end must change to add `missing`; nothing if it cannot."""
    first, second = missing
    before, weight = WEIGHTS[n - 1], WEIGHTS[n]
    if (first * weight - second * before) & MASK == 0:
        # Of two neighbours among the weights one is odd, and so has an inverse.
        known, odd = (second, weight) if weight & 1 else (first, before)
        yield known * pow(odd, -1, MASK + 1) & MASK
