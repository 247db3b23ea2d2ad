"""Compacted tables of the view's own, so that the next start does not read every object again.

They lie below the cache, in a folder for each source, and are made in the background of days
before today. They are a copy and nothing else: a day counts only as long as every object that it
was made of is still in the source, and is removed otherwise.
"""

import hashlib
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from open_llm_proxy.archive.compaction.day import compact_day, recorded_of
from open_llm_proxy.archive.compaction.destination import FolderDestination
from open_llm_proxy.archive.sources.bucket import BucketSource
from open_llm_proxy.archive.sources.folder import FolderSource
from open_llm_proxy.archive.sources.source import LogSource, LogSourceError
from open_llm_proxy.archive.tables.compacted import TABLES, input_name

OpenSource = Callable[[ExitStack], LogSource]


class OwnTables:
    """The tables of one source below `cache_folder`. Raises `LogSourceError`."""

    def __init__(self, open_source: OpenSource, cache_folder: Path) -> None:
        self._open_source = open_source
        with ExitStack() as stack:
            place = place_of(open_source(stack))
        name = hashlib.sha256(place.encode()).hexdigest()
        self._folder = cache_folder.expanduser() / "tables" / name
        self.told = ""
        """What is being done, in a sentence for the pages; empty where nothing is."""

    def opened(self, source: LogSource) -> LogSource | None:
        """The tables that are true of the source now; None where there are none yet."""
        if not self._folder.is_dir():
            return None
        tables = FolderSource(self._folder)
        for day in tables.days():
            held = recorded_of(tables, "entries", day) or frozenset()
            if not held <= {input_name(item) for item in source.objects(day)}:
                for table in TABLES:
                    shutil.rmtree(self._folder / table / f"day={day}", ignore_errors=True)
        return tables

    def bring_up_to_date(self, stopped: threading.Event) -> None:
        """Compact the days before today, one after the other, until `stopped`."""
        try:
            with ExitStack() as stack:
                days = self._open_source(stack).days()
            today = datetime.now(UTC).date().isoformat()
            past = [day for day in days if day and day < today]
            for number, day in enumerate(past, 1):
                if stopped.is_set():
                    return
                self.told = f"Preparing a quicker start: day {number} of {len(past)}."
                with ExitStack() as stack:
                    source = self._open_source(stack)
                    compact_day(source, FolderDestination(self._folder), day)
            self.told = ""
        except LogSourceError as error:
            self.told = f"The next start will read every object again: {error}."


def place_of(source: LogSource) -> str:
    """What tells a source from every other one, on this machine and at its store."""
    if isinstance(source, BucketSource):
        return source.place
    return str(Path(source.name).resolve())
