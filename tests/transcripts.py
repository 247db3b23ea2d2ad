"""Reading transcripts of answers in tests."""

from open_llm_proxy.server.transcript.reader import TranscriptReader
from open_llm_proxy.server.transcript.transcript import Transcript
from response_shapes import JSON, chunk, chunks

CAP = 4 << 20


def read(
    body: bytes,
    content_type: str | None = JSON,
    coding: str | None = None,
    max_bytes: int = CAP,
    piece_bytes: int | None = None,
) -> Transcript:
    reader = TranscriptReader(content_type, coding, max_bytes)
    feed_in_pieces(reader, body, piece_bytes or len(body) or 1)
    return reader.finish()


def feed_in_pieces(reader: TranscriptReader, body: bytes, piece_bytes: int) -> None:
    for start in range(0, len(body), piece_bytes):
        reader.feed(body[start : start + piece_bytes])


def texts(count: int, piece: str) -> bytes:
    """A stream of so many deltas."""
    return chunks(*[chunk({"content": piece})] * count)
