"""The server with one promise broken on purpose, to see that the tests notice.

    python tests/broken_variants.py NAME serve

Each variant changes one thing that the product is careful about. A test of the promise that
passes against the variant proves nothing, so each such test runs against its variant too.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.drain import Drain
from open_llm_proxy.queue.entry import Append, CallRecord, Entry
from open_llm_proxy.queue.log_queue import Call, LogQueue
from open_llm_proxy.server import cli

# Wide enough for a kill to fall into it.
GAP_SECONDS = 2.0


def delete_before_put() -> None:
    """The drain deletes the rows first and writes the object then."""

    async def broken(self: Drain, batch: Batch, body: bytes) -> None:
        await self._writer.run(lambda store: store.ack(batch))
        await asyncio.sleep(GAP_SECONDS)
        await asyncio.to_thread(self._sink.put, batch, body)

    Drain._upload = broken  # type: ignore[method-assign]


def entry_after_call() -> None:
    """The provider is called before the request entry is stored."""
    loop_of = asyncio.get_running_loop

    def broken(self: LogQueue, entries: Sequence[Entry], interrupted: Entry) -> Call:
        record = CallRecord()
        append = Append(tuple(entries), opens=record, interrupted=interrupted)
        stored: asyncio.Future[Any] = loop_of().create_future()
        stored.set_result(())
        call = Call(self._writer, record, stored)
        close = call.close
        loop_of().call_later(GAP_SECONDS, self._writer.append, append)

        def close_later(entry: Entry) -> Any:
            loop_of().call_later(GAP_SECONDS, close, entry)
            return stored

        return _Late(call.stored, close_later)  # type: ignore[return-value]

    LogQueue.open = broken  # type: ignore[method-assign]


class _Late:
    def __init__(self, stored: "asyncio.Future[Any]", close: Callable[[Entry], Any]) -> None:
        self.stored = stored
        self.close = close


VARIANTS = {
    "delete_before_put": delete_before_put,
    "entry_after_call": entry_after_call,
}


def argv(variant: str) -> tuple[str, ...]:
    """The command that runs the server as `variant`."""
    return (sys.executable, __file__, variant, "serve")


if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    cli.main(sys.argv[2:])
