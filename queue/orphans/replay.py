"""Replay: an operator finishes the queues of dead processes offline.

A folder goes the way that it goes when a server adopts it, see orphan.py. So the objects are those
that the server would have uploaded, byte for byte, and a replay that is killed or stopped is
resumed by the next one, or by a server.

A folder that cannot be written is copied, and the copy is finished instead: the same objects
reach the store, and the folder stays as it is.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME, copy_file, make_folder
from open_llm_proxy.queue.errors import OwnerAlive
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.orphans.orphan import End, Orphan
from open_llm_proxy.queue.orphans.replay_target import OutputClosed, ReplayTarget

log = logging.getLogger(__name__)

# Queues in a row of which a discouraged store took nothing, before the others are not tried.
FRUITLESS = 3


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the queue in `path`: `left` says why it is not finished, None if it is.

    `damaged_rows` of its rows were damaged or lost, and rows that say so were uploaded in their
    place. `from_copy`: the folder could not be written, and stays as it was.
    """

    path: Path
    rows: int = 0
    objects: int = 0
    damaged_rows: int = 0
    left: str | None = None
    from_copy: bool = False


class Replay:
    """Finishes queues one after the other through `target`; for one `run` on one event loop.

    `done` grows with each queue that was looked after.
    `keep` leaves the folder of a finished queue, with the records of what was uploaded.
    `allow_copies`: finish also what was put aside before a queue was repaired.
    """

    def __init__(
        self, target: ReplayTarget, *, keep: bool = False, allow_copies: bool = False
    ) -> None:
        self.done: list[Replayed] = []
        self._target = target
        self._keep = keep
        self._allow_copies = allow_copies
        self._stopped = False
        self._damaged_rows = 0  # of the queue in hand
        # They keep the connection to a file that failed, which may not be collected, see writer.py.
        self._failed: list[Orphan] = []

    def stop(self) -> None:
        """End after the objects in progress; what is left is for another run."""
        self._stopped = True
        self._target.stop()

    async def run(self, paths: Sequence[Path]) -> list[Replayed]:
        """Finish the queues in the folders `paths`; raises nothing that a queue is to blame for."""
        try:
            return await self._run(paths)
        finally:
            self._target.close()

    async def _run(self, paths: Sequence[Path]) -> list[Replayed]:
        fruitless = 0
        for path in paths:
            if self._stopped:
                self.done.append(Replayed(path, left="not tried: stopped before"))
                continue
            if fruitless >= FRUITLESS:
                reason = f"not tried: the store took nothing of the {FRUITLESS} queues before"
                self.done.append(Replayed(path, left=reason))
                continue
            self.done.append(await self._replayed(path))
            fruitless = fruitless + 1 if self._target.is_discouraged else 0
        return self.done

    async def _replayed(self, path: Path) -> Replayed:
        counts = self._target.counts
        rows, objects = counts.uploaded_rows, counts.batches_uploaded
        self._damaged_rows = 0
        left, from_copy = await self._finish(path)
        return Replayed(
            path,
            rows=counts.uploaded_rows - rows,
            objects=counts.batches_uploaded - objects,
            damaged_rows=self._damaged_rows,
            left=left,
            from_copy=from_copy,
        )

    async def _finish(self, path: Path) -> tuple[str | None, bool]:
        """Finish one queue; returns why it is left, if it is, and whether a copy was used."""
        if _is_kept_copy(path) and not self._allow_copies:
            return (
                "it is a copy from before the queue was repaired and finished: "
                f"`open-llm-proxy queue salvage {path} --to DIR` reads it, --again uploads it",
                False,
            )
        try:
            if not _is_writable(path):
                return await self._finish_copy(path), True
            owned = folder.adopt(path)
        except OwnerAlive as error:
            return _refusal(path, error), False
        except OSError as error:
            return f"{path} cannot be taken over: {error.strerror or error}", False
        reach("adopted")
        return await self._finish_owned(owned, remove=not self._keep), False

    async def _finish_copy(self, path: Path) -> str | None:
        try:
            with inspection.at_rest(path), tempfile.TemporaryDirectory() as name:
                copy = Path(name) / path.name
                await asyncio.to_thread(_copy, path, copy)
                log.warning(
                    "%s cannot be written: a copy in %s is uploaded, and the queue stays as it is",
                    path,
                    name,
                )
                return await self._finish_owned(folder.adopt(copy), remove=False)
        except OwnerAlive as error:
            return str(error)
        except OSError as error:
            return (
                f"{path} cannot be written, and a copy of it cannot be made "
                f"({error.strerror or error}): TMPDIR names the folder for it"
            )

    async def _finish_owned(self, owned: OwnedFolder, *, remove: bool) -> str | None:
        orphan = Orphan(owned)
        try:
            ending = await orphan.finish(self._deliver, remove=remove and self._target.confirms)
        except OutputClosed as error:
            self.stop()
            return str(error)
        finally:
            self._damaged_rows = orphan.state.damaged_rows
        if ending.end is End.FINISHED:
            return None
        if ending.end is End.DISK_FAILED:
            self._failed.append(orphan)
        if ending.end is End.UNREADABLE:
            command = f"open-llm-proxy queue salvage {owned.path} --to DIR"
            return f"{ending.reason}; `{command}` gets out what can be read"
        return ending.reason

    async def _deliver(self, orphan: Orphan) -> str | None:
        log.info(
            "Queue %s: %s, %s",
            orphan.queue_id,
            counted(orphan.state.queued_rows, "row"),
            counted(orphan.state.open_calls, "open call"),
        )
        left = await self._target.deliver(orphan)
        if self._keep:
            await orphan.shrink()
        return left


def _is_writable(path: Path) -> bool:
    """Whether the queue in `path` may be changed; a file that is missing does not matter."""
    names = (".", schema.DATABASE_NAME, schema.WAL_NAME, folder.LOCK_NAME)
    there = [path / name for name in names if (path / name).exists()]
    return all(os.access(item, os.W_OK) for item in there)


def _is_kept_copy(path: Path) -> bool:
    """Whether `path` was made by `OwnedFolder.keep_copy`."""
    return path.parent.name == QUARANTINE_NAME and path.name.endswith("-copy")


def _refusal(path: Path, error: OwnerAlive) -> str | None:
    """Why the queue is not ours to finish; None if its owner has just finished it itself."""
    return str(error) if path.exists() else None


def _copy(path: Path, copy: Path) -> None:
    make_folder(copy)
    for name in (schema.DATABASE_NAME, schema.WAL_NAME):
        if (path / name).exists():
            copy_file(path / name, copy / name)
