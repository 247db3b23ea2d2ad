"""One flipped bit, anywhere in a crashed queue's files: its rows come out, or their loss is told.

The whole forms flip every bit of a small log and of a small file; the everyday forms every bit of
the log's header and of all frames' headers, those bits of the pages whose change a frame's
checksum cannot tell from one of its page number, and a sample of all others.
"""

import json
import logging
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.repair import is_sound, repair_folder, repair_log
from open_llm_proxy.queue.damage.verification import is_sound_with
from open_llm_proxy.queue.damage.wal_frames import FRAME, FRAME_BYTES, HEADER, MASK, WalFrames
from open_llm_proxy.queue.errors import NeedsRepair, NotAQueue
from open_llm_proxy.queue.store import Store
from queue_fill import sealed_by_hand
from queue_fixtures import closing, dead_queue, opening, plain

TOLD = re.compile(r"rows from seq (\d+) on may be missing")
PAGE_BITS = 8 * schema.PAGE_BYTES
ALL_ROWS = 1 << 30
# What adoption moves to the quarantine.
PUT_ASIDE = "not a queue: "
# The whole forms are cut into so many tests, that processes can share them.
PARTS = 32


@dataclass(slots=True)
class Crashed:
    """A dead queue: its name, its two files and all lines that were ever committed, by seq."""

    name: str
    files: dict[str, bytes]
    lines: dict[int, bytes] = field(default_factory=dict)

    def bits(self, file: str) -> int:
        return 8 * len(self.files[file])

    def frames(self) -> range:
        return range((len(self.files[schema.WAL_NAME]) - HEADER.size) // FRAME_BYTES)


@dataclass(slots=True)
class Recovery:
    """What recovery made of a queue: its rows, what it said, and why it gave up if it did."""

    rows: dict[int, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    unreadable: str | None = None


def crashed(root: Path, fill: Callable[[Store], object]) -> Crashed:
    lines: dict[int, bytes] = {}

    def kept(store: Store) -> None:
        committed, read = store.commit, store.read

        def commit(*arguments: object) -> object:
            result = committed(*arguments)  # type: ignore[arg-type]
            first = store.last_seq - sum(map(len, result)) + 1
            for row in read(first, store.last_seq, ALL_ROWS) if store.last_seq >= first else []:
                lines[row.seq] = row.line
            return result

        store.commit = commit  # type: ignore[method-assign, assignment]
        fill(store)

    queue = dead_queue(root, kept)
    files = {name: (queue / name).read_bytes() for name in (schema.DATABASE_NAME, schema.WAL_NAME)}
    return Crashed(queue.name, files, lines)


def few_frames(store: Store) -> None:
    """A file of some eighty pages, and a log of several kinds of transactions over it."""
    store.commit([plain(*range(1, 71), size_bytes=3500)])
    sealed_by_hand(store, 1, 20, "memory:")
    store.commit([opening(71)[0]])
    store._database.checkpoint()
    append, record = opening(72, size_bytes=300)
    store.commit([append])
    store.commit([closing(72, record, size_bytes=3500)])
    sealed_by_hand(store, 21, 40, "memory:")
    store.commit([plain(300, 301)])


def one_commit(store: Store) -> None:
    """A log of a single transaction."""
    store.commit([plain(1)])
    store._database.checkpoint()
    store.commit([plain(2)])


def few_pages(store: Store) -> None:
    """A file that is all checkpointed, with rows, a long row, open calls and batches."""
    store.commit([plain(*range(1, 13), size_bytes=700)])
    store.commit([plain(13, size_bytes=5000)])
    batch, _ = sealed_by_hand(store, 1, 6, "memory:")
    store.ack(batch)
    sealed_by_hand(store, 7, 9, "memory:")
    store.commit([opening(14)[0]])
    append, record = opening(15)
    store.commit([append])
    store.commit([closing(15, record)])
    store._database.checkpoint()


@pytest.fixture(scope="module")
def in_log(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    return crashed(tmp_path_factory.mktemp("log") / "queues", few_frames)


@pytest.fixture(scope="module")
def in_one_commit(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    return crashed(tmp_path_factory.mktemp("commit") / "queues", one_commit)


@pytest.fixture(scope="module")
def in_file(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    return crashed(tmp_path_factory.mktemp("file") / "queues", few_pages)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: a recovery fsyncs many times."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    handler, logger = Said(), logging.getLogger("open_llm_proxy.queue")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler.messages
    logger.propagate = True
    logger.removeHandler(handler)


def recovered(queue: Crashed, root: Path, said: list[str], flip: tuple[str, int]) -> Recovery:
    """What a start makes of the queue with one bit flipped: `flip` is the file and the bit."""
    path = root / queue.name
    path.mkdir(parents=True)
    for name, content in queue.files.items():
        (path / name).write_bytes(content)
    file, bit = flip
    if bit >= 0:
        with open(path / file, "r+b") as opened:
            opened.seek(bit // 8)
            opened.write(bytes((queue.files[file][bit // 8] ^ 1 << bit % 8,)))
    said.clear()
    result = Recovery()
    for prepare in (checked, repair_folder):
        try:
            prepare(path)
            result.rows, result.unreadable = finished(path), None
            break
        except NeedsRepair as error:
            result.unreadable = str(error)
        except NotAQueue as error:
            result.unreadable = f"{PUT_ASIDE}{error}"
            break
        except (sqlite3.Error, UnicodeDecodeError) as error:  # nobody above expects these
            result.unreadable = f"{type(error).__name__}: {error}"
            if not schema.is_damage(error):
                break
    result.said = list(said)
    shutil.rmtree(root)
    return result


def checked(path: Path) -> None:
    repair_log(path)
    if not is_sound(path):
        raise NeedsRepair("it is not sound")


def finished(path: Path) -> dict[int, bytes]:
    """Open the queue and read all rows that an upload would, as Orphan and Drain do."""
    store = Store.open(path)
    try:
        store.close_open_calls()
        rows: dict[int, bytes] = {}
        sealed = {batch.first: batch.last for batch in store.sealed()}
        at = 1
        query = "SELECT first, last FROM batches WHERE uploaded ORDER BY first"
        done = store._database.rows(query)
        for first, last in [*done, (store.last_seq + 1, store.last_seq)]:
            while at < first:
                end = sealed.get(at, min([s for s in sealed if s > at] + [first]) - 1)
                for row in store.read(at, end, ALL_ROWS):
                    rows[row.seq] = row.line
                at = end + 1
            at = last + 1
        return rows
    finally:
        store._database.close()


def fault(queue: Crashed, whole: dict[int, bytes], result: Recovery) -> str | None:
    """What is wrong with a recovery; None if it is as promised."""
    if result.unreadable is not None:
        return result.unreadable
    told = [int(found[1]) for message in result.said if (found := TOLD.search(message))]
    sure_to = min([*told, len(whole) + ALL_ROWS])
    for seq, line in result.rows.items():
        if line in (whole.get(seq), queue.lines.get(seq)):
            continue
        kind = json.loads(line)["type"]
        if kind == "damaged" or (kind == "interrupted" and seq >= sure_to):
            continue
        # The tail of the lines that close calls is damaged: they come without it.
        head = line.removesuffix(b"}\n")
        if whole.get(seq, b"").startswith(head) and any(
            "interrupted_tail" in m for m in result.said
        ):
            continue
        return f"row {seq} is another: {line[:200]!r}"
    gone = [seq for seq in whole if seq not in result.rows and seq < sure_to]
    return f"rows {gone} are gone and nobody says so" if gone else None


def check(
    queue: Crashed, memory: Path, said: list[str], file: str, bits: Iterable[int]
) -> dict[int, str]:
    """Flip each bit; returns what is wrong, by bit."""
    whole = recovered(queue, memory / "whole", said, (file, -1))
    assert whole.unreadable is None
    assert whole.said == []
    faults = {}
    for bit in bits:
        result = recovered(queue, memory / "flipped", said, (file, bit))
        if found := fault(queue, whole.rows, result):
            faults[bit] = found
    return faults


def frame_header_bits(queue: Crashed) -> Iterator[int]:
    yield from range(8 * HEADER.size)
    for i in queue.frames():
        at = 8 * (HEADER.size + i * FRAME_BYTES)
        yield from range(at, at + 8 * FRAME.size)


def mistakable_bits(queue: Crashed) -> Iterator[int]:
    """Bits of pages whose flip gives the checksum that another page number would have given.

    Computed by adding up, without the weights that the product uses.
    """
    sums = [(1, 0)]  # of a change by 1 in the last word, the one before it and so on
    for _ in range(1 + schema.PAGE_BYTES // 4):
        second, first = sums[-1]
        sums.append((second + first & MASK, second))
    effects = {}
    for bit in range(8):  # of the number's last byte, which is the highest of a word
        weight = tuple(part << 24 + bit & MASK for part in sums[-1])
        effects[weight] = effects[tuple(-part & MASK for part in weight)] = bit
    for i in queue.frames():
        page = 8 * (HEADER.size + i * FRAME_BYTES + FRAME.size)
        for n in range(schema.PAGE_BYTES // 4):
            for bit in range(32):
                if tuple(part << bit & MASK for part in sums[n]) in effects:
                    byte = schema.PAGE_BYTES - 4 - 4 * n + bit // 8
                    yield page + 8 * byte + bit % 8


def test_a_sample_of_the_bits_of_the_logs_headers(
    in_log: Crashed, memory: Path, said: list[str]
) -> None:
    bits = list(frame_header_bits(in_log))[::11]
    assert check(in_log, memory, said, schema.WAL_NAME, bits) == {}


@pytest.mark.long
def test_every_bit_of_the_logs_headers(in_log: Crashed, memory: Path, said: list[str]) -> None:
    assert check(in_log, memory, said, schema.WAL_NAME, frame_header_bits(in_log)) == {}


def test_every_bit_of_the_headers_of_a_single_commit(
    in_one_commit: Crashed, memory: Path, said: list[str]
) -> None:
    bits = frame_header_bits(in_one_commit)
    assert check(in_one_commit, memory, said, schema.WAL_NAME, bits) == {}


def test_bits_that_look_like_another_page_number(
    in_log: Crashed, memory: Path, said: list[str]
) -> None:
    bits = list(mistakable_bits(in_log))
    assert len(bits) > 1000
    assert check(in_log, memory, said, schema.WAL_NAME, bits[::151]) == {}


def test_a_sample_of_the_logs_bits(in_log: Crashed, memory: Path, said: list[str]) -> None:
    bits = range(0, in_log.bits(schema.WAL_NAME), 3001)
    assert check(in_log, memory, said, schema.WAL_NAME, bits) == {}


def part_of(bits: int, part: int) -> range:
    return range(bits * part // PARTS, bits * (part + 1) // PARTS)


def unhealed(queue: Crashed, bits: Iterable[int]) -> Iterator[int]:
    """Those of the log's bits whose flip is not undone to the last byte.

    A log that is as it was needs no further look. Only the sum of the frame that was hit is new.
    """
    whole = queue.files[schema.WAL_NAME]
    sound = WalFrames(bytearray(whole))
    wal._survey(sound)
    with tempfile.NamedTemporaryFile() as file:
        file.write(queue.files[schema.DATABASE_NAME])
        file.flush()
        trial = partial(is_sound_with, Path(file.name))
        for bit in bits:
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            hit = (bit // 8 - HEADER.size) // FRAME_BYTES
            sums = {key: value for key, value in sound._sums.items() if key[0] != hit}
            log = WalFrames(flipped, _sums=sums)
            if wal._repair(log, trial).repaired == 0 or log.data != whole:
                yield bit


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_every_bit_of_the_log(in_log: Crashed, memory: Path, said: list[str], part: int) -> None:
    bits = unhealed(in_log, part_of(in_log.bits(schema.WAL_NAME), part))
    assert check(in_log, memory, said, schema.WAL_NAME, bits) == {}


def check_file(
    queue: Crashed, memory: Path, said: list[str], bits: Iterable[int]
) -> dict[int, str]:
    """The same for the file itself: where SQLite finds it unreadable it is put aside as a whole."""
    faults = check(queue, memory, said, schema.DATABASE_NAME, bits)
    return {bit: told for bit, told in faults.items() if not told.startswith(PUT_ASIDE)}


def test_a_sample_of_the_files_bits(in_file: Crashed, memory: Path, said: list[str]) -> None:
    assert (
        check_file(in_file, memory, said, range(0, in_file.bits(schema.DATABASE_NAME), 401)) == {}
    )


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_every_bit_of_the_file(in_file: Crashed, memory: Path, said: list[str], part: int) -> None:
    bits = part_of(in_file.bits(schema.DATABASE_NAME), part)
    assert check_file(in_file, memory, said, bits) == {}
