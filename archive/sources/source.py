"""What a source of log entries is, whatever it lies in.

A source has objects by day, ``YYYY-MM-DD/HH-MM-SS-….jsonl``, as the queue uploads them, and may
have compacted tables beside them, ``entries/day=YYYY-MM-DD/….parquet``. `local` brings what is
asked for onto this machine, where DuckDB reads it. A source is only read.

What cannot be read is never left out in silence: it is counted in `Problems`, which every command
prints, and makes its exit code 1.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

DAY = re.compile(r"\d{4}-\d\d-\d\d")
SUFFIXES = (".jsonl", ".jsonl.gz")
NO_DAY = ""
"""The day of objects that do not lie in a day's folder, such as a copy of one day."""

_OBJECT_NAME = re.compile(
    r"(?P<window>\d\d-\d\d-\d\d)-(?P<queue_id>[0-9a-f]{16})"
    r"-(?P<first>\d+)-(?P<last>\d+)-(?P<md5>[0-9a-f]{12})\.jsonl"
)

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are done."""


class LogSourceError(Exception):
    """The log cannot be read; one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says: where its log is, if anywhere, and how S3 is reached.

    `s3_client` makes a boto3 client; it is called only for a bucket. Downloaded objects are kept
    in `cache_folder`.
    """

    default_source: str | None
    s3_client: Callable[[], Any]
    cache_folder: Path = Path("~/.cache/open-llm-proxy")
    cache_max_bytes: int = 20_000_000_000


@dataclass(frozen=True, slots=True, order=True)
class LogObject:
    """One object: `name` sorts by window, `key` says where it is."""

    day: str
    name: str
    key: str
    size_bytes: int = 0
    etag: str = ""

    @property
    def window(self) -> str:
        """The start of its window, ``HH-MM-SS``, as the beginning of its name tells it."""
        return self.name[:8]

    @property
    def named(self) -> "ObjectName | None":
        """What its name promises; None for a file that the queue did not name."""
        found = _OBJECT_NAME.fullmatch(self.name)
        if found is None:
            return None
        first, last = int(found["first"]), int(found["last"])
        return ObjectName(found["window"], found["queue_id"], first, last, found["md5"])


@dataclass(frozen=True, slots=True)
class ObjectName:
    """The parts of an object's name: the rows of one queue from `first` to `last`."""

    window: str
    queue_id: str
    first: int
    last: int
    md5: str


@dataclass(slots=True)
class Problems:
    """What could not be read: how many of each kind, and one example."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    is_short: bool = False

    def add(self, what: str, example: str = "", count: int = 1, *, is_short: bool = True) -> None:
        """Count something, such as "objects vanished"; `is_short`: entries may be missing."""
        self.counts[what] += count
        self.examples.setdefault(what, example)
        self.is_short = self.is_short or is_short

    def sentences(self) -> list[str]:
        """A sentence for each kind."""
        return [
            f"{what}: {count:,}"
            + (f" (such as {self.examples[what]})" if self.examples[what] else "")
            for what, count in self.counts.items()
        ]


class LogSource(Protocol):
    """A log that is kept as objects. All raise `LogSourceError` where nothing can be read."""

    @property
    def name(self) -> str: ...

    @property
    def problems(self) -> Problems: ...

    @property
    def follows(self) -> bool:
        """Whether further objects may appear while it is read."""
        ...

    def days(self) -> list[str]:
        """The days that have objects or tables, oldest first; `NO_DAY` comes before them."""
        ...

    def objects(self, day: str) -> list[LogObject]:
        """The objects of a day, in the order of their windows."""
        ...

    def parquet(self, table: str, day: str) -> list[LogObject]:
        """The compacted files of a day's table."""
        ...

    def local(
        self, items: Sequence[LogObject], progress: Progress | None = None
    ) -> list[tuple[LogObject, Path]]:
        """The objects as files of this machine; those that have vanished are counted."""
        ...


def is_log_object(name: str) -> bool:
    """Whether a file's name is that of a log object."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def table_day(name: str) -> str | None:
    """The day of a Hive partition's folder, ``day=2026-04-07``."""
    day = name.removeprefix("day=")
    return day if day != name and DAY.fullmatch(day) else None


def total_bytes(items: Iterable[LogObject]) -> int:
    """The size of all of them."""
    return sum(item.size_bytes for item in items)
