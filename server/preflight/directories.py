"""Where the server writes: the queue's directory and, instead of a bucket, that of the log.

They may not overlap, and config.json may be in neither: a queue that is finished is removed, and
whatever is in the queue's directory counts for its limit.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from open_llm_proxy.queue.batches import QUEUE_ID
from open_llm_proxy.queue.durable_files import QUARANTINE_NAME
from open_llm_proxy.queue.folder import RUBBISH
from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.settings import Settings

EXPECTED = (QUARANTINE_NAME, "lost+found")
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.ceph", "9p", "glusterfs")
MOUNTS = Path("/proc/mounts")


def check_directories(settings: Settings) -> list[Finding]:
    """Findings for the directories of these settings; creates none of them."""
    return [*_overlaps(settings), *_queue(settings), *_log(settings)]


def _overlaps(settings: Settings) -> Iterator[Finding]:
    named = [("LOG_QUEUE_DIR", settings.log_queue_dir.resolve())]
    if settings.log_dir is not None:
        named.append(("LOG_DIR", settings.log_dir.resolve()))
    if len(named) == 2:
        (_, queue), (_, log) = named
        if queue.is_relative_to(log) or log.is_relative_to(queue):
            text = f"LOG_QUEUE_DIR {queue} and LOG_DIR {log} overlap; use separate directories"
            yield Finding("queue", Level.MISTAKE, text)
    config = settings.config.resolve()
    for variable, directory in named:
        if config.is_relative_to(directory):
            text = f"CONFIG {config} is inside {variable} {directory}; move one of them"
            yield Finding("config", Level.MISTAKE, text)


def _queue(settings: Settings) -> Iterator[Finding]:
    directory = settings.log_queue_dir
    if problem := write_problem(directory):
        text = f"LOG_QUEUE_DIR {directory} {problem}; use a directory on a writable local disk"
        yield Finding("queue", Level.UNUSABLE, text)
        return
    there = _existing(directory)
    yield Finding("queue", Level.OK, f"{directory} is writable")
    if (kind := file_system(there)) in NETWORK_FILE_SYSTEMS:
        text = f"LOG_QUEUE_DIR {directory} is on a network file system ({kind}); use a local disk"
        yield Finding("queue", Level.WARNING, text)
    if (free := shutil.disk_usage(there).free) < settings.log_queue_max_bytes:
        text = (
            f"LOG_QUEUE_DIR {directory} has {free:,} bytes free, less than LOG_QUEUE_MAX_BYTES "
            f"({settings.log_queue_max_bytes:,}); lower the limit or use a larger disk"
        )
        yield Finding("queue", Level.WARNING, text)
    if directory.is_dir() and (others := _others(directory)):
        text = (
            f"LOG_QUEUE_DIR {directory} contains files that do not belong to a queue "
            f"({', '.join(others)}); use a directory of its own"
        )
        yield Finding("queue", Level.WARNING, text)


def _log(settings: Settings) -> Iterator[Finding]:
    if settings.log_dir is None:
        return
    if problem := write_problem(settings.log_dir):
        text = f"LOG_DIR {settings.log_dir} {problem}; entries will stay in the queue"
        yield Finding("log", Level.PROBLEM, text)
    else:
        yield Finding("log", Level.OK, f"{settings.log_dir} is writable")


def write_problem(directory: Path) -> str | None:
    """Why nothing can be written to `directory`; one that does not exist yet may be created."""
    there = _existing(directory)
    is_there = there == directory.absolute()
    if not there.is_dir():
        return "is not a directory" if is_there else f"cannot be created in {there}, a file"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        why = error.strerror
        return f"is not writable ({why})" if is_there else f"cannot be created in {there} ({why})"


def file_system(path: Path) -> str:
    """The type of the file system of `path`, "" where it cannot be told."""
    try:
        mounts = [line.split(" ")[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    path = path.resolve()
    found = [(len(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(found)[1] if found else ""


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(there for there in (path, *path.parents) if there.exists())


def _others(directory: Path) -> list[str]:
    """Names, a few of them, in the queue's directory that are no queue's."""
    names = sorted(entry.name for entry in os.scandir(directory))
    return [
        name
        for name in names
        if not (QUEUE_ID.fullmatch(name) or RUBBISH.fullmatch(name) or name in EXPECTED)
        and not name.startswith(".")
    ][:3]
