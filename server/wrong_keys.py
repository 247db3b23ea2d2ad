"""How often an address may try a wrong key: a few times a second, and from then on 429 at once.

Only wrong keys are counted, and only after they were found to be wrong. A right key is never
delayed, whoever else tries keys from the same address.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from open_llm_proxy.server.settings import Network

WRONG_KEYS_PER_SECOND = 5.0
# Addresses that are remembered; with more, the one that tried longest ago is forgotten.
MAX_ADDRESSES = 10_000
_IPV6_PREFIX = 64  # one customer's network
_MAX_FORWARDED = 32


class WrongKeys:
    """Counts wrong keys by address; of a proxy in `trusted` it believes whom it speaks for."""

    def __init__(
        self, trusted: Iterable[Network] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trusted = tuple(trusted)
        self._clock = clock
        # Address -> (tries that are left, when that was so).
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_too_often(self, peer: str, forwarded_for: str | None) -> bool:
        """Count one wrong key; returns whether this address has tried too many."""
        address, now = self.address(peer, forwarded_for), self._clock()
        left, since = self._left.pop(address, (WRONG_KEYS_PER_SECOND, now))
        left = min(WRONG_KEYS_PER_SECOND, left + (now - since) * WRONG_KEYS_PER_SECOND)
        is_allowed = left >= 1
        self._left[address] = (left - 1 if is_allowed else left, now)
        if len(self._left) > MAX_ADDRESSES:
            self._left.popitem(last=False)
        return not is_allowed

    def address(self, peer: str, forwarded_for: str | None) -> str:
        """Whom a request comes from: the last address that no trusted proxy has."""
        address = peer
        named = (forwarded_for or "").split(",")[-_MAX_FORWARDED:]
        while named and self._is_trusted(address):
            before = named.pop().strip()
            if _parsed(before) is None:
                break
            address = before
        return _network(address)

    def _is_trusted(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._trusted)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def _network(address: str) -> str:
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX), strict=False))
    return str(parsed) if parsed is not None else address
