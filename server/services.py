"""What handlers work with, made once by the composition root and passed to each of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.cors import CorsPolicy
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.entries.capture import Capture
from open_llm_proxy.server.entries.log import EntryLog
from open_llm_proxy.server.long_work import LongWork
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.redaction.redactor import Redactor
from open_llm_proxy.server.request_body import BodyBudget
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.upstream.client import PooledHTTPClient
from open_llm_proxy.server.upstream.timeouts import Timeouts


class Interruptible(Protocol):
    """A call under way that can be ended visibly."""

    def interrupt(self) -> None: ...


@dataclass(slots=True)
class Lifecycle:
    """Whether the server is leaving, and the calls that it still has to finish."""

    draining: bool = False
    refusing: bool = False
    calls: set[Interruptible] = field(default_factory=set)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def is_leaving(self) -> bool:
        """Whether connections are to end with their next answer."""
        return self.draining or self.refusing

    @contextmanager
    def finishing(self, call: Interruptible) -> Iterator[None]:
        """The server does not leave before the call is over, or was interrupted."""
        self.calls.add(call)
        self._idle.clear()
        try:
            yield
        finally:
            self.calls.discard(call)
            if not self.calls:
                self._idle.set()

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no call is under way; False if that took longer than the time-out."""
        if not self.calls:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            return False
        return True

    def interrupt_all(self) -> None:
        """End the calls that are left; each one still gets its closing entry."""
        for call in list(self.calls):
            call.interrupt()


@dataclass(frozen=True, slots=True)
class Services:
    """`max_body_bytes`, `transcript_max_bytes` and `flush_interval_seconds` are settings."""

    keys: ProxyKeys
    router: Router
    log: EntryLog
    client: PooledHTTPClient
    cors: CorsPolicy
    provenance: Provenance
    redactor: Redactor
    timeouts: Timeouts
    metrics: Metrics
    lifecycle: Lifecycle
    max_body_bytes: int
    transcript_max_bytes: int
    flush_interval_seconds: int = 300
    bodies: BodyBudget = field(default_factory=lambda: BodyBudget(1 << 28))
    capture: Capture = field(default_factory=Capture)
    long_work: LongWork = field(default_factory=LongWork)
