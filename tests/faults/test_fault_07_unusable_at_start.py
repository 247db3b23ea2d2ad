"""Fault 7: at the start the folder, or what lies in it, cannot be used.

A folder that cannot hold a queue is refused with a sentence and exit code 3. What a dead server
left and this one cannot read is never deleted: it stays, or is kept in quarantine, calls are
taken meanwhile, and once a person has put it right the next start finishes it.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from loop_disk import LoopDisk
from trial import Trial, losses

pytestmark = [pytest.mark.root, pytest.mark.timeout(seconds=120)]

ENVIRONMENT_UNUSABLE = 3
NOBODY = 65534
# The server as a user whom the access rights of files bind, which is not so for root.
AS_ORDINARY_USER = (
    "setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all",
)  # fmt: skip


async def refused_at_start(trial: Trial) -> str:
    """The last words of a server that must not start."""
    await trial.proxy.start(until=None)
    assert await trial.proxy.wait() == ENVIRONMENT_UNUSABLE
    return trial.proxy.stderr_text().splitlines()[-1]


async def left_by_a_killed_server(trial: Trial) -> Path:
    """The folder of a queue with rows in it."""
    await trial.proxy.start()
    async with trial.load(concurrency=4) as load:
        await trial.answered_more(15)
        load.stop()
        await trial.killed()
    return trial.proxy.queue_folder / trial.proxy.queues().pop()


async def test_a_read_only_disk_is_refused(
    new_trial: Callable[..., Trial], loop_disk: LoopDisk
) -> None:
    trial = new_trial(queue_folder=loop_disk.root / "queue", window_seconds=3600)
    await left_by_a_killed_server(trial)
    loop_disk.set_read_only(True)
    assert "LOG_QUEUE_DIR" in await refused_at_start(trial)
    loop_disk.set_read_only(False)
    await trial.settle()


async def test_a_file_in_place_of_the_folder_is_refused(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial()
    (trial.proxy.folder / "file").write_text("no folder")
    trial.proxy.settings["LOG_QUEUE_DIR"] = str(trial.proxy.folder / "file")
    assert "LOG_QUEUE_DIR" in await refused_at_start(trial)


async def test_a_folder_of_somebody_else_is_refused(new_trial: Callable[..., Trial]) -> None:
    trial = new_trial(command_prefix=AS_ORDINARY_USER)
    trial.proxy.queue_folder.mkdir(mode=0o755)
    os.chown(trial.proxy.queue_folder, NOBODY, NOBODY)
    assert "LOG_QUEUE_DIR" in await refused_at_start(trial)


class GarbageHeader:
    """The first bytes of the database are something else."""

    def make(self, queue: Path) -> None:
        with (queue / "queue.db").open("r+b") as file:
            self._header = file.read(64)
            file.seek(0)
            file.write(b"garbage!" * 8)

    def put_right(self, queue: Path) -> None:
        (kept,) = (path for path in (queue.parent / "quarantine").iterdir() if path.is_dir())
        assert kept.name.startswith(queue.name)
        shutil.move(kept, queue)
        with (queue / "queue.db").open("r+b") as file:
            file.write(self._header)


class SchemaFromTheFuture:
    """A newer version has written the file."""

    def make(self, queue: Path) -> None:
        self._version = self._set_version(queue, 99)

    def put_right(self, queue: Path) -> None:
        assert self._set_version(queue, self._version) == 99

    def _set_version(self, queue: Path, version: int) -> int:
        connection = sqlite3.connect(queue / "queue.db")
        (before,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version={version}")
        connection.close()
        return int(before)


class WrongOwner:
    """The folder belongs to another user."""

    def make(self, queue: Path) -> None:
        os.chmod(queue, 0o700)
        os.chown(queue, NOBODY, NOBODY)

    def put_right(self, queue: Path) -> None:
        os.chown(queue, 0, 0)


async def served_beside(
    trial: Trial, damage: GarbageHeader | SchemaFromTheFuture | WrongOwner
) -> None:
    """Take calls while a queue cannot be read, put that right, and finish everything."""
    queue = await left_by_a_killed_server(trial)
    damage.make(queue)
    await trial.proxy.start()
    await trial.calls(15)
    assert await trial.proxy.stop() == 0
    assert queue.name in trial.proxy.stderr_text()
    damage.put_right(queue)
    await trial.finish()


@pytest.mark.parametrize("damage", [GarbageHeader, SchemaFromTheFuture, WrongOwner])
async def test_what_cannot_be_read_is_kept_and_finished_once_it_is_put_right(
    new_trial: Callable[..., Trial],
    damage: type[GarbageHeader] | type[SchemaFromTheFuture] | type[WrongOwner],
) -> None:
    trial = new_trial(window_seconds=3600, command_prefix=AS_ORDINARY_USER)
    await served_beside(trial, damage())
    trial.assert_nothing_lost()


async def test_the_same_test_notices_an_unreadable_queue_that_is_given_up(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(window_seconds=3600, variant="unreadable_queue_emptied")
    await served_beside(trial, GarbageHeader())
    assert losses(trial.verdict()) > 0
