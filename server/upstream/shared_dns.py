"""Name look-ups that cost one thread where a thousand connections are made at a time.

Tornado's resolver runs getaddrinfo in a few threads, and each look-up hands Python's interpreter
lock to and fro with the event loop. While that is busy, a burst of new connections to one provider
would wait seconds for a thousand identical answers, and could run into the connect time-out.
"""

import asyncio
import socket
from functools import partial
from typing import Any

from tornado.netutil import Resolver

Addresses = list[tuple[int, Any]]


class SharedLookups(Resolver):
    """Asks `resolver` once for all who want the same name at the same time.

    Nothing is kept for later: whoever asks after the answer gets a new one. An IP address is
    answered without a look-up.
    """

    def initialize(self, resolver: Resolver | None = None) -> None:
        self._resolver = resolver or Resolver()
        self._under_way: dict[tuple[str, int, int], asyncio.Future[Addresses]] = {}

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> Addresses:
        address = _literal(host, port, family)
        if address is not None:
            return [address]
        wanted = (host, port, int(family))
        lookup = self._under_way.get(wanted)
        if lookup is None:
            lookup = asyncio.ensure_future(self._resolver.resolve(host, port, family))
            self._under_way[wanted] = lookup
            lookup.add_done_callback(partial(self._forget, wanted))
        # Shielded: one who gives up must not take the answer from the others.
        return await asyncio.shield(lookup)

    def close(self) -> None:
        """Give up what is under way."""
        for lookup in list(self._under_way.values()):
            lookup.cancel()
        self._resolver.close()

    def _forget(self, wanted: tuple[str, int, int], lookup: "asyncio.Future[Addresses]") -> None:
        del self._under_way[wanted]
        if not lookup.cancelled():
            lookup.exception()  # Marks it as seen, where nobody waits any more.


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
