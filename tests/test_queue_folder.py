"""Folders and their locks: birth, adoption and removal, also all at the same moment."""

import multiprocessing
import os
import shutil
import stat
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.batches import QUEUE_ID
from open_llm_proxy.queue.disk_space import (
    LAST_RESERVE_BYTES,
    LAST_RESERVE_NAME,
    RESERVE_BYTES,
    RESERVE_NAME,
)
from open_llm_proxy.queue.durable_files import make_folders
from open_llm_proxy.queue.errors import OwnerAlive, QueueFolderUnusable
from open_llm_proxy.queue.store import Store
from queue_fixtures import birth, dead_queue, names, plain
from queue_process import start

RESERVES = {RESERVE_NAME: RESERVE_BYTES, LAST_RESERVE_NAME: LAST_RESERVE_BYTES}


def test_a_queue_is_born_whole_and_owned(tmp_path: Path) -> None:
    owned = folder.give_birth(tmp_path, birth(window_seconds=60))
    assert names(tmp_path) == [owned.queue_id]
    assert QUEUE_ID.fullmatch(owned.queue_id)
    assert names(owned.path) == ["owner.lock", "queue.db", *RESERVES]
    for name, size in RESERVES.items():
        reserve = (owned.path / name).stat()
        assert reserve.st_size == size
        assert reserve.st_blocks * 512 >= size, "the reserve is a hole"
    with pytest.raises(OwnerAlive):
        folder.adopt(owned.path)
    store = Store.open(owned.path)
    assert (store.queue_id, store.meta.window_seconds) == (owned.queue_id, 60)
    store.close(cleanly=True)
    owned.release()
    folder.adopt(owned.path).release()


def test_no_two_births_share_a_folder(tmp_path: Path) -> None:
    born = {folder.give_birth(tmp_path, birth()).queue_id for _ in range(5)}
    assert len(born) == 5


def test_a_removed_queue_leaves_nothing(tmp_path: Path) -> None:
    owned = folder.give_birth(tmp_path, birth())
    owned.remove()
    assert names(tmp_path) == []


def test_a_lock_on_a_folder_that_was_removed_meanwhile_owns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = folder.give_birth(tmp_path, birth())
    path, opened = owned.path, os.open

    def open_and_lose(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        monkeypatch.undo()
        owned.remove()
        return descriptor

    monkeypatch.setattr(folder.os, "open", open_and_lose)
    with pytest.raises(OwnerAlive):
        folder.adopt(path)
    assert names(tmp_path) == []


def test_a_lock_on_a_folder_that_was_made_anew_owns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = folder.give_birth(tmp_path, birth())
    path, opened = owned.path, os.open

    def open_and_lose(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        monkeypatch.undo()
        owned.remove()
        path.mkdir()
        (path / folder.LOCK_NAME).touch()
        return descriptor

    monkeypatch.setattr(folder.os, "open", open_and_lose)
    with pytest.raises(OwnerAlive):
        folder.adopt(path)
    folder.adopt(path).release()


def test_what_died_at_birth_or_removal_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    unlocked = ("00000000000000a1.new", "00000000000000a2.done")
    for name in (*unlocked, "00000000000000a3.new", "0000000000000009.old", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / unlocked[1] / "queue.db").write_bytes(b"uploaded")
    lock = folder._take_lock(tmp_path / "00000000000000a3.new")
    folder.clear_rubbish(tmp_path)
    assert names(tmp_path) == ["0000000000000009.old", "00000000000000a3.new", "lost+found"]
    os.close(lock)


def test_a_birth_whose_folder_is_swept_away_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []

    def sweep(name: str) -> None:
        if name == "folder-made" and not swept:
            swept.extend(names(tmp_path))
            folder.clear_rubbish(tmp_path)

    monkeypatch.setattr(folder, "reach", sweep)
    owned = folder.give_birth(tmp_path, birth())
    assert len(swept) == 1
    assert names(tmp_path) == [owned.queue_id]


def test_queue_folders_are_found_oldest_first_and_nothing_else(tmp_path: Path) -> None:
    expected = [dead_queue(tmp_path / "queues", lambda s: s.commit([plain(1)])) for _ in range(3)]
    root = tmp_path / "queues"
    (root / "quarantine").mkdir()
    (root / "00000000000000a1.new").mkdir()
    (root / "00000000000000ff").write_bytes(b"a file")
    assert folder.queue_folders(root) == expected


def test_a_folder_that_vanishes_while_it_is_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = folder.give_birth(tmp_path, birth())
    gone = tmp_path / "ffffffffffffffff"
    gone.mkdir()
    scan = os.scandir

    def scan_and_lose(root: Path) -> list[os.DirEntry[str]]:
        entries = list(scan(root))
        if gone.exists():
            gone.rmdir()
        return entries

    monkeypatch.setattr(folder.os, "scandir", scan_and_lose)
    assert folder.queue_folders(tmp_path) == [kept.path]


def test_a_quarantined_folder_keeps_everything_and_is_not_adopted_again(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", lambda store: store.commit([plain(1)]))
    root, files = queue.parent, names(queue)
    target = folder.adopt(queue).quarantine()
    assert target.parent == root / "quarantine"
    assert names(target) == sorted({*files, "owner.lock"})
    assert folder.queue_folders(root) == []


@pytest.mark.parametrize("cause", ["a file", "below a file"])
def test_a_root_that_can_be_no_folder_is_refused_with_a_sentence(
    tmp_path: Path, cause: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    root = tmp_path / "file" if cause == "a file" else tmp_path / "file" / "queues"
    with pytest.raises(QueueFolderUnusable, match="LOG_QUEUE_DIR"):
        folder.prepare_root(root)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_root_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(QueueFolderUnusable):
        folder.prepare_root(tmp_path)


def test_a_new_root_is_synced_into_each_new_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make_folders(tmp_path / "a" / "b")
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]


def test_only_dead_owners_reserves_are_given_up(tmp_path: Path) -> None:
    living = folder.give_birth(tmp_path, birth())
    dead = folder.give_birth(tmp_path, birth())
    dead.release()
    for given_up in RESERVES:
        assert folder.free_reserve(tmp_path)
        assert not (dead.path / given_up).exists()
    assert not folder.free_reserve(tmp_path)
    assert all((living.path / name).exists() for name in RESERVES)


def _hold(root: str, ready: Connection) -> None:
    """Own a queue with one row until the pipe is closed or the process is killed."""
    owned = folder.give_birth(Path(root), birth())
    store = Store.open(owned.path)
    store.commit([plain(1)])
    ready.send(owned.queue_id)
    ready.poll(60)


def _adopt(path: str, start: Connection) -> None:
    """Try to adopt until the owner is gone; reports whether it was this process that got it."""
    start.recv()
    while True:
        try:
            owned = folder.adopt(Path(path))
        except OwnerAlive:
            if start.poll():
                start.send("nothing")
                return
            continue
        store = Store.open(owned.path)
        start.send(f"row {store.last_seq}")
        store.close(cleanly=True)
        start.recv()
        return


@pytest.mark.parametrize("_round", range(2))
def test_of_two_adopters_one_gets_the_queue_when_its_owner_is_killed(
    tmp_path: Path, _round: int
) -> None:
    ours, theirs = multiprocessing.Pipe()
    owner = start(_hold, str(tmp_path), theirs)
    queue_id = ours.recv()
    pipes, adopters = [], []
    for _ in range(2):
        near, far = multiprocessing.Pipe()
        adopters.append(start(_adopt, str(tmp_path / queue_id), far))
        pipes.append(near)
    for pipe in pipes:
        pipe.send("go")
    with pytest.raises(OwnerAlive):
        folder.adopt(tmp_path / queue_id)
    owner.kill()
    winner = next(p for _ in range(600) for p in pipes if p.poll(0.05))
    assert winner.recv() == "row 1"
    (loser,) = (pipe for pipe in pipes if pipe is not winner)
    assert not loser.poll(0.2)
    loser.send("stop")
    assert loser.recv() == "nothing"
    winner.send("stop")
    for process in (owner, *adopters):
        process.join(30)
        process.close()


def test_many_births_sweeps_and_removals_at_once_lose_no_queue(tmp_path: Path) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def sweep() -> None:
        try:
            while not stop.is_set():
                folder.clear_rubbish(tmp_path)
                folder.queue_folders(tmp_path)
        except BaseException as error:
            errors.append(error)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    owned = []
    for number in range(20):
        owned.append(folder.give_birth(tmp_path, birth()))
        assert (owned[-1].path / schema.DATABASE_NAME).exists()
        if number % 3 == 0:
            owned.pop(0).remove()
    stop.set()
    for sweeper in sweepers:
        sweeper.join()
    assert errors == []
    folder.clear_rubbish(tmp_path)
    assert names(tmp_path) == sorted(kept.queue_id for kept in owned)
    shutil.rmtree(tmp_path)
