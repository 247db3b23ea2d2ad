"""Fault 4: the disk reports an error, once or from then on.

After a failed fsync nobody knows what is on the disk, and a second fsync that succeeds proves
nothing (https://wiki.postgresql.org/wiki/Fsync_Errors). So the server must acknowledge nothing
more, end its open answers visibly, and exit with 70; the next one adopts what is there.
"""

from collections.abc import Callable

import pytest

import syscall_faults
from trial import Trial, losses

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(seconds=120),
    pytest.mark.usefixtures("strace"),
]

QUEUE_BROKEN = 70
ENVIRONMENT_UNUSABLE = 3
ONCE = ("fdatasync:error=EIO:when=1", "fdatasync:error=EIO:when=25", "pwrite64:error=EIO:when=70")
FOR_EVER = ("fdatasync:error=EIO:when=20+", "pwrite64:error=EIO:when=31+")


async def exit_code_after(trial: Trial, injection: str) -> int:
    """Run a server under calls until it ends by itself because of the injected error."""
    trial.proxy.command_prefix = ()
    await trial.proxy.start()
    log = trial.proxy.folder / "strace.txt"
    async with syscall_faults.attached(trial.proxy.server_pid(), injection, log=log):
        async with trial.load():
            code = await trial.proxy.wait()
    assert "(INJECTED)" in log.read_text()
    trial.repetitions += 1
    return code


@pytest.mark.parametrize("injections", [ONCE, FOR_EVER], ids=["once", "for-ever"])
async def test_after_an_error_the_server_ends_and_the_next_one_goes_on(
    new_trial: Callable[..., Trial], injections: tuple[str, ...]
) -> None:
    trial = new_trial()
    for injection in injections:
        assert await exit_code_after(trial, injection) == QUEUE_BROKEN
        assert "failed with SQLITE_IOERR" in trial.proxy.stderr_text().rpartition("CRITICAL")[2]
    await trial.settle()
    assert trial.record.answered and trial.record.failed | trial.record.refused


async def test_a_disk_that_fails_from_the_start_is_refused(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial()
    await trial.proxy.start()
    async with trial.load() as load:
        await trial.answered_more(20)
        load.stop()
        await trial.killed()
    left = trial.proxy.queues()
    trial.proxy.command_prefix = syscall_faults.from_start("fdatasync:error=EIO:when=1+")
    await trial.proxy.start(until=None)
    assert await trial.proxy.wait() == ENVIRONMENT_UNUSABLE
    assert "LOG_QUEUE_DIR" in trial.proxy.stderr_text().splitlines()[-1]
    assert trial.proxy.queues() >= left
    trial.proxy.command_prefix = ()
    await trial.settle()


async def test_a_dead_owners_queue_that_cannot_be_read_waits_for_the_next_start(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(window_seconds=3600)
    await trial.proxy.start()
    async with trial.load() as load:
        await trial.answered_more(20)
        load.stop()
        await trial.killed()
    (left,) = trial.proxy.queues()
    trial.proxy.command_prefix = syscall_faults.from_start(
        "pread64:error=EIO:when=2+", path=trial.proxy.queue_folder / left / "queue.db-wal"
    )
    await trial.proxy.start()
    await trial.calls(10)
    assert await trial.proxy.stop() == 0
    assert left in trial.proxy.queues()
    trial.proxy.command_prefix = ()
    await trial.settle()


async def test_the_same_test_notices_failed_commits_that_are_acknowledged(
    new_trial: Callable[..., Trial],
) -> None:
    trial = new_trial(variant="failed_commit_acknowledged", window_seconds=3600)
    await trial.proxy.start()
    log = trial.proxy.folder / "strace.txt"
    injection = "fdatasync:error=EIO:when=10+"
    async with syscall_faults.attached(trial.proxy.server_pid(), injection, log=log):
        async with trial.load() as load:
            # A commit takes many entries under load: enough calls for well over ten of them.
            await trial.answered_more(100)
            load.stop()
        await trial.killed()
        assert "(INJECTED)" in log.read_text()
    await trial.finish()
    assert losses(trial.verdict()) > 0
