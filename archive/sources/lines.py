"""Lines out of any stream of bytes: plain, gzip, or text that a shell wrote as UTF-16."""

import codecs
import zlib
from collections.abc import Callable, Iterator

from open_llm_proxy.archive.sources.source import Problems

MAX_LINE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
DAMAGED_GZIP = "gzip streams that are damaged"
_GZIP = b"\x1f\x8b"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

Read = Callable[[int], bytes]
"""Returns some bytes as soon as there are any, at most so many; none at the end."""


def decoded(read: Read, problems: Problems) -> Iterator[bytes]:
    """The chunks of a stream as UTF-8, whichever of the forms it has."""
    first = read(CHUNK_BYTES)
    if first.startswith(_GZIP):
        yield from _unzipped(first, read, problems)
        return
    for bom, encoding in _BOMS:
        if first.startswith(bom):
            yield from _recoded(first[len(bom) :], read, encoding)
            return
    while first:
        yield first
        first = read(CHUNK_BYTES)


def _unzipped(chunk: bytes, read: Read, problems: Problems) -> Iterator[bytes]:
    """All members of a gzip stream; one that breaks off is read as far as it goes."""
    member = zlib.decompressobj(wbits=31)
    try:
        while chunk:
            yield member.decompress(chunk, CHUNK_BYTES)
            while member.unconsumed_tail:
                yield member.decompress(member.unconsumed_tail, CHUNK_BYTES)
            chunk = member.unused_data or read(CHUNK_BYTES)
            if member.eof and chunk:
                member = zlib.decompressobj(wbits=31)
        if not member.eof:
            problems.add(DAMAGED_GZIP, "it ends early")
    except zlib.error as error:
        problems.add(DAMAGED_GZIP, str(error))


def _recoded(chunk: bytes, read: Read, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(chunk).encode("utf-8", "replace")
    while chunk := read(CHUNK_BYTES):
        yield decoder.decode(chunk).encode("utf-8", "replace")


def split_lines(chunks: Iterator[bytes], problems: Problems) -> Iterator[bytes]:
    """The lines of a stream, without their ends; one that is longer than any entry is left out."""
    rest = b""
    is_skipping = False
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest += first
        for line in more:
            if not is_skipping:
                yield rest
            is_skipping = False
            rest = line
        if len(rest) > MAX_LINE_BYTES:
            if not is_skipping:
                problems.add(f"lines of more than {MAX_LINE_BYTES:,} bytes")
            rest, is_skipping = b"", True
    if rest and not is_skipping:
        yield rest
