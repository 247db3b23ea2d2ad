"""The server with one promise broken on purpose, to see that the tests notice.

    python tests/broken_variants.py NAME serve

Each variant changes one thing that the product is careful about. A test of the promise that
passes against the variant proves nothing, so each such test runs against its variant too.
"""

import asyncio
import fcntl
import json
import os
import sqlite3
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from botocore.auth import S3SigV4Auth
from tornado.ioloop import PeriodicCallback

from open_llm_proxy.queue import batches, checksums, schema, stall_clock, store
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.drain import Drain
from open_llm_proxy.queue.entry import Append, CallMark, Entry
from open_llm_proxy.queue.folder import OwnedFolder
from open_llm_proxy.queue.log_queue import LoggedCall, LogQueue
from open_llm_proxy.queue.periodic import Periodic
from open_llm_proxy.queue.sinks import S3Sink, SinkFailure, SinkRefused
from open_llm_proxy.queue.store import Store
from open_llm_proxy.server import serve
from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.entries import call_entries
from open_llm_proxy.server.entries.stdout import StdoutLines
from open_llm_proxy.server.services import Lifecycle

# Wide enough for a kill to fall into it.
GAP_SECONDS = 2.0
# Later than any test waits.
NEVER_SECONDS = 3600.0


# The way in.


def entry_after_call() -> None:
    """The provider is called and the answer completed before the entries are stored.

    Only for every second call, so that the queue has something to drain.
    """
    loop_of = asyncio.get_running_loop
    opened = LogQueue.open
    count = 0

    def broken(self: LogQueue, entries: Sequence[Entry], interrupted_head: bytes) -> LoggedCall:
        nonlocal count
        count += 1
        if count % 2:
            return opened(self, entries, interrupted_head)
        record = CallMark()
        append = Append(tuple(entries), opens=record, interrupted_head=interrupted_head)
        call = LoggedCall(self._writer, record, _resolved(()))
        close = call.close
        loop_of().call_later(NEVER_SECONDS, self._writer.append, append)

        def close_later(entry: Entry, slim: Entry | None = None) -> Any:
            loop_of().call_later(NEVER_SECONDS, close, entry)
            return _resolved(())

        return _Late(call.stored, close_later)  # type: ignore[return-value]

    LogQueue.open = broken  # type: ignore[method-assign]


class _Late:
    def __init__(self, stored: "asyncio.Future[Any]", close: Callable[..., Any]) -> None:
        self.stored = stored
        self.close = close


def forgotten_on_cancel() -> None:
    """A call whose client has left, or that was cancelled otherwise, is never closed."""
    close = LoggedCall.close

    def broken(self: LoggedCall, entry: Entry, *slim: Entry | None) -> Any:
        if b'"outcome":"client_disconnected"' in entry.body:
            return _resolved(())
        return close(self, entry, *slim)

    LoggedCall.close = broken  # type: ignore[method-assign, assignment]


def failed_commit_acknowledged() -> None:
    """A commit that SQLite reports as failed is acknowledged all the same."""
    commit = Store.commit

    def broken(self: Store, group: Sequence[Append]) -> list[tuple[bytes, ...]]:
        try:
            return commit(self, group)
        except sqlite3.Error:
            return [()] * len(group)

    Store.commit = broken  # type: ignore[method-assign]


def synchronous_normal() -> None:
    """SQLite syncs at checkpoints only, and not at every commit."""
    _rewrite_pragma("synchronous=FULL", "synchronous=NORMAL")


def blocking_stdout() -> None:
    """Lines go to stdout from the event loop, which waits until they are read."""

    def broken(self: StdoutLines, lines: list[bytes]) -> None:
        rest = memoryview(b"".join(lines))
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    StdoutLines.write = broken  # type: ignore[method-assign]


def texts_as_they_come() -> None:
    """Lone surrogates go into the log as JSON's escapes for them."""

    def broken(part: Any) -> bytes:
        values = msgspec.structs.asdict(part).items()
        fields = {name: value for name, value in values if value is not None}
        return json.dumps(fields, separators=(",", ":")).encode()[1:-1]

    call_entries.encoded = call_entries.encoded_within_line = broken


def open_connections_refused() -> None:
    """Once a server that leaves is off the balancer, calls on open connections get 503."""

    async def broken(_: Any, lifecycle: Lifecycle, timeout_seconds: float) -> None:
        lifecycle.refusing = True
        await lifecycle.wait_idle(timeout_seconds)

    serve._finish = broken


# The way out.


def delete_before_put() -> None:
    """The drain deletes the rows first and writes the object then."""

    async def broken(self: Drain, batch: Batch, body: bytes) -> None:
        await self._writer.run(lambda store: store.ack(batch))
        await asyncio.sleep(GAP_SECONDS)
        await asyncio.to_thread(self._sink.put, batch, body)

    Drain._upload = broken  # type: ignore[method-assign]


def dropped_on_refusal() -> None:
    """Rows whose object the store refuses with a 4xx are given up."""
    failed = Drain._failed

    async def broken(self: Drain, batch: Batch, failure: SinkFailure) -> None:
        if isinstance(failure, SinkRefused):
            await self._writer.run(lambda store: store.ack(batch))
        else:
            await failed(self, batch, failure)

    Drain._failed = broken  # type: ignore[method-assign]


def key_without_md5() -> None:
    """Two contents of the same range of the same queue get the same key."""
    batches._digest = lambda md5: "0" * 12


def key_from_the_clock() -> None:
    """An object is named by the time at which it is sealed, not by its entries' own."""
    name = store.object_name

    def broken(start: int, *parts: Any) -> str:
        now = int(time.time())
        return name(now - now % 1, *parts)

    store.object_name = broken  # type: ignore[attr-defined]


def timed_by_the_clock() -> None:
    """Work in the background is timed by the wall clock."""

    def broken(self: Periodic) -> None:
        PeriodicCallback(self._work, self._seconds * 1000).start()

    Periodic.start = broken  # type: ignore[method-assign]


def bodies_not_checked() -> None:
    """A PUT carries nothing by which the store could tell that its body was changed."""
    make = S3Sink.__init__

    def broken(self: S3Sink, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        put = self._client.put_object
        self._client.put_object = lambda ContentMD5, **rest: put(**rest)

    S3Sink.__init__ = broken  # type: ignore[method-assign]
    S3SigV4Auth._should_sha256_sign_payload = lambda *_: False


def files_not_synced() -> None:
    """Objects in the directory, and all else that is no database, are never synced."""
    os.fsync = lambda descriptor: None


# Ownership and integrity.


def adoption_without_lock() -> None:
    """Folders are taken over without asking whether their owner lives, and SQLite shares them."""

    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    _rewrite_pragma("locking_mode=EXCLUSIVE", "locking_mode=NORMAL")


def checksums_ignored() -> None:
    """Every row matches its checksum, whatever it holds."""
    checksums.zlib = types.SimpleNamespace(crc32=lambda data, value=0: 0)  # type: ignore[attr-defined]


def unreadable_queue_emptied() -> None:
    """Of a queue that cannot be read only the empty folder is kept."""
    quarantine = OwnedFolder.quarantine

    def broken(self: OwnedFolder) -> Path:
        kept = quarantine(self)
        for path in kept.iterdir():
            os.truncate(path, 0)
        return kept

    OwnedFolder.quarantine = broken  # type: ignore[method-assign]


def _rewrite_pragma(old: str, new: str) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace(old, new), *parameters)

    connect = sqlite3.connect

    def broken(*arguments: Any, **options: Any) -> sqlite3.Connection:
        # A look that changes nothing is taken without locks, and cannot be without this pragma.
        looks_only = bool(options.get("uri"))
        return connect(*arguments, **options, **({} if looks_only else {"factory": Connection}))

    schema.sqlite3.connect = broken  # type: ignore[attr-defined]


def _resolved(value: Any) -> "asyncio.Future[Any]":
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


# The disk that hangs.


def stall_not_noticed() -> None:
    """However long the disk takes no commit, new calls wait for it."""
    stall_clock.STALL_SECONDS = NEVER_SECONDS


def stalled_openings_forwarded() -> None:
    """A call whose opening has waited long enough goes on without it."""
    stall_clock.StallClock._look = _forward_stalled  # type: ignore[method-assign]


def _forward_stalled(self: stall_clock.StallClock) -> None:
    for future, (_, closes) in self._waiting.items():
        if not closes and not future.done():
            future.set_result(())
    self._timer = self._loop.call_later(stall_clock.LOOK_SECONDS, self._look)


VARIANTS: dict[str, Callable[[], None]] = {
    variant.__name__: variant
    for variant in (
        entry_after_call, forgotten_on_cancel, failed_commit_acknowledged, synchronous_normal,
        blocking_stdout, delete_before_put, dropped_on_refusal, key_without_md5,
        key_from_the_clock, timed_by_the_clock, bodies_not_checked, files_not_synced,
        adoption_without_lock, checksums_ignored, unreadable_queue_emptied, texts_as_they_come,
        open_connections_refused,
        stall_not_noticed, stalled_openings_forwarded,
    )
}  # fmt: skip


def argv(variant: str) -> tuple[str, ...]:
    """The command that runs the server as `variant`."""
    return (sys.executable, __file__, variant, "serve")


if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    cli.main(sys.argv[2:])
