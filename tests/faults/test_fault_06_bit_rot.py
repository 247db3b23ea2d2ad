"""Fault 6: bits flip in the files, files are cut short or missing.

What is still good is uploaded; what is not is named by a `damaged` row, or kept in quarantine,
and shouted about. Nothing is made up. One thing cannot be seen from the files: a lost tail of
the write-ahead log, behind which the queue looks as it did earlier.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import known_content
import log_contract
import open_llm_proxy.queue.fault_points as fault_points
from calls import CallRecord
from open_llm_proxy.queue import schema
from queue_fixtures import flip_bit
from stores import DirectoryStore
from trial import Trial

pytestmark = pytest.mark.timeout(seconds=120)

DAY = 86_400
DATABASE, WAL = "queue.db", "queue.db-wal"
WAL_HEADER_BYTES, WAL_FRAME_HEADER_BYTES = 32, 24


class DeadQueue:
    """A queue that a killed server left, of which copies are damaged and finished."""

    def __init__(self, new_trial: Callable[..., Trial], store: DirectoryStore, trial: Trial):
        self.trial = trial
        self._new_trial = new_trial
        self._store = store
        self._copies = 0

    def copy(self) -> Path:
        """A copy of all that was left; returns the folder of the queue with the rows."""
        self._copies += 1
        root = self.trial.proxy.folder / f"copy-{self._copies}"
        shutil.copytree(
            self.trial.proxy.queue_folder, root, ignore=shutil.ignore_patterns("reserve*")
        )
        queues = [path for path in root.iterdir() if path.is_dir()]
        return max(queues, key=lambda queue: sum(f.stat().st_size for f in queue.iterdir()))

    async def finished(self, queue: Path) -> Trial:
        """Have a server adopt the copy to its end; what it stored is in the trial's store."""
        shutil.rmtree(self._store.folder)
        self._store.folder.mkdir()
        trial = self._new_trial(
            queue_folder=queue.parent, window_seconds=DAY, variant=self.trial.variant
        )
        trial.record = CallRecord(
            sent=self.trial.record.sent, answered=dict(self.trial.record.answered)
        )
        await trial.finish()
        return trial


async def dead_queue(
    new_trial: Callable[..., Trial], store: DirectoryStore, *, in_wal: bool, variant: str = ""
) -> DeadQueue:
    """A dead queue whose rows lie in the write-ahead log, or in the database itself."""
    trial = new_trial(window_seconds=DAY, variant=variant)
    await trial.proxy.start()
    async with trial.load(concurrency=8) as load:
        await trial.answered_more(30)
        load.stop()
        await trial.killed()
    if not in_wal:  # opening a queue moves its log into the database
        trial.proxy.settings[fault_points.VARIABLE] = "sealed"
        await trial.proxy.start(until=None)
        await trial.proxy.wait()
    return DeadQueue(new_trial, store, trial)


def flip_random_bit(path: Path, chance: random.Random) -> int:
    """Returns the byte that was hit."""
    byte = chance.randrange(path.stat().st_size)
    flip_bit(path, byte, chance.randrange(8))
    return byte


def last_commit(wal: Path) -> int:
    """Where the frames of the newest commit begin (https://sqlite.org/fileformat2.html#walformat).

    A commit that does not verify at the end of the log looks like one that was never finished.
    """
    data = wal.read_bytes()
    size = WAL_FRAME_HEADER_BYTES + schema.PAGE_BYTES
    ends = [WAL_HEADER_BYTES]
    for start in range(WAL_HEADER_BYTES, len(data) - size + 1, size):
        if data[start + 8 : start + 16] != data[16:24]:
            break  # what an earlier use of the log has left
        if any(data[start + 4 : start + 8]):
            ends.append(start + size)
    return ends[-2] if len(ends) > 1 else ends[0]


def interrupted_calls(store: DirectoryStore) -> set[int]:
    """The numbers of the calls that the log says were interrupted."""
    rows = [row for _, body in store.objects() for row in log_contract.read_rows(body.splitlines())]
    cut = {row["request_id"] for row in rows if row["outcome"] == "interrupted"}
    questions = (row["user_question"] for row in rows if row["request_id"] in cut)
    scripts = (known_content.script_of(question) for question in questions if question)
    return {script.number for script in scripts if script is not None}


SEEDS = [
    pytest.param(range(3), id="a-few"),
    pytest.param(
        range(100, 200),
        id="many",
        marks=[pytest.mark.long, pytest.mark.timeout(seconds=1200)],
    ),
]


@pytest.mark.parametrize("in_wal", [True, False], ids=["wal", "database"])
@pytest.mark.parametrize("seeds", SEEDS)
async def test_a_flipped_bit_is_found_and_costs_what_it_hit(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore, in_wal: bool, seeds: range
) -> None:
    dead = await dead_queue(new_trial, directory_store, in_wal=in_wal)
    for seed in seeds:
        queue = dead.copy()
        path = queue / (WAL if in_wal else DATABASE)
        tail = last_commit(path) if in_wal else path.stat().st_size
        is_tail = flip_random_bit(path, random.Random(seed)) >= tail
        trial = await dead.finished(queue)
        said = trial.proxy.stderr_text()
        is_kept_whole = f"Queue {queue.name} cannot be read" in said
        if is_tail:  # nobody can know of what is behind it, but nothing is torn or invented
            for number in interrupted_calls(directory_store):
                trial.record.answered.pop(number, None)
        verdict = trial.verdict(damaged_allowed=True, is_counted=not is_kept_whole and not is_tail)
        if is_tail:
            kinds = {violation.kind for violation in verdict.violations}
            assert kinds <= {"lost"}, f"seed {seed}: {verdict}"
        elif is_kept_whole:  # for a person to look at
            assert list((queue.parent / "quarantine").glob(f"{queue.name}*"))
            assert not verdict.rows, f"seed {seed}: {verdict}"
        else:
            assert not verdict.violations, f"seed {seed}: {verdict}; {said[-1000:]}"


async def flipped_in_a_row(
    new_trial: Callable[..., Trial], store: DirectoryStore, variant: str = ""
) -> Trial:
    """Change a letter of an answer where it lies in the database."""
    dead = await dead_queue(new_trial, store, in_wal=False, variant=variant)
    queue = dead.copy()
    number = min(dead.trial.record.answered)
    text = f"answer {number:06d}".encode()
    flip_bit(queue / DATABASE, (queue / DATABASE).read_bytes().index(text))
    return await dead.finished(queue)


async def test_a_changed_letter_costs_its_row_and_no_other(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore
) -> None:
    trial = await flipped_in_a_row(new_trial, directory_store)
    trial.assert_nothing_lost(damaged_allowed=True)
    assert "is damaged" in trial.proxy.stderr_text()


async def test_the_same_test_notices_checksums_that_are_ignored(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore
) -> None:
    trial = await flipped_in_a_row(new_trial, directory_store, "checksums_ignored")
    assert trial.verdict(damaged_allowed=True).count("content") > 0


async def test_a_lost_tail_of_the_log_costs_the_newest_rows_and_no_others(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore
) -> None:
    dead = await dead_queue(new_trial, directory_store, in_wal=True)
    for share in (None, 0.0, 0.3, 0.9):
        wal = dead.copy() / WAL
        if share is None:
            wal.unlink()
        else:
            os.truncate(wal, int(wal.stat().st_size * share))
        trial = await dead.finished(wal.parent)
        # Unseen is what nobody can know of; but nothing is doubled, torn or invented.
        for number in interrupted_calls(directory_store):
            trial.record.answered.pop(number, None)
        verdict = trial.verdict(damaged_allowed=True, is_counted=False)
        assert {violation.kind for violation in verdict.violations} <= {"lost"}, str(verdict)
        if share is None:
            assert f"{WAL} is missing" in trial.proxy.stderr_text()


async def test_a_database_that_was_cut_is_kept_and_the_server_serves(
    new_trial: Callable[..., Trial], directory_store: DirectoryStore
) -> None:
    dead = await dead_queue(new_trial, directory_store, in_wal=False)
    for share in (0.0, 0.5):
        database = dead.copy() / DATABASE
        os.truncate(database, int(database.stat().st_size * share))
        trial = await dead.finished(database.parent)
        verdict = trial.verdict(damaged_allowed=True, is_counted=False)
        kinds = {violation.kind for violation in verdict.violations}
        assert kinds <= {"lost", "unpaired"}, str(verdict)
        assert list((trial.proxy.queue_folder / "quarantine").iterdir())
        assert "quarantine" in trial.proxy.stderr_text()
