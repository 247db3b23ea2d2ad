"""What dead queues are filled with before a test damages, adopts or replays them."""

import hashlib

from open_llm_proxy.queue.batches import Batch, window_start
from open_llm_proxy.queue.store import Store
from queue_fixtures import MemorySink, closing, opening, plain

LONG = 9_000  # bytes, more than two pages


def ten_rows(store: Store) -> None:
    store.commit([plain(*range(1, 11))])


def sealed_by_hand(store: Store, first: int, last: int, sink: str) -> tuple[Batch, bytes]:
    """Seal rows as a drain does; returns the batch and its bytes."""
    rows = store.read(first, last, 1 << 30)
    start = window_start(rows[0].timestamp_ms, store.meta.window_seconds)
    body = store.meta.object_head(start) + b"".join(row.line for row in rows)
    return store.seal(first, last, hashlib.md5(body).digest(), len(body), sink), body


class Fill:
    """Ten rows in three batches: 1-3 uploaded, 4-6 sealed and put without an answer, 7-9 put
    and refused; row 10 is not sealed."""

    def __init__(self, sink: MemorySink) -> None:
        self.sink = sink

    def __call__(self, store: Store) -> None:
        ten_rows(store)
        first, body = sealed_by_hand(store, 1, 3, self.sink.identity)
        self.sink.put(first, body)
        store.ack(first)
        second, body = sealed_by_hand(store, 4, 6, self.sink.identity)
        self.sink.put(second, body)
        third, _ = sealed_by_hand(store, 7, 9, self.sink.identity)
        store.bind(third, None)


class MixedFill:
    """Long and short rows, open calls, batches in every state, over several commits."""

    def __init__(self, sink: MemorySink) -> None:
        self.sink = sink
        self.rows = 0

    def __call__(self, store: Store) -> None:
        for number in range(12):
            append, record = opening(number, size_bytes=LONG if number % 5 == 0 else 300)
            store.commit([append, plain(*range(100, 104), size_bytes=500)])
            if number % 3:
                store.commit([closing(number, record, size_bytes=700)])
        for first, last, uploaded in ((1, 12, True), (13, 20, False), (21, 30, False)):
            batch, body = sealed_by_hand(store, first, last, self.sink.identity)
            if uploaded or first == 13:
                self.sink.put(batch, body)
            if uploaded:
                store.ack(batch)
        self.rows = store.last_seq


def sealed_elsewhere(store: Store) -> None:
    """Rows 1 and 2 were tried on another store, row 3 was refused there, row 4 is not sealed."""
    store.commit([plain(1, 2, 3, 4)])
    sealed_by_hand(store, 1, 2, "elsewhere:")
    refused, _ = sealed_by_hand(store, 3, 3, "elsewhere:")
    store.bind(refused, None)
