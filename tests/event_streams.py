"""Event streams with every kind of oddity, and ways to cut them, for property tests."""

from itertools import pairwise

from hypothesis import strategies as st

BOM = b"\xef\xbb\xbf"
USAGE_EVENT = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3}}\n\n'
TEXT_EVENT = b'data: {"id":"c1","choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"

# Small pieces that, joined at random, make streams with every kind of oddity.
PIECES = st.sampled_from(
    [
        *[b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"data", b"data:", b"data: ", b"data:  "],
        *[b": comment", b"event: x", b"id", b"datax: 1", b"x", b" ", b"[DONE]", b"[", b"{", BOM],
        *[b"event: response.completed", b'data: {"type":"response.', b"failed", "森".encode()],
        *[DONE, TEXT_EVENT, USAGE_EVENT, TEXT_EVENT.replace(b"\n", b"\r\n")],
    ]
)
STREAMS = st.lists(PIECES, max_size=24).map(b"".join)
CUTS = st.lists(st.floats(0, 1), max_size=12)


def cut(data: bytes, shares: list[float]) -> list[bytes]:
    """Cut the data at these shares of its length."""
    edges = sorted({0, len(data), *(int(share * len(data)) for share in shares)})
    return [data[start:end] for start, end in pairwise(edges)]
