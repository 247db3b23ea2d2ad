"""The provider's key taken out of what the provider answers, before anything else reads it.

Providers quote the key that they refuse, and some of them their whole request. The key is replaced
by as many asterisks in the status line, the headers and the body, also where the body comes in
pieces that cut it: a piece's end waits for the next piece only as far as it is a beginning of the
key. So no token of a stream is late, and lengths stay true.

A body in a content coding cannot be searched. We ask for none; where one comes all the same, a
success passes as it is, and an error, which is what quotes keys, is decoded first. Keys of fewer
than 16 characters are not masked: they are no secrets, and masking would garble other texts.
"""

import json
import re
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote

from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.transcript.content_coding import DECODED_CODINGS, Inflation, coding_of

MIN_KEY_CHARACTERS = 16
# What is decoded of an error; the rest is left out.
MAX_DECODED_BYTES = 1 << 20


class _Spellings:
    """The ways in which a key may stand in a body: as it is, in JSON, in a URL."""

    def __init__(self, key: str) -> None:
        spelled = {key, key.replace("/", "\\/"), json.dumps(key)[1:-1], quote(key, safe="")}
        self.spelled = sorted((text.encode() for text in spelled), key=len, reverse=True)
        self.pattern = re.compile(b"|".join(map(re.escape, self.spelled)))
        self.text_pattern = re.compile("|".join(re.escape(text.decode()) for text in self.spelled))
        self.longest = len(self.spelled[0])
        self.bytes = frozenset(b"".join(self.spelled))

    def beginning_at_the_end(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of a key; the most there are."""
        if not data or data[-1] not in self.bytes:
            return 0
        for start in range(max(0, len(data) - self.longest + 1), len(data)):
            end = data[start:]
            if any(len(end) < len(spelled) and spelled.startswith(end) for spelled in self.spelled):
                return len(end)
        return 0


@lru_cache(maxsize=64)
def _spellings(key: str) -> _Spellings | None:
    return _Spellings(key) if len(key) >= MIN_KEY_CHARACTERS else None


class KeyMask:
    """Masks one key in bytes that come in pieces."""

    def __init__(self, key: str) -> None:
        self._spellings = _spellings(key)
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The next piece, masked; less by what may be the beginning of the key."""
        spellings = self._spellings
        if spellings is None:
            return data
        if self._rest:
            data = self._rest + data
        data = spellings.pattern.sub(_asterisks, data)
        kept = spellings.beginning_at_the_end(data)
        self._rest = data[len(data) - kept :] if kept else b""
        return data[: len(data) - kept] if kept else data

    def finish(self) -> bytes:
        """What was kept back, as no more comes."""
        rest, self._rest = self._rest, b""
        return rest

    def whole(self, data: bytes) -> bytes:
        """The same for data that comes in one piece."""
        return self.feed(data) + self.finish()


def masked(text: str, key: str) -> str:
    """`text` with asterisks for every occurrence of the key; as long as before."""
    spellings = _spellings(key)
    if spellings is None:
        return text
    return spellings.text_pattern.sub(lambda found: "*" * len(found[0]), text)


class Upstream(Protocol):
    """The provider's answer as it arrives."""

    status: int
    reason: str
    headers: Headers

    async def read(self) -> bytes: ...


class MaskedAnswer:
    """One answer of a provider, with its key nowhere in it; to be read like the answer itself."""

    def __init__(self, upstream: Upstream, key: str) -> None:
        self.status = upstream.status
        self.reason, self.headers = _masked_head(upstream.reason, upstream.headers, key)
        self._upstream = upstream
        self._mask = KeyMask(key)
        self._inflation: Inflation | None = None
        self._replacement = b""
        if not 200 <= self.status < 300:
            coding = coding_of(upstream.headers.get("Content-Encoding"))
            if coding:
                self._decode_error(coding)

    async def read(self) -> bytes:
        """The next piece of the body, or b"" at its end; raises what the answer's `read` does."""
        while data := await self._upstream.read():
            if self._replacement:
                continue
            if self._inflation is not None:
                data = b"".join(self._inflation.feed(data))
            if data and (piece := self._mask.feed(data)):
                return piece
        rest, self._replacement = self._replacement, b""
        return rest or self._mask.finish()

    def _decode_error(self, coding: str) -> None:
        self.headers = self.headers.without("Content-Encoding", "Content-Length")
        if coding in DECODED_CODINGS:
            self._inflation = Inflation(coding, MAX_DECODED_BYTES)
            return
        message = (
            f"The provider answered {self.status} in the content coding {coding[:40]!r}, which it "
            "was not asked for and which this proxy cannot read."
        )
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        others = self.headers.without("Content-Type").get_all()
        self.headers = Headers([*others, ("Content-Type", "application/json")])
        self._replacement = json.dumps({"error": error}).encode()


def _asterisks(found: "re.Match[bytes]") -> bytes:
    return b"*" * len(found[0])


def _masked_head(reason: str, headers: Headers, key: str) -> tuple[str, Headers]:
    """The same without the key; a header that has it in its name, in any case, is left out."""
    spellings, lower = _spellings(key), key.lower()
    if spellings is None:
        return reason, headers
    pairs, length = headers.get_all(), len(key)
    named = [name for name, _ in pairs if len(name) >= length and lower in name.lower()]
    texts = "\n".join([reason, *[value for _, value in pairs]])
    if not named and not spellings.text_pattern.search(texts):
        return reason, headers
    kept = headers.without(*named).get_all()
    return masked(reason, key), Headers((name, masked(value, key)) for name, value in kept)
