"""Files that are written once: durably, whole or not at all, and never over another content."""

import os
from collections.abc import Iterable
from pathlib import Path

from open_llm_proxy.queue.durable_files import fsync_folder, write_file
from open_llm_proxy.queue.errors import QueueError

_PIECE_BYTES = 1 << 20


class FileInTheWay(QueueError):
    """A file of this name with another content is there; it is not overwritten."""


def write_once(path: Path, pieces: Iterable[bytes]) -> None:
    """Write `path`; where it is there already, it must hold the same. Raises `FileInTheWay`."""
    # The temporary name ends differently, so that no `*.jsonl` pattern matches it.
    temporary = path.with_name(f".{path.name}.part")
    try:
        write_file(temporary, pieces)
        if path.exists() and not _are_equal(path, temporary):
            raise FileInTheWay(f"{path} exists with other content: pass another folder")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _are_equal(path: Path, other: Path) -> bool:
    with open(path, "rb") as one, open(other, "rb") as two:
        while piece := one.read(_PIECE_BYTES):
            if piece != two.read(_PIECE_BYTES):
                return False
        return not two.read(1)
