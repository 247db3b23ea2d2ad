"""Long texts as rows of their own: once per queue and window, ahead of their first use.

An application sends the same long system prompt and the same tools with every call. In `full`
capture the call's row names such a text by its hash, and one row in each window holds it; readers
join the two by the hash, over a day. The row goes into the transaction of the request row that
needs it first, with the same time, so that both lie in the same window and are stored together or
not at all.

What was handed over counts as stored for the calls that follow at once, and not any more when
its transaction is refused: the next call then hands it over again, and if some call has relied
on it meanwhile, it is handed over once more without waiting for another call.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from open_llm_proxy.queue.batches import window_start
from open_llm_proxy.queue.entry import Entry
from open_llm_proxy.queue.errors import QueueError
from open_llm_proxy.server.entries.line import writable
from open_llm_proxy.server.recent_texts import RecentTexts

log = logging.getLogger(__name__)

DEFAULT_WINDOW_SECONDS = 300
KNOWN_BYTES = 8 * 1024 * 1024
Stored = asyncio.Future[tuple[bytes, ...]]


class TextHashes:
    """The SHA-256 of texts as they are stored; of those that come often computed once."""

    def __init__(self) -> None:
        self._known = RecentTexts(KNOWN_BYTES)

    def of(self, text: str) -> str:
        digest = self._known.get(text)
        if digest is None:
            digest = hashlib.sha256(writable(text).encode()).hexdigest()
            self._known.put(text, digest)
        return digest


class AppendLog(Protocol):
    """The part of an `EntryLog` that stores rows which open no call."""

    def append(self, entries: Sequence[Entry]) -> Stored: ...


class StoredTexts:
    """What the current window holds; used from one event loop."""

    def __init__(self, window_seconds: int = DEFAULT_WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._window: int | None = None
        # Hash → whether a call has relied on the row since it was handed over.
        self._held: dict[str, bool] = {}

    def missing(self, hashes: Iterable[str], timestamp_ms: int) -> list[str]:
        """The texts that a row of this time needs and its window does not hold yet."""
        window = window_start(timestamp_ms, self._window_seconds)
        if window != self._window:
            self._window, self._held = window, {}
        missing = []
        for digest in hashes:
            if digest in self._held:
                self._held[digest] = True
            else:
                missing.append(digest)
        return missing

    def handed_over(self, rows: Mapping[str, Entry], stored: Stored, entry_log: AppendLog) -> None:
        """The rows of `missing` texts, by hash, were handed over; `stored` tells their fate."""
        if rows:
            _follow(self._held, rows, stored, entry_log)


def _follow(
    held: dict[str, bool], rows: Mapping[str, Entry], stored: Stored, entry_log: AppendLog
) -> None:
    held.update(dict.fromkeys(rows, False))

    def settled(future: Stored) -> None:
        if not future.cancelled() and future.exception() is None:
            return
        relied_upon = {digest: row for digest, row in rows.items() if held.pop(digest, False)}
        if relied_upon:
            _hand_over_again(held, relied_upon, entry_log)

    stored.add_done_callback(settled)


def _hand_over_again(
    held: dict[str, bool], rows: Mapping[str, Entry], entry_log: AppendLog
) -> None:
    try:
        stored = entry_log.append(list(rows.values()))
    except QueueError as refusal:
        log.info("%d texts are left to the next calls: %s", len(rows), refusal)
    else:
        _follow(held, rows, stored, entry_log)
