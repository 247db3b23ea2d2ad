"""The write-ahead log as SQLite left it, and the one kind of damage in it that can be proved.

Each frame's checksum covers all frames before it, so SQLite takes everything behind one flipped
bit for the torn end of the log and drops it without a word: a hundred committed rows become
fifty. But a commit is fsynced before the next one begins. Where a whole transaction that
verifies stands *behind* a frame that does not, that frame was once complete on the disk, and is
damaged now and not torn. Such a log is repaired: the flipped bit is found and set right, or the
checksums are written anew over what is there, so that SQLite reads all commits, and the CRC-32
of the rows tells which of them were hit. A bad frame in the last transaction is left to SQLite.

A page must never be put in another's place. One changed word can be computed from the checksum,
but the change of a page's content can have the same effect on it as that of its number, see
wal_frames.py. Where several words are possible, each is tried: what really happened gives a sound
file when it is undone. Where that leaves two places for the page, the log is repaired up to the
transaction before, and what is behind is reported.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from open_llm_proxy.queue.damage.wal_frames import Origin, WalFrames
from open_llm_proxy.queue.durable_files import (
    fsync_folder,
    quarantine,
    read_regular,
    write_file,
)
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.schema import DATABASE_NAME, WAL_NAME

log = logging.getLogger(__name__)

# A log is copied into the file at 4 MiB, and one commit adds at most the 64 MiB that a writer
# holds. Only a repair writes more, and its copy of the file is in quarantine/ by then.
MAX_BYTES = 80 * 1024 * 1024

# Four times what a long log holds; each costs milliseconds.
MAX_SET_RIGHT = 4096

# So many pages are read while origins of frames are tried; this is 1 GiB.
TRIED_PAGES = 1 << 18
TRIAL_PAGES = 1 << 8  # what the trial of a small file counts as

# Whether the queue's file is sound with these pages in place of its own, by their numbers, and so
# many pages in all; None where it is too large to be tried.
Trial = Callable[[Mapping[int, bytes], int], bool | None]


@dataclass(frozen=True, slots=True)
class WalCondition:
    """What a log holds, counted in frames.

    `readable`: those that SQLite reads, up to the last commit before a bad one. `damaged`: bad
    ones that were complete once, as commits behind them prove, a bad header among them.
    `doubtful`: bad ones at the end, which were damaged or are a write that was never finished:
    nobody can tell. `repaired`: damaged ones that were set right. All others belong to a
    transaction that was never finished.
    """

    frames: int = 0
    readable: int = 0
    damaged: int = 0
    doubtful: int = 0
    repaired: int = 0


def condition(path: Path) -> WalCondition:
    """Look at the log at `path`, which need not exist, and change nothing.

    Raises `NotAQueue` where it is too large to be looked at.
    """
    try:
        return _survey(WalFrames(bytearray(_content(path)))).condition()
    except FileNotFoundError:
        return WalCondition()


def repair_wal(path: Path, root: Path, is_sound_with: Trial) -> WalCondition:
    """Repair the log at `path` as far as it is provably damaged; returns what it holds then.

    Where SQLite will not read all of it, or it is repaired, it is kept as it was found under the
    quarantine of `root`. The queue must not be open. Raises `NotAQueue` as `condition` does.
    """
    try:
        found = _content(path)
    except FileNotFoundError:
        return WalCondition()
    wal = WalFrames(bytearray(found))
    result = _repair(wal, is_sound_with)
    if not (result.repaired or result.damaged or result.doubtful):
        return result
    kept = quarantine(root, f"{path.parent.name}-{time.time_ns()}.wal", found)
    if not result.repaired:
        log.error("%s cannot be read to its end; it was kept as %s", path, kept)
        return result
    temporary = path.with_name(f"{path.name}.repaired")
    write_file(temporary, [wal.data])
    reach("wal-written")
    os.replace(temporary, path)
    fsync_folder(path.parent)
    reach("wal-repaired")
    log.error(
        "%s had %d damaged frames and is repaired; it was kept as %s", path, result.repaired, kept
    )
    return result


def _content(path: Path) -> bytes:
    content = read_regular(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise NotAQueue(
            f"{path} has more than {MAX_BYTES >> 20} MiB, which no queue's log grows to: "
            "it is not read"
        )
    return content


def unread(condition: WalCondition, next_seq: int) -> str:
    """The sentence about rows in a log that SQLite does not read to its end.

    `next_seq`: the seq behind the last row that it reads.
    """
    if condition.damaged:
        return (
            f"{WAL_NAME} has {counted(condition.damaged, 'damaged frame')} with complete commits "
            f"behind that cannot be read: rows from seq {next_seq} on may be missing"
        )
    return (
        f"the end of {WAL_NAME} does not verify: either its last write was cut short, then "
        "nothing that was acknowledged is lost, or it is damaged, then rows from seq "
        f"{next_seq} on may be missing"
    )


def missing(next_seq: int) -> str:
    """The sentence about the missing log of a queue that was not closed in order."""
    return (
        f"its process did not end properly and {WAL_NAME} is missing: either somebody opened "
        f"{DATABASE_NAME} with sqlite3, then nothing is lost, or the file was deleted, then rows "
        f"from seq {next_seq} on may be missing"
    )


@dataclass(frozen=True, slots=True)
class _Survey:
    """`bad` frames do not verify as SQLite sees them; the sums of `broken` ones are wrong even
    if the header or the frame before is what was hit. `last` is the last commit whose whole
    transaction has right sums, -1 where there is none: what is before was complete once."""

    frames: range
    commits: list[int]
    bad: list[int]
    last: int
    header_is_good: bool

    def commit_before(self, i: int) -> int:
        """The last commit before frame `i`; -1 where there is none."""
        return max((commit for commit in self.commits if commit < i), default=-1)

    def condition(self) -> WalCondition:
        first_bad = (self.bad[0] if self.bad else len(self.frames)) if self.header_is_good else 0
        is_header_damaged = self.last >= 0 and not self.header_is_good
        return WalCondition(
            len(self.frames),
            self.commit_before(first_bad) + 1,
            damaged=sum(i <= self.last for i in self.bad) + is_header_damaged,
            doubtful=sum(i > self.last for i in self.bad),
        )


def _survey(wal: WalFrames) -> _Survey:
    if wal.count < 1:
        return _Survey(range(0), [], [], -1, True)
    header_is_good = wal.read_header()
    # Frames of an earlier turn of the log follow those of this one; their salts differ.
    turn = [i for i in range(wal.count) if wal.frame(i)[2:4] == wal.salts]
    end = turn[-1] + 1 if turn else 0
    while end < wal.count and wal.adds_up(end):
        end += 1  # its salts are what was hit: they are not part of the sum
    frames = range(end)
    commits = [i for i in frames if wal.frame(i)[1]]
    bad = [i for i in frames if not wal.verifies(i)]
    last = _last_whole(commits, {i for i in bad if not wal.adds_up(i)})
    return _Survey(frames, commits, bad, last, header_is_good)


def _last_whole(commits: list[int], broken: set[int]) -> int:
    """The last commit of whose transaction no frame is `broken`; -1 where there is none."""
    for before, last in reversed(list(pairwise([-1, *commits]))):
        if not broken.intersection(range(before + 1, last + 1)):
            return last
    return -1


def _repair(wal: WalFrames, is_sound_with: Trial) -> WalCondition:
    """Make all provably complete transactions verify, as far as all pages' places are sure."""
    survey = _survey(wal)
    trials = _Trials(is_sound_with)
    newest = {wal.frame(i)[0]: i for i in range(survey.last + 1)}
    found, last = survey.condition(), survey.last
    for looked_at, i in enumerate(survey.bad):
        is_one_too_many = looked_at >= MAX_SET_RIGHT
        if i < last and (is_one_too_many or not _set_right(wal, i, survey, newest, trials)):
            last = survey.commit_before(i)
            break
    repaired = sum(i <= last for i in survey.bad) + (last >= 0 and not survey.header_is_good)
    if not repaired:
        return found
    wal.sign(last)
    return replace(found, readable=last + 1, damaged=found.damaged - repaired, repaired=repaired)


def _set_right(
    wal: WalFrames, i: int, survey: _Survey, newest: Mapping[int, int], trials: "_Trials"
) -> bool:
    """Undo what hit frame `i`; False if it is not sure in which page's place its page goes.

    `newest` holds the last frame of each page. Where more than one word was hit, the page stays as
    it is, for the CRC-32 of its rows to judge; a commit mark stays too: SQLite believes only the
    last, which is in a frame that adds up.
    """
    if wal.adds_up(i) or wal.is_checksum_hit(i):
        return True
    pages = max(wal.frame(commit)[1] for commit in survey.commits)
    origins = [origin for origin in wal.origins(i) if 0 < origin[0] <= pages]
    if not origins:
        return 0 < wal.frame(i)[0] <= pages
    if len(origins) > 1:
        if all(newest.get(number, -1) > i for number, _ in origins):
            return True  # SQLite reads the newer versions of these pages
        found = _only_sound(wal, i, origins, survey.last, trials)
        if found is None:
            return False
        origins = [found]
    wal.put(i, *origins[0])
    return True


class _Trials:
    """Trials of whole files, as long as all of them together are `TRIED_PAGES` at the most."""

    def __init__(self, is_sound_with: Trial) -> None:
        self._is_sound_with = is_sound_with
        self._tried = 0

    @property
    def are_used_up(self) -> bool:
        return self._tried > TRIED_PAGES

    def is_sound_with(self, pages: Mapping[int, bytes], size: int) -> bool | None:
        if self.are_used_up:
            return None
        self._tried += max(size, TRIAL_PAGES)
        return self._is_sound_with(pages, size)


def _only_sound(
    wal: WalFrames, i: int, origins: list[Origin], last: int, trials: "_Trials"
) -> Origin | None:
    """Which of the `origins` of frame `i` gives a sound file; None if two numbers may do.

    What the frame really was does give one. So where another number does not, the page's own is
    sure, even where the file is too large to try all of its contents.
    """
    if trials.are_used_up:
        return (wal.frame(i)[0], wal.page(i)) if origins[0][0] == wal.frame(i)[0] else None
    numbers = [wal.frame(j)[0] for j in range(last + 1)]
    newest = {number: j for j, number in enumerate(numbers) if j != i}
    others = {number: wal.page(j) for number, j in newest.items()}
    size = wal.frame(last)[1]
    sound: Origin | None = None  # with another number; that one is tried first
    for number, page in origins:
        pages = others if newest.get(number, -1) > i else others | {number: page}
        is_sound = trials.is_sound_with(pages, size)
        is_own = number == numbers[i]
        if is_sound is None:
            return (number, wal.page(i)) if is_own and sound is None else None
        if is_sound and is_own:
            return (number, page) if sound is None else None
        if is_sound:
            sound = number, page
    return sound
