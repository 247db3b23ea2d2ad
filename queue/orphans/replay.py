"""Finishing the queues of dead processes offline, on an operator's word.

A folder goes the way that it goes when a server adopts it: lock, open, close the open calls,
seal, put, acknowledge, remove. So the objects are those that the server would have uploaded, byte
for byte, and a replay that is killed or stopped is gone on with by the next one, or by a server.

A folder that cannot be written is copied, and the copy is finished instead: the same objects
reach the store, and the folder stays as it is.
"""

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from open_llm_proxy.queue import folder, schema
from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, QueueBroken, QueueError
from open_llm_proxy.queue.fault_points import reach
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.orphans.orphan import DeadQueue, mended_if_damaged
from open_llm_proxy.queue.orphans.replay_target import Delivery, OutputClosed
from open_llm_proxy.queue.writer import Writer

log = logging.getLogger(__name__)

# Queues in a row of which a discouraged store took nothing, before the others are not tried.
FRUITLESS = 3


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the queue in `path`: `left` says why it is not finished, None if it is.

    `from_copy`: the folder could not be written, and stays as it was.
    """

    path: Path
    rows: int = 0
    objects: int = 0
    left: str | None = None
    from_copy: bool = False


class Replay:
    """Finishes queues one after the other through `delivery`; for one `run` on one event loop.

    `done` grows with each queue that was looked after.
    `keep` leaves the folder of a finished queue, with the records of what was uploaded.
    `allow_copies`: finish also what was put aside before a queue was mended.
    """

    def __init__(
        self, delivery: Delivery, *, keep: bool = False, allow_copies: bool = False
    ) -> None:
        self.done: list[Replayed] = []
        self._delivery = delivery
        self._keep = keep
        self._allow_copies = allow_copies
        self._stopped = False
        # Were a failed file's connection collected, SQLite would checkpoint it, see writer.py.
        self._given_up: list[Writer] = []

    def stop(self) -> None:
        """End after the objects under way; what is left is for another run."""
        self._stopped = True
        self._delivery.stop()

    async def run(self, paths: Sequence[Path]) -> list[Replayed]:
        """Finish the queues in the folders `paths`; raises nothing that a queue is to blame for."""
        try:
            return await self._run(paths)
        finally:
            self._delivery.close()

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
            fruitless = fruitless + 1 if self._delivery.is_discouraged else 0
        return self.done

    async def _replayed(self, path: Path) -> Replayed:
        counts = self._delivery.counts
        rows, objects = counts.uploaded_rows, counts.batches_uploaded
        left, from_copy = await self._finish(path)
        return Replayed(
            path,
            rows=counts.uploaded_rows - rows,
            objects=counts.batches_uploaded - objects,
            left=left,
            from_copy=from_copy,
        )

    async def _finish(self, path: Path) -> tuple[str | None, bool]:
        """Finish one queue; returns why it is left, if it is, and whether a copy was used."""
        if _is_kept_copy(path) and not self._allow_copies:
            return (
                "it is a copy from before the queue was mended and finished: "
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
                    "%s cannot be written: a copy in %s is worked on, and nothing is acknowledged",
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
        try:
            left = await mended_if_damaged(owned, partial(self._own, owned))
        except QueueBroken as broken:
            if not broken.is_damage:
                return str(broken)  # the lock is kept: the file is still open, see writer.py
            left = _unreadable(owned.path, broken)
        except NotAQueue as error:
            left = _unreadable(owned.path, error)
        except OutputClosed as error:
            self.stop()
            left = str(error)
        except QueueError as error:
            left = str(error)
        except OSError as error:
            left = f"{error.filename or owned.path}: {error.strerror or error}"
        if left is not None or not remove or not self._delivery.confirms:
            owned.release()
            return left
        try:
            await asyncio.to_thread(owned.remove)
        except OSError as error:
            return f"all is uploaded, but {error.filename} cannot be renamed: --keep leaves it"
        reach("removed")
        return None

    async def _own(self, owned: OwnedFolder, mend_first: bool) -> str | None:
        """Open the queue, deliver its rows and close it."""
        queue = await DeadQueue.open(owned, mend_first)
        log.info(
            "queue %s: %d rows, %d open calls",
            queue.queue_id,
            queue.state.queued_rows,
            queue.state.open_calls,
        )
        try:
            left = await self._delivery.deliver(queue)
            if self._keep:
                await queue.shrink()
            return left
        except BaseException:
            self._given_up.append(queue.writer)
            raise
        finally:
            await queue.writer.close()


def _is_writable(path: Path) -> bool:
    """Whether the queue in `path` may be changed; what is not there is no hindrance."""
    names = (".", schema.DATABASE_NAME, schema.WAL_NAME, folder.LOCK_NAME)
    there = [path / name for name in names if (path / name).exists()]
    return all(os.access(item, os.W_OK) for item in there)


def _is_kept_copy(path: Path) -> bool:
    """Whether `path` was made by `OwnedFolder.keep_copy`."""
    return path.parent.name == QUARANTINE_NAME and path.name.endswith("-copy")


def _refusal(path: Path, error: OwnerAlive) -> str | None:
    """Why the queue is not ours to finish; None if its owner has just finished it itself."""
    return str(error) if path.exists() else None


def _unreadable(path: Path, error: Exception) -> str:
    return f"{error}; `open-llm-proxy queue salvage {path} --to DIR` gets out what can be read"


def _copy(path: Path, copy: Path) -> None:
    copy.mkdir()
    for name in (schema.DATABASE_NAME, schema.WAL_NAME):
        if (path / name).exists():
            shutil.copyfile(path / name, copy / name)
