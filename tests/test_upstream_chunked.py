"""The chunked coding: what it decodes to and what it refuses, wherever the pieces are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_llm_proxy.server.upstream.chunked import ChunkedDecoder

END = b"0\r\n\r\n"
# Small pieces that, joined at random, make bodies with every kind of oddity.
PIECES = st.sampled_from(
    [
        *[b"5\r\nhello\r\n", b"A;x=1\r\n0123456789\r\n", b"001 \r\n\r\r\n", b"2\r\n\r\n\r\n"],
        *[END, b"0\r\nA: b\r\n\r\n", b"\r\n", b"\n", b"\r", b"5", b";", b"x", b"-1", b"ffff\r\n"],
    ]
)
CUTS = st.lists(st.floats(0, 1), max_size=8)


def decoded(pieces: list[bytes]) -> tuple[bytes, bool, str | None]:
    chunks = ChunkedDecoder()
    body = b""
    for piece in pieces:
        if not chunks.is_complete and chunks.problem is None:
            body += chunks.feed(piece)
    return body, chunks.is_complete, chunks.problem


def cut(data: bytes, shares: list[float]) -> list[bytes]:
    edges = sorted({0, len(data), *(int(share * len(data)) for share in shares)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), CUTS)
@settings(deadline=None, database=None)
def test_chunks_cut_anywhere_are_joined_to_the_body(
    chunks: list[bytes], shares: list[float]
) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in chunks) + END
    assert decoded(cut(coded, shares)) == (b"".join(chunks), True, None)


@given(st.lists(PIECES, max_size=10).map(b"".join), CUTS)
@settings(deadline=None, database=None, max_examples=300)
def test_the_cuts_make_no_difference_to_what_is_decoded_or_refused(
    coded: bytes, shares: list[float]
) -> None:
    whole = decoded([coded])
    assert decoded(cut(coded, shares)) == whole
    assert decoded([coded[i : i + 1] for i in range(len(coded))]) == whole


@pytest.mark.parametrize(
    ("coded", "problem"),
    [
        (b"hello\r\n", "does not begin with its size"),
        (b"5\nhello\n0\r\n\r\n", "does not begin with its size"),
        (b"1" * 16 + b"\r\n", "does not begin with its size"),
        (b"5;" + b"x" * 1024 + b"\r\nhello\r\n", "does not begin with its size"),
        (b"5;" + b"x" * 1024, "does not begin with its size"),
        (b"3\r\nhello\r\n", "longer than its size"),
        (b"3\r\nhel\n\n", "longer than its size"),
        (b"0\r\n" + b"A: b\r\n" * 3000, "trailers do not end"),
        (b"0\r\n" + b"A: b\r\n" * 3000 + b"\r\n", "trailers do not end"),
        (b"0\r\nA: " + b"b" * 17_000, "trailers do not end"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(coded: bytes, problem: str) -> None:
    good = b"5\r\nhello\r\n"
    body, is_complete, found = decoded([good + coded])
    assert body.startswith(b"hello") and not is_complete
    assert found is not None and problem in found


@pytest.mark.parametrize("excess", [b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_stands_behind_the_end_is_noticed_and_not_decoded(excess: bytes) -> None:
    chunks = ChunkedDecoder()
    assert chunks.feed(b"2\r\nab\r\n0\r\nA: b\r\n\r\n" + excess) == b"ab"
    assert (chunks.is_complete, chunks.has_excess) == (True, bool(excess))


def test_a_long_chunk_in_small_pieces_is_handed_on_as_it_comes() -> None:
    chunks = ChunkedDecoder()
    assert chunks.feed(b"f4240\r\n") == b""
    for _ in range(1000):
        assert chunks.feed(b"x" * 1000) == b"x" * 1000
    assert chunks.feed(b"\r\n" + END) == b"" and chunks.is_complete
