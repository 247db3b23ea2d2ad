"""What an operator is told of a damaged queue by each command: one clear sentence, no traceback.

A command that changes nothing must leave every byte as it was. A replay must not destroy what it
could not upload: the file stays, or a copy of it is in the quarantine.
"""

import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage import wal
from open_llm_proxy.queue.damage.wal_frames import FRAME_BYTES, HEADER
from open_llm_proxy.queue.store import Store
from queue_fixtures import NOON_MS, alter, dead_queue, flip_bit, plain, quarantined, row_lines
from test_queue_commands import Command, _no_settings, command
from test_queue_inspection import snapshot
from test_queue_salvage import contents

__all__ = ["_no_settings", "command"]

ROWS = 60


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of damage and what is said of it.

    `told` matches what verify and the replay's dry run say; `rows` is how many a replay still
    gets out, None where it must leave the folder as it is; `salvaged` how many salvage finds,
    None where it says that there is nothing. `hidden`: a look that reads no rows misses it.
    `is_doubt`: it may be a loss and may be none, so that no exit code claims one.
    """

    name: str
    damage: Callable[[Path], None]
    told: str
    rows: int | None
    salvaged: int | None
    cleanly: bool = True
    hidden: bool = False
    is_doubt: bool = False


def garbage_header(queue: Path) -> None:
    with open(queue / schema.DATABASE_NAME, "r+b") as file:
        file.write(random.Random(1).randbytes(100))


def empty_file(queue: Path) -> None:
    os.truncate(queue / schema.DATABASE_NAME, 0)


def half_a_file(queue: Path) -> None:
    path = queue / schema.DATABASE_NAME
    os.truncate(path, path.stat().st_size // 2)


def cut_inside_a_page(queue: Path) -> None:
    path = queue / schema.DATABASE_NAME
    os.truncate(path, path.stat().st_size - 1000)


def no_queue(queue: Path) -> None:
    (queue / schema.DATABASE_NAME).write_text("notes of somebody else\n" * 1000)


def another_database(queue: Path) -> None:
    alter(queue, "PRAGMA application_id=0")


def no_file(queue: Path) -> None:
    (queue / schema.DATABASE_NAME).unlink()


def from_the_future(queue: Path) -> None:
    alter(queue, "PRAGMA user_version=7")


def no_log(queue: Path) -> None:
    (queue / schema.WAL_NAME).unlink()


def opened(queue: Path) -> None:
    alter(queue, "SELECT count(*) FROM rows")


def bad_frame(queue: Path) -> None:
    frames = wal.condition(queue / schema.WAL_NAME).frames
    flip_bit(
        queue / schema.WAL_NAME,
        HEADER.size + frames // 2 * FRAME_BYTES + 2000,
    )


def bad_row(queue: Path) -> None:
    alter(queue, "UPDATE rows SET crc32 = crc32 + 1 WHERE seq = 30")


def lost_row(queue: Path) -> None:
    alter(queue, "DELETE FROM rows WHERE seq = 30")


CASES = (
    Case("garbage header", garbage_header, "is not a SQLite database", None, ROWS),
    Case("empty file", empty_file, "is not a SQLite database", None, None),
    Case("truncated to half", half_a_file, "cannot be read as a queue|is damaged", None, 18),
    Case("cut inside a page", cut_inside_a_page, r"CRC-32 .*rows? 5\d", ROWS, 50, hidden=True),
    Case("no queue", no_queue, "is not a SQLite database", None, None),
    Case("another program's", another_database, "not a queue of open-llm-proxy", None, ROWS),
    Case("no file", no_file, "queue.db cannot be read: No such file or directory", None, None),
    Case("newer schema", from_the_future, "schema version 7 .* newer release", None, ROWS),
    Case("no log", no_log, "queue.db-wal is missing", 0, None, cleanly=False, is_doubt=True),
    Case("opened", opened, "then nothing is lost", ROWS, 50, cleanly=False, is_doubt=True),
    Case("bad frame", bad_frame, "1 damaged frame with whole ones behind", ROWS, 50, cleanly=False),
    Case("bad row", bad_row, "CRC-32 mismatch: row 30", ROWS, ROWS - 1, hidden=True),
    Case("lost row", lost_row, "missing: row 30", ROWS, ROWS - 1, hidden=True),
)  # fmt: skip


def row_by_row(store: Store) -> None:
    for number in range(1, ROWS + 1):
        store.commit([plain(number, at_ms=NOON_MS + number, size_bytes=900)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_command_says_what_is_wrong_and_destroys_nothing(
    command: Command, tmp_path: Path, case: Case
) -> None:
    root = tmp_path / "queues"
    queue = dead_queue(root, row_by_row, cleanly=case.cleanly)
    case.damage(queue)
    before = snapshot(root)
    verified = command("queue", "verify", root)
    code, is_fault = (0, False) if case.is_doubt else (1, True)
    assert (verified.code, "NOT SOUND" in verified.out) == (code, is_fault)
    assert re.search(case.told, verified.out), verified.out
    status = command("queue", "status", root)
    planned = command("replay", root, "--to", tmp_path / "objects", "--dry-run")
    if not case.hidden:
        assert (status.code, "FAULTS" in status.out) == (code, is_fault)
        assert re.search(case.told, planned.out), planned.out
    salvaged = command("queue", "salvage", queue, "--to", tmp_path / "salvaged")
    if case.salvaged is None:
        assert "contains no readable data of a queue" in salvaged.err
    else:
        (lines,) = (tmp_path / "salvaged").glob("*-salvaged.jsonl")
        assert len(lines.read_bytes().splitlines()) >= case.salvaged
    assert snapshot(root) == before
    check_replay(command, queue, tmp_path / "objects", case)
    for said in (verified, status, planned, salvaged):
        assert "Traceback" not in said.out + said.err


def check_replay(command: Command, queue: Path, objects: Path, case: Case) -> None:
    before = contents(queue)
    said = command("replay", queue, "--to", objects)
    assert "Traceback" not in said.err
    stored = row_lines(path.read_bytes() for path in objects.rglob("*.jsonl"))
    if case.rows is None:
        assert (said.code, f"{queue}: LEFT: " in said.out) == (1, True)
        assert re.search(case.told, said.out), said.out
        assert contents(queue) == before
        assert stored == []
        return
    assert (said.code, len(stored)) == (0, case.rows)
    assert not queue.exists()
    if case.is_doubt:
        assert re.search(case.told, said.err)
    else:
        assert quarantined(queue.parent), "nothing was kept of the file as it was found"
