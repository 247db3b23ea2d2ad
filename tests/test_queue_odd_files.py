"""What is no regular file in a queue's folder is neither opened nor followed, and holds nobody up.

A FIFO would keep whoever opens it waiting for ever, a link leads out of the folder, and a journal
that no queue has can make SQLite delete a file that it names.
"""

import contextlib
import os
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.damage.plan import planned
from open_llm_proxy.queue.damage.salvage import salvage
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.disk_space import LAST_RESERVE_NAME, RESERVE_NAME, make_reserves
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from proxy_process import ProxyProcess, one_provider
from queue_fill import ten_rows
from queue_fixtures import MemorySink, adopted, dead_queue
from replay_process import run
from stores import DirectoryStore
from waiting import wait_until

pytestmark = pytest.mark.timeout(seconds=60)

NAMES = (schema.DATABASE_NAME, schema.WAL_NAME, schema.JOURNAL_NAME, folder.LOCK_NAME)


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes at most
        made.bind(path.name)
        os.chdir(here)


def device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_fifo(path: Path, outside: Path) -> None:
    target = outside / f"{path.parent.name}-{path.name}.fifo"
    os.mkfifo(target)
    path.symlink_to(target)


def link_to_file(path: Path, outside: Path) -> None:
    target = outside / f"{path.parent.name}-{path.name}"
    target.write_bytes(b"somebody else's")
    path.symlink_to(target)


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / f"{path.parent.name}-{path.name}.missing")


def directory(path: Path, outside: Path) -> None:
    path.mkdir()


KINDS = (fifo, unix_socket, device, link_to_fifo, link_to_file, link_to_nothing, directory)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nobody may change."""
    made = tmp_path / "outside"
    made.mkdir()
    return made


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    """A LOG_QUEUE_DIR with one sound queue, and others with each kind in each file's place."""
    root = tmp_path / "queues"
    for name in NAMES:
        for kind in KINDS:
            queue = dead_queue(root, ten_rows)
            (queue / name).unlink(missing_ok=True)
            kind(queue / name, outside)
    for number, kind in enumerate(KINDS):  # in place of the folder itself
        kind(root / f"{number:016x}", outside)
    dead_queue(root, ten_rows)
    return root


def content(path: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, links not followed."""
    return {
        str(entry.relative_to(path)): None if not entry.is_file() else entry.read_bytes()
        for entry in sorted(path.rglob("*"))
    }


@pytest.mark.parametrize(
    "command", ["queue status", "queue verify", "queue salvage", "replay", "replay --dry-run"]
)
async def test_commands_refuse_them_and_go_on(
    command: str, root: Path, outside: Path, tmp_path: Path
) -> None:
    before = content(outside)
    arguments = [*command.split(), str(root)]
    if command.startswith(("queue salvage", "replay")):
        arguments += ["--to", str(tmp_path / "target")]
    done = await run(*arguments)
    assert done.code == 1, done.stderr
    assert content(outside) == before
    if command == "replay":
        assert len(list((tmp_path / "target").rglob("*.jsonl"))) >= 1


async def test_a_server_starts_beside_them_tells_of_them_and_leaves(
    root: Path,
    outside: Path,
    start_proxy: Callable[..., ProxyProcess],
    directory_store: DirectoryStore,
) -> None:
    before = content(outside)
    proxy = start_proxy(one_provider("http://127.0.0.1:9"), directory_store.env())
    proxy.queue_folder, proxy.settings["LOG_QUEUE_DIR"] = root, str(root)
    await proxy.start()

    async def all_told() -> bool:
        log = (await proxy.health())["log"]
        # The journals of no size and the logs that are gone are no loss to anybody.
        return bool(log["left_queues"] + log["uploaded_rows"] // 10 >= len(NAMES) * len(KINDS))

    await wait_until(all_told, "each queue is uploaded or left", 40)
    assert await proxy.stop() == 0
    assert "Traceback" not in proxy.stderr_text()
    assert content(outside) == before


async def test_a_journal_that_names_another_file_is_not_played_back(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows, cleanly=True)
    named = tmp_path / "precious"
    named.write_text("precious")
    (queue / schema.JOURNAL_NAME).write_bytes(journal_of(named))
    sink = MemorySink()
    await adopted(tmp_path / "queues", sink)
    assert named.exists()
    (kept,) = (tmp_path / "queues" / QUARANTINE_NAME).iterdir()
    for command in ("queue status", "queue verify", "replay --dry-run"):
        await run(*command.split(), str(kept))
    assert named.exists()


def test_that_journal_does_make_sqlite_delete_the_file(tmp_path: Path) -> None:
    queue = dead_queue(tmp_path / "queues", ten_rows, cleanly=True)
    named = tmp_path / "precious"
    named.write_text("precious")
    (queue / schema.JOURNAL_NAME).write_bytes(journal_of(named))
    connection = sqlite3.connect(queue / schema.DATABASE_NAME)
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(connection):
        connection.execute("SELECT * FROM sqlite_master")
    assert not named.exists()


def journal_of(named: Path) -> bytes:
    """A rollback journal of no pages whose super-journal is `named`
    (https://sqlite.org/fileformat2.html, https://sqlite.org/atomiccommit.html)."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(named)
    head = (magic + struct.pack(">5I", 0, 0, 2, 512, schema.PAGE_BYTES)).ljust(512, b"\0")
    lock_page = struct.pack(">I", 0x40000000 // schema.PAGE_BYTES + 1)
    return head + lock_page + name + struct.pack(">2I", len(name), sum(name)) + magic


async def test_a_log_of_more_than_a_queue_writes_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "MAX_BYTES", 1 << 20)
    queue = dead_queue(tmp_path / "queues", ten_rows)
    os.truncate(queue / schema.WAL_NAME, (1 << 20) + 1)
    for faults in (inspect(queue).faults, verify(queue).faults, (planned(queue).refusal or "",)):
        assert "no queue's log grows to" in faults[0]
    sink = MemorySink()
    adopter = await adopted(tmp_path / "queues", sink)
    await adopter.adoption.refresh()
    (left,) = adopter.adoption.left()
    assert left.is_quarantined and left.rows is None and not sink.attempts
    (found,) = salvage(Path(left.path), tmp_path / "salvaged", "request_id")
    assert found.rows == 10, "what is in the log is still got out by hand"


@pytest.mark.parametrize("name", [RESERVE_NAME, LAST_RESERVE_NAME])
def test_a_reserve_is_not_made_behind_a_link(name: str, tmp_path: Path, outside: Path) -> None:
    (tmp_path / name).symlink_to(outside / "made")
    assert not make_reserves(tmp_path)
    assert content(outside) == {}


async def test_a_quarantine_that_is_a_link_is_not_written_to(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, ten_rows)
    (queue / schema.DATABASE_NAME).write_bytes(b"garbage" * 1000)
    (root / QUARANTINE_NAME).symlink_to(outside)
    adopter = await adopted(root, MemorySink())
    await adopter.adoption.refresh()
    (left,) = adopter.adoption.left()
    assert str(root / QUARANTINE_NAME) in left.reason
    assert queue.exists()
    assert content(outside) == {}


async def test_rubbish_that_is_a_link_is_left_alone(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "queues"
    root.mkdir()
    (root / f"{'0' * 16}.done").symlink_to(outside)
    folder.clear_rubbish(root)
    assert content(outside) == {}
