"""Request bodies in a content coding (RFC 9110, section 8.4), undone before anything reads them.

Providers get the plain body: few of them take another, and the proxy has to read it anyway. The
decoder is strict. What stands behind the coded body, or what is missing of it, is an error and not
padding, so that no two readers of one request see two bodies.
"""

import zlib
from functools import partial

from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.long_work import LongWork
from open_llm_proxy.server.proxy_errors import (
    body_too_large,
    invalid_encoding,
    too_many_bodies,
    unsupported_encoding,
)
from open_llm_proxy.server.request_body import RequestBody

# Of a gzip body's members, each of which may decode to nothing.
MAX_MEMBERS = 64
_GZIP = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f\x8b"
_CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def content_coding(headers: Headers) -> str | None:
    """`gzip` or `deflate`, None for a plain body; raises `ProxyError` (415) for others."""
    sent = headers.get("Content-Encoding", "")
    named = [coding.strip().lower() for coding in sent.split(",")]
    codings = [coding for coding in named if coding not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        raise unsupported_encoding(sent)
    return _CODINGS[codings[0]]


async def taken(body: RequestBody, coding: str | None, max_bytes: int, work: LongWork) -> bytes:
    """A body that has come, without its content coding; raises `ProxyError` as `decoded` does."""
    sent = body.take()
    if coding is None:
        return sent
    # A little of a coded body may stand for very much.
    plain = await work.run(max_bytes, partial(decoded, sent, coding, max_bytes))
    body.replace(sent, plain)
    if body.has_no_room:
        raise too_many_bodies()
    return plain


def decoded(body: bytes, coding: str, max_bytes: int) -> bytes:
    """The plain body; raises `ProxyError`, 400 where it is broken and 413 where it is too large.

    No more than `max_bytes` are decoded, whatever the body stands for.
    """
    try:
        if coding == "gzip":
            return _members(body, max_bytes)
        return _whole(body, coding, max_bytes)
    except zlib.error as error:
        raise invalid_encoding(coding, str(error)) from error


def _members(body: bytes, max_bytes: int) -> bytes:
    texts: list[bytes] = []
    left = max_bytes
    for _ in range(MAX_MEMBERS):
        text, body = _inflated(body, "gzip", _GZIP, left, max_bytes)
        texts.append(text)
        left -= len(text)
        if not body.startswith(_GZIP_MAGIC):
            break
    if body:
        raise invalid_encoding("gzip", "more bytes follow its end")
    return b"".join(texts)


def _whole(body: bytes, coding: str, max_bytes: int) -> bytes:
    """`deflate` is zlib's format by the standard, and raw deflate with some clients."""
    try:
        text, rest = _inflated(body, coding, zlib.MAX_WBITS, max_bytes, max_bytes)
    except zlib.error:
        text, rest = _inflated(body, coding, -zlib.MAX_WBITS, max_bytes, max_bytes)
    if rest:
        raise invalid_encoding(coding, "more bytes follow its end")
    return text


def _inflated(
    body: bytes, coding: str, window_bits: int, left: int, max_bytes: int
) -> tuple[bytes, bytes]:
    """What the body begins with, and the rest of it."""
    inflater = zlib.decompressobj(window_bits)
    text = inflater.decompress(body, left + 1)
    if len(text) > left:
        raise body_too_large(max_bytes)
    if not inflater.eof:
        raise invalid_encoding(coding, "its end is missing")
    return text, inflater.unused_data
