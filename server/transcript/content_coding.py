"""Undoing a content coding (RFC 9110, section 8.4.1) for the log, within bounds.

The client gets the provider's bytes as they are. The transcript needs the text inside, chunk by
chunk. Decoding stops for good at a limit on what has come out, because a few kilobytes of
compressed zeros can stand for gigabytes; what came out before it, or before damage, is kept. No
answer of a model shrinks to a hundredth, so what does is taken for such zeros from a megabyte on.
"""

import zlib
from collections.abc import Iterator

DECODED_CODINGS = ("gzip", "x-gzip", "deflate")
_PIECE_BYTES = 16384
_MAX_RATIO = 100
_FREE_BYTES = 1 << 20  # of output, whatever its ratio
_SLICE_BYTES = 16384  # of input; what zlib leaves over is copied, so it must stay small
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_RAW_DEFLATE = -zlib.MAX_WBITS


def coding_of(content_encoding: str | None) -> str:
    """Return the coding that a header names, several joined by commas; "" where it names none."""
    if not content_encoding:
        return ""
    named = (coding.strip().lower() for coding in content_encoding.split(","))
    return ",".join(coding for coding in named if coding not in ("", "identity"))


class Inflation:
    """Decodes one gzip or deflate body; ``problem`` says why it came to an early end, if it did.

    ``deflate`` is zlib's format by the standard and raw deflate with some servers; both are read.
    A body that is said to be gzip and is none goes through as it is (``is_mislabelled``).
    """

    def __init__(self, coding: str, max_bytes: int) -> None:
        self.problem: str | None = None
        self.is_too_large = False
        self.is_mislabelled = False
        self._is_gzip = coding != "deflate"
        self._bytes_left = max_bytes
        self._bytes_in = 0
        self._bytes_out = 0
        self._head = b""
        self._inflater: zlib._Decompress | None = None
        self._members = 0
        self._has_ended = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield all that this chunk decodes to, in pieces of at most 16 KiB."""
        for start in range(0, len(chunk), _SLICE_BYTES):
            part = chunk[start : start + _SLICE_BYTES]
            self._bytes_in += len(part)
            yield from self._decode(part)

    def _decode(self, data: bytes) -> Iterator[bytes]:
        while data and self.problem is None:
            if self._inflater is None:
                data = self._begin_member(data)
            if self.is_mislabelled and data:
                yield self._counted(data)
                return
            if self._inflater is None:
                return
            try:
                piece = self._inflater.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                self.problem = f"the compressed body is damaged: {error}"
                return
            data = self._inflater.unconsumed_tail
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = None
            if piece:
                yield self._counted(piece)

    def _begin_member(self, data: bytes) -> bytes:
        """Look at the first two bytes and make a decoder; without one, wait or ignore the rest.

        A gzip body may have several members. What else stands behind the first is padding.
        """
        data = self._head + data
        self._head = b""
        if self._has_ended or self.is_mislabelled:
            return data
        if len(data) < 2:
            self._head = data
        elif self._members > 0 and not data.startswith(_GZIP_MAGIC):
            self._has_ended = True
        elif self._is_gzip and not data.startswith(_GZIP_MAGIC):
            self.is_mislabelled = True
        else:
            self._members += 1
            self._inflater = zlib.decompressobj(_window_bits(data))
        return data

    def _counted(self, piece: bytes) -> bytes:
        self._bytes_out += len(piece)
        is_bomb = self._bytes_out > max(_FREE_BYTES, _MAX_RATIO * self._bytes_in)
        if is_bomb or len(piece) > self._bytes_left:
            self.problem = "the compressed body is too large to be decoded whole"
            self.is_too_large = True
            piece = piece[: self._bytes_left]
        self._bytes_left -= len(piece)
        return piece


def _window_bits(head: bytes) -> int:
    """Tell gzip and zlib, which have a header of two bytes, from raw deflate, which has none."""
    is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
    return _GZIP_OR_ZLIB if is_zlib or head.startswith(_GZIP_MAGIC) else _RAW_DEFLATE
