"""How the scripted provider can answer: one function per behaviour, chosen by its name.

A client asks for one in its user message, `call 000123: stream deltas=20 pace=0.05`, or by a
model of that name (`stream`, or `anything/stream`). Options stand in the first lines of each
function; `once=1`, known to all, misbehaves only the first time that this number comes and
answers `ok` after that, for tests of retries.
"""

import base64
import gzip
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import provider_answers
import wire
from known_content import answer_content, answer_reasoning
from provider_answers import error_object
from provider_exchange import Exchange, encode, event

Behaviour = Callable[[Exchange], Awaitable[None]]


async def ok(exchange: Exchange) -> None:
    """The right answer, streamed if the request says so."""
    if exchange.call.wants_stream:
        await stream(exchange)
    else:
        await exchange.pause(exchange.option("delay", 0.0))
        await exchange.send_json(200, provider_answers.whole_answer(exchange.call))


async def stream(exchange: Exchange) -> None:
    """Content in `deltas` pieces, `pace` seconds apart; usage where the request asks for it."""
    asked = exchange.call.json.get("stream_options") or {}
    await _stream(exchange, _content(exchange), usage=asked.get("include_usage") is True)


async def stream_usage(exchange: Exchange) -> None:
    """A stream with usage whether or not the request asks for it."""
    await _stream(exchange, _content(exchange), usage=True)


async def tool_call(exchange: Exchange) -> None:
    """Two tool calls; in a stream their arguments come in interleaved pieces, by index."""
    if exchange.call.wants_stream:
        deltas = provider_answers.tool_call_deltas(exchange.number)
        await _stream(exchange, deltas, finish="tool_calls")
    else:
        message = provider_answers.tool_call_message(exchange.number)
        answer = provider_answers.completion(exchange.call, message, "tool_calls")
        await exchange.send_json(200, answer)


async def reasoning(exchange: Exchange) -> None:
    """Reasoning before the content, under the name `field` (`reasoning_content`, `reasoning`)."""
    name, number = exchange.option("field", "reasoning_content"), exchange.number
    if exchange.call.wants_stream:
        thoughts = provider_answers.reasoning_deltas(number, name)
        await _stream(exchange, (*thoughts, *_content(exchange)))
    else:
        message = {"role": "assistant", "content": answer_content(number)}
        message[name] = answer_reasoning(number)
        await exchange.send_json(200, provider_answers.completion(exchange.call, message))


async def silent(exchange: Exchange) -> None:
    """Take the request and never answer."""
    await exchange.until_client_leaves()


async def stall_after_headers(exchange: Exchange) -> None:
    """Headers of a stream, then nothing."""
    await exchange.begin_stream()
    await exchange.until_client_leaves()


async def stall_mid_stream(exchange: Exchange) -> None:
    """Half of the content, then nothing."""
    await exchange.begin_stream()
    await _send_half(exchange)
    await exchange.until_client_leaves()


async def slow(exchange: Exchange) -> None:
    """A character of content every `pace` seconds, then comments for ever: no idle time-out."""
    pace = exchange.option("pace", 0.1)
    await exchange.begin_stream()
    for character in answer_content(exchange.number):
        delta = {"content": character}
        await exchange.send_event(provider_answers.chunk(exchange.call, delta))
        await exchange.pause(pace)
    while True:
        await exchange.send_chunk(b": still there\n\n")
        await exchange.pause(pace)


async def reset_before_headers(exchange: Exchange) -> None:
    """A TCP reset instead of an answer."""
    exchange.reset()


async def reset_after_headers(exchange: Exchange) -> None:
    """A TCP reset after the headers."""
    await exchange.begin_stream()
    await exchange.pause(exchange.option("delay", 0.05))
    exchange.reset()


async def reset_mid_chunk(exchange: Exchange) -> None:
    """Half of the content, the beginning of a chunk, and a TCP reset."""
    await exchange.begin_stream()
    await _send_half(exchange)
    await exchange.send(b'ffff\r\ndata: {"id": ')
    await exchange.pause(exchange.option("delay", 0.05))
    exchange.reset()


async def close_before_headers(exchange: Exchange) -> None:
    """An orderly close instead of an answer."""
    exchange.keep_alive = False


async def ok_then_close(exchange: Exchange) -> None:
    """The right answer, keep-alive promised, and the connection closed all the same."""
    await ok(exchange)
    exchange.keep_alive = False


async def short_body(exchange: Exchange) -> None:
    """Half of what Content-Length promises, then an orderly close."""
    body = encode(provider_answers.whole_answer(exchange.call))
    await exchange.send_head(
        200, (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    )
    await exchange.send(body[: len(body) // 2])
    exchange.keep_alive = False


async def bad_chunking(exchange: Exchange) -> None:
    """A chunk whose size is no number."""
    await exchange.begin_stream()
    await _send_half(exchange)
    await exchange.send(b"xyz\r\nno chunk\r\n0\r\n\r\n")
    exchange.keep_alive = False


async def huge_headers(exchange: Exchange) -> None:
    """`bytes` of response headers."""
    lines = exchange.option("bytes", 200_000) // 1000
    headers = [(f"X-Filler-{index}", "x" * 985) for index in range(lines)]
    await exchange.send_json(200, provider_answers.whole_answer(exchange.call), headers)


async def error(exchange: Exchange) -> None:
    """`status` with a body of the kind `body`: json, html or empty."""
    status, kind = exchange.option("status", 500), exchange.option("body", "json")
    if kind == "html":
        page = f"<html><body><h1>{status} from a balancer</h1></body></html>".encode()
        await exchange.send_body(status, page, (("Content-Type", "text/html"),))
    elif kind == "empty":
        await exchange.send_body(status, b"")
    else:
        await exchange.send_json(status, error_object(f"scripted error {exchange.number:06d}"))


async def rate_limited(exchange: Exchange) -> None:
    """429 with the headers that OpenAI documents for rate limits."""
    headers = (
        ("Retry-After", "7"),
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "7s"),
        ("x-ratelimit-remaining-tokens", "149984"),
    )
    await exchange.send_json(429, error_object("slow down", "rate_limit_error"), headers)


async def error_event(exchange: Exchange) -> None:
    """Half of the content, an error as an event, and the orderly end without `[DONE]`."""
    await exchange.begin_stream()
    await _send_half(exchange)
    await exchange.send_event(error_object(f"scripted error {exchange.number:06d}"))
    await exchange.send(b"0\r\n\r\n")


async def redirect(exchange: Exchange) -> None:
    """`status` (307) with a Location on this provider, which must not be followed."""
    location = ("Location", "/v1/chat/completions?followed=1")
    await exchange.send_body(exchange.option("status", 307), b"", (location,))


async def informational(exchange: Exchange) -> None:
    """100 and 103 before the right answer (RFC 9110, section 15.2)."""
    await exchange.send(wire.head(100, (), "Continue"))
    await exchange.send(wire.head(103, (("Link", "</style.css>; rel=preload"),), "Early Hints"))
    await ok(exchange)


async def gzipped(exchange: Exchange) -> None:
    """The right answer with gzip, although identity was asked for."""
    encoding = (("Content-Encoding", "gzip"),)
    if not exchange.call.wants_stream:
        body = gzip.compress(encode(provider_answers.whole_answer(exchange.call)), mtime=0)
        await exchange.send_body(200, body, (("Content-Type", "application/json"), *encoding))
        return
    chunks = (provider_answers.chunk(exchange.call, delta) for delta in _content(exchange))
    last = provider_answers.chunk(exchange.call, {}, "stop")
    text = b"".join(event(value) for value in (*chunks, last))
    body = gzip.compress(text + b"data: [DONE]\n\n", mtime=0)
    await exchange.begin_stream(encoding)
    for start in range(0, len(body), 97):
        await exchange.send_chunk(body[start : start + 97])
    await exchange.send(b"0\r\n\r\n")


async def close_delimited(exchange: Exchange) -> None:
    """The right answer, ended by the connection's end (RFC 9112, section 6.3)."""
    if exchange.call.wants_stream:
        await _stream(exchange, _content(exchange), chunked=False)
        return
    headers = (("Content-Type", "application/json"), ("Connection", "close"))
    await exchange.send_head(200, headers)
    await exchange.send(encode(provider_answers.whole_answer(exchange.call)))
    exchange.keep_alive = False


async def big(exchange: Exchange) -> None:
    """A stream of `megabytes`, as fast as the client takes it."""
    data = event(provider_answers.chunk(exchange.call, {"content": "x" * 65_000}))
    await exchange.begin_stream()
    for _ in range(exchange.option("megabytes", 10) * 1_000_000 // len(data)):
        await exchange.send_chunk(data)
    await exchange.end_stream()


async def odd_headers(exchange: Exchange) -> None:
    """Headers that must not pass a proxy, beside doubled ones that must."""
    headers = (
        ("Set-Cookie", "a=1; Path=/"),
        ("Set-Cookie", "b=2; Path=/"),
        ("Server", "scripted"),
        ("Access-Control-Allow-Origin", "https://provider.example"),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Expose-Headers", "X-Secret"),
        ("Connection", "keep-alive, X-Hop"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("Upgrade", "h2c"),
        ("X-Hop", "named by Connection"),
        ("X-End", "first"),
        ("X-End", "second"),
        ("OpenAI-Processing-Ms", "12"),
    )
    await exchange.send_json(200, provider_answers.whole_answer(exchange.call), headers)


async def echo(exchange: Exchange) -> None:
    """The request as it arrived, its body in base64, as `echo` of a normal answer."""
    request = exchange.call.request
    echoed = {
        "method": request.method,
        "target": request.target,
        "headers": request.headers,
        "body": base64.b64encode(request.body).decode(),
    }
    await exchange.send_json(200, {**provider_answers.whole_answer(exchange.call), "echo": echoed})


async def shape(exchange: Exchange) -> None:
    """The raw response that the test stored as `name`: its bytes are written, its numbers are
    pauses in seconds. With `close=1` the connection is closed at the end."""
    for piece in exchange.shapes[exchange.option("name", "")]:
        if isinstance(piece, bytes):
            await exchange.send(piece)
        else:
            await exchange.pause(piece)
    exchange.keep_alive = exchange.keep_alive and not exchange.option("close", 0)


BEHAVIOURS: Mapping[str, Behaviour] = {
    function.__name__: function
    for function in (
        ok, stream, stream_usage, tool_call, reasoning, silent, stall_after_headers,
        stall_mid_stream, slow, reset_before_headers, reset_after_headers, reset_mid_chunk,
        close_before_headers, ok_then_close, short_body, bad_chunking, huge_headers, error,
        rate_limited, error_event, redirect, informational, gzipped, close_delimited, big,
        odd_headers, echo, shape,
    )
}  # fmt: skip


def _content(exchange: Exchange) -> Iterable[dict[str, Any]]:
    return provider_answers.content_deltas(exchange.number, exchange.option("deltas", 8))


async def _stream(
    exchange: Exchange,
    deltas: Iterable[dict[str, Any]],
    finish: str = "stop",
    usage: bool = False,
    chunked: bool = True,
) -> None:
    call, pace = exchange.call, exchange.option("pace", 0.0)
    await exchange.begin_stream(chunked=chunked)
    await exchange.send_event(provider_answers.chunk(call, {"role": "assistant", "content": ""}))
    for delta in deltas:
        await exchange.pause(pace)
        await exchange.send_event(provider_answers.chunk(call, delta))
    await exchange.send_event(provider_answers.chunk(call, {}, finish))
    if usage:
        await exchange.send_event(provider_answers.usage_chunk(call))
    await exchange.end_stream()


async def _send_half(exchange: Exchange) -> None:
    deltas = list(_content(exchange))
    for delta in deltas[: len(deltas) // 2]:
        await exchange.send_event(provider_answers.chunk(exchange.call, delta))
        await exchange.pause(exchange.option("pace", 0.0))
