"""Name look-ups that cost one thread where a thousand connections are made at a time, and that a
name server which is away does not stop.

Tornado's resolver runs getaddrinfo in a few threads, and each look-up hands Python's interpreter
lock to and fro with the event loop. While that is busy, a burst of new connections to one provider
would wait seconds for a thousand identical answers, and could run into the connect time-out.

In clusters name servers answer EAI_AGAIN in bursts, or do not answer for longer than a connection
may take. Addresses seldom change meanwhile: the last good ones of the name serve then.
"""

import asyncio
import logging
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from tornado.netutil import Resolver

log = logging.getLogger(__name__)

Addresses = list[tuple[int, Any]]
Name = tuple[str, int, int]

PATIENCE_SECONDS = 1.0
MAX_NAMES = 1000
# Failures of the look-up and not of the name.
_PASSING = (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM)


def is_passing(error: socket.gaierror) -> bool:
    """Whether the same look-up may succeed a moment later."""
    return error.errno in _PASSING


@dataclass(frozen=True, slots=True)
class _Lookup:
    answer: "asyncio.Future[Addresses]"
    began: float


class SharedLookups(Resolver):
    """Asks `resolver` once for all who want the same name at the same time.

    Whoever asks after the answer gets a new one. The one before is given only where the look-up
    fails in a way that passes, or takes longer than `patience_seconds`; it then goes on for those
    who ask next. An IP address is answered without a look-up.
    """

    def initialize(
        self, resolver: Resolver | None = None, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._resolver = resolver or Resolver()
        self._patience_seconds = patience_seconds
        self._under_way: dict[Name, _Lookup] = {}
        self._last_good: dict[Name, Addresses] = {}
        self._away: set[Name] = set()  # answered by the last good addresses, and said so

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> Addresses:
        address = _literal(host, port, family)
        if address is not None:
            return [address]
        wanted = (host, port, int(family))
        lookup = self._under_way.get(wanted) or self._begin(wanted, host, port, family)
        # Shielded: one who gives up must not take the answer from the others.
        answer = asyncio.shield(lookup.answer)
        known = self._last_good.get(wanted)
        if known is None:
            return await answer
        waited = asyncio.get_running_loop().time() - lookup.began
        try:
            async with asyncio.timeout(max(0.0, self._patience_seconds - waited)):
                return await answer
        except TimeoutError:
            return self._instead(wanted, known, "no answer yet")
        except socket.gaierror as error:
            if not is_passing(error):
                raise
            return self._instead(wanted, known, str(error.strerror))

    def _begin(self, wanted: Name, host: str, port: int, family: socket.AddressFamily) -> _Lookup:
        answer = asyncio.ensure_future(self._resolver.resolve(host, port, family))
        lookup = _Lookup(answer, asyncio.get_running_loop().time())
        self._under_way[wanted] = lookup
        answer.add_done_callback(partial(self._ended, wanted))
        return lookup

    def _instead(self, wanted: Name, known: Addresses, why: str) -> Addresses:
        if wanted not in self._away:
            self._away.add(wanted)
            log.warning("%s cannot be resolved (%s); using its last address", wanted[0], why)
        return known

    def close(self) -> None:
        """Give up what is under way."""
        for lookup in list(self._under_way.values()):
            lookup.answer.cancel()
        self._resolver.close()

    def _ended(self, wanted: Name, answer: "asyncio.Future[Addresses]") -> None:
        del self._under_way[wanted]
        # Asking for the exception marks it as seen, where nobody waits any more.
        if answer.cancelled() or answer.exception() is not None:
            return
        if len(self._last_good) >= MAX_NAMES:
            self._last_good.clear()
        self._last_good[wanted] = answer.result()
        if wanted in self._away:
            self._away.discard(wanted)
            log.warning("%s is resolved again", wanted[0])


def _literal(host: str, port: int, family: int) -> tuple[int, Any] | None:
    """The address that `host` is, if it is one and of that family."""
    for literal, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
        if family in (socket.AF_UNSPEC, literal):
            try:
                socket.inet_pton(literal, host)
            except (OSError, ValueError):
                continue
            return literal, (host, port, *rest)
    return None
