"""Answers that are none, or hide what they are: a provider's bytes and the row that they must give.

Plain data, as `response_shapes.py` is. Each is a kind that was met at some engine or gateway:
errors in other dress, bodies of the wrong kind, facts behind megabytes, tool calls that are not
numbered as the API has it, reasoning under other names, signs of life, streams that say they are
none. `row` names the fields that matter; a callable is asked instead of compared.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from response_shapes import DONE, JSON, STREAM, USAGE, answer, chunk, chunks, completion, document

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
MB = 1_000_000


@dataclass(frozen=True)
class OddAnswer:
    """One answer; `kinds` are its Content-Type headers, each a line of its own."""

    name: str
    kinds: tuple[str, ...]
    body: bytes
    row: dict[str, Any]
    path: str = CHAT
    status: int = 200


ODD_ANSWERS: list[OddAnswer] = []


def odd(
    name: str,
    body: bytes,
    *,
    kind: str | tuple[str, ...] = STREAM,
    path: str = CHAT,
    status: int = 200,
    **row: Any,
) -> None:
    kinds = (kind,) if isinstance(kind, str) else kind
    ODD_ANSWERS.append(OddAnswer(name, kinds, body, row, path, status))


def wrong(name: str, body: bytes, error: str | Callable[[Any], bool], **more: Any) -> None:
    odd(name, body, outcome="upstream_error", error=error, **more)


def good(name: str, body: bytes, **more: Any) -> None:
    odd(name, body, outcome="ok", error=None, **more)


def ends_in(end: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.endswith(end)


def says(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and all(word in value for word in words)


def has_calls(*calls: tuple[str | None, str | None, str | None]) -> Callable[[Any], bool]:
    return lambda value: [(c["id"], c["name"], c["arguments"]) for c in value] == list(calls)


TEXT = chunks(chunk({"content": "Par"}))
STOP = chunks(chunk({}, "stop"))
TOO_LONG = '{"code":400,"message":"prompt too long"}'

# 1. `ok` means an answer.
wrong("an unknown field error", f"error: {TOO_LONG}\n\n".encode() + DONE, TOO_LONG)
wrong("an unknown field Error, words", b"Error: out of memory\n\n" + DONE, "out of memory")
wrong("an error event", b'event: error\ndata: {"error":{"message":"x"}}\n\n', '{"message":"x"}')
wrong("an error event of words", b"event: error\ndata: Overloaded, try later\n\n" + DONE,
      "Overloaded, try later")  # fmt: skip
wrong(
    "an error event, its reason a comment", b"event: error\n: no GPU is free\n\n", "no GPU is free"
)
wrong("an error event without data", b"event: error\n\n" + DONE, "error")
wrong("an error event by another name", TEXT + b'event: stream.error\ndata: {"why":"gone"}\n\n',
      '{"why":"gone"}', content="Par")  # fmt: skip
wrong("an error event behind a finish reason", TEXT + STOP + b"event: error\ndata: lost\n\n" + DONE,
      "lost", finish_reason="stop")  # fmt: skip
wrong("a comment that is an error, and no answer", b": error: queue is full\n\n" + DONE,
      "error: queue is full")  # fmt: skip
wrong("anthropic: an error by its type", b'data: {"type":"error","error":{"type":'
      b'"overloaded_error","message":"Overloaded"}}\n\n',
      '{"type":"overloaded_error","message":"Overloaded"}')  # fmt: skip
wrong("an error beside the text", TEXT + chunks(chunk({}, error={"message": "x"})) + DONE,
      '{"message":"x"}', content="Par")  # fmt: skip
wrong("an error inside the delta", chunks(chunk({"error": {"message": "x"}})) + DONE,
      '{"message":"x"}')  # fmt: skip
wrong("sglang: an error object as data", chunks({"object": "error", "message": "x", "code": 400})
      + DONE, '{"object":"error","message":"x","code":400}')  # fmt: skip
wrong("a bare JSON line", b'{"error":{"message":"no model"}}\n\n' + DONE, '{"message":"no model"}')
wrong("a bare JSON line behind text", TEXT + b'{"error":"gone"}\n\n' + DONE, "gone", content="Par")
wrong("bare JSON over lines", document({"error": {"message": "x"}}) + b"\n\n" + DONE,
      '{"message":"x"}')  # fmt: skip
wrong("a bare JSON line of an unknown shape", b'{"code":1113,"msg":"no balance"}\n\n' + DONE,
      '{"code":1113,"msg":"no balance"}')  # fmt: skip
wrong("a bare text line", b"upstream connect error: reset\n\n" + DONE,
      "upstream connect error: reset")  # fmt: skip
wrong("a bare text line behind text", TEXT + b"Internal Server Error\n\n" + DONE,
      "Internal Server Error", content="Par")  # fmt: skip
wrong("words as data", TEXT + b"data: [ERROR] CUDA out of memory\n\n" + DONE,
      "[ERROR] CUDA out of memory", content="Par")  # fmt: skip
wrong("a page that says it is a stream", b"<html><h1>502</h1></html>", "<html><h1>502</h1></html>")
wrong("nothing but [DONE]", DONE, "the stream holds no answer")
wrong("chunks without choices", chunks(chunk(), chunk()) + DONE, "the stream holds no answer")
wrong("nothing but usage", chunks(chunk(usage=USAGE)) + DONE, "the stream holds no answer",
      total_tokens=30)  # fmt: skip
wrong("nothing but signs of life", b": wait\n\n" + chunks({}, {"type": "ping"}) + DONE,
      "the stream holds no answer", content=None)  # fmt: skip
wrong("a role and no more", chunks(chunk({"role": "assistant", "content": ""})) + DONE,
      "the stream holds no answer")  # fmt: skip
wrong("an empty stream", b"", says("without a finish_reason"))
wrong("a stream that stops", TEXT, says("without a finish_reason"), content="Par")
for reason in ("abort", "error", "cancelled", "insufficient_system_resource", "timeout",
               "engine_overloaded"):  # fmt: skip
    wrong(f"finish reason {reason}, streamed", TEXT + chunks(chunk({}, reason)) + DONE,
          says(repr(reason)), finish_reason=reason, content="Par")  # fmt: skip
    wrong(f"finish reason {reason}, whole", document(completion(answer({"content": "a"}, reason))),
          says(repr(reason)), kind=JSON, finish_reason=reason)  # fmt: skip
wrong("the second choice aborts", document(completion(answer({"content": "a"}),
      {**answer({"content": "b"}, "abort"), "index": 1})), says("'abort'"), kind=JSON)  # fmt: skip
wrong("an empty body", b"", "the answer is empty", kind=JSON)
wrong("white space", b" \r\n", "the answer is empty", kind=JSON)
wrong("cut JSON", document(completion(answer({"content": "Half of it"}))).split(b" of it")[0],
      says("breaks off"), kind=JSON, content=says("Half"))  # fmt: skip
wrong("cut JSON without text", b'{"id":"a","choi', '{"id":"a","choi', kind=JSON)
wrong("a page", b"<html>Sign in</html>", "<html>Sign in</html>", kind="text/html")
wrong("a page that says it is JSON", b"<html>Sign in</html>", "<html>Sign in</html>", kind=JSON)
wrong("words", b"no healthy upstream", "no healthy upstream", kind="text/plain")
wrong("no choices", b'{"choices":[]}', '{"choices":[]}', kind=JSON)
wrong("choices of null", b'{"choices":null,"id":"a"}', '{"choices":null,"id":"a"}', kind=JSON)
wrong("an empty choice", b'{"choices":[{}]}', '{"choices":[{}]}', kind=JSON)
wrong("an empty message", b'{"choices":[{"message":{"content":""}}]}', says("message"), kind=JSON)
wrong(
    "an array", b'[{"error":{"code":429,"message":"x"}}]', '{"code":429,"message":"x"}', kind=JSON
)
wrong("gemini: an array in a stream", b'[{"error":{"code":429,"message":"x"}}]\n',
      '{"code":429,"message":"x"}')  # fmt: skip
wrong("minimax: base_resp", document({"id": "1", "choices": None, "base_resp":
      {"status_code": 1008, "status_msg": "insufficient balance"}}),
      '{"status_code":1008,"status_msg":"insufficient balance"}', kind=JSON)  # fmt: skip
wrong("minimax: base_resp, streamed", chunks({"id": "1", "base_resp": {"status_code": 1002,
      "status_msg": "rate limit"}}) + DONE,
      '{"status_code":1002,"status_msg":"rate limit"}')  # fmt: skip
wrong("a gateway's success: false", b'{"success":false,"errors":[{"code":7000}]}',
      '{"success":false,"errors":[{"code":7000}]}', kind=JSON)  # fmt: skip
wrong("error: true", b'{"error":true,"message":"no"}', '{"error":true,"message":"no"}', kind=JSON)
wrong("ollama: error as text", b'{"error":"model not found"}', "model not found", kind=JSON)
wrong("embeddings without data", b'{"object":"list","data":[]}', '{"object":"list","data":[]}',
      kind=JSON, path=EMBEDDINGS)  # fmt: skip
wrong("a completion where embeddings belong", document(completion(answer({"content": "a"}))),
      says("choices", "embeddings"), kind=JSON, path=EMBEDDINGS)  # fmt: skip
wrong("a response that failed", document({"object": "response", "status": "failed", "output": [],
      "error": {"code": "server_error"}}), '{"code":"server_error"}', kind=JSON,
      path=RESPONSES)  # fmt: skip
wrong("a response without output and status", b'{"object":"response"}', '{"object":"response"}',
      kind=JSON, path=RESPONSES)  # fmt: skip
wrong("an error with its status", b'{"error":{"message":"a"},"trace":"t1"}',
      '{"error":{"message":"a"},"trace":"t1"}', kind=JSON, status=429)  # fmt: skip
wrong("a page with its status", b"<html>502</html>", "<html>502</html>", kind="text/html",
      status=502)  # fmt: skip
good("an empty text with a finish reason", document(completion(answer({"content": ""}))), kind=JSON,
     finish_reason="stop", has_content=False)  # fmt: skip
good("an empty text with a finish reason, streamed", STOP + DONE, finish_reason="stop")
good("errors that say none", chunks(chunk({"content": "a"}, "stop", error=None), chunk(
     error={"code": 0, "message": ""})) + DONE, content="a")  # fmt: skip
good("minimax: base_resp of success", document(completion(answer({"content": "a"}),
     base_resp={"status_code": 0, "status_msg": ""})), kind=JSON, content="a")  # fmt: skip
good("embeddings", b'{"data":[{"embedding":[0.5]}],"usage":{"total_tokens":1}}', kind=JSON,
     path=EMBEDDINGS, total_tokens=1)  # fmt: skip
good("embeddings in base64", b'{"data":[{"embedding":"AACA"}]}', kind=JSON, path=EMBEDDINGS)
good("a response in the background", b'{"object":"response","id":"r","status":"queued"}', kind=JSON,
     path=RESPONSES, finish_reason="queued")  # fmt: skip
good("completions", b'{"choices":[{"text":"","finish_reason":"length"}]}', kind=JSON,
     path=COMPLETIONS, finish_reason="length")  # fmt: skip

# 2. A limit costs text, never facts.
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (5 * MB)}}
ENDING = {"finish_reason": "stop", "usage": {**USAGE, "cost": 0.25}}
good("an event of 5 MB with image, finish reason and usage", chunks({"id": "g1", "choices": [
     {"index": 0, "delta": {"images": [PICTURE]}, "finish_reason": "stop"}],
     "usage": {**USAGE, "cost": 0.25}}) + DONE, content="[image/png 3750000 bytes]",
     finish_reason="stop", total_tokens=30, has_content=True)  # fmt: skip
good("5 MB of arguments in one event", chunks(chunk({"tool_calls": [{"index": 0, "id": "c",
     "function": {"name": "f", "arguments": json.dumps({"a": "x" * 5 * MB})}}]}, "tool_calls"))
     + DONE, has_tool_calls=True, finish_reason="tool_calls",
     tool_calls=lambda calls: calls[0]["name"] == "f"
     and calls[0]["arguments"].endswith("…[cut: 5000009 characters in all]"))  # fmt: skip
good("5 MB of reasoning in one event", chunks(chunk({"reasoning": "y" * 5 * MB}, "stop")) + DONE,
     has_reasoning_content=True, has_content=False,
     reasoning_content=ends_in("…[cut: 5000000 characters in all]"))  # fmt: skip
good("6 MB of sound in front of its transcript", document(completion(answer({"content": None,
     "audio": {"data": "A" * 6 * MB, "transcript": "Hello there."}}), usage=USAGE)), kind=JSON,
     content="Hello there.", total_tokens=30, finish_reason="stop")  # fmt: skip
good("5 MB of log probabilities in front of the text", document(completion({"logprobs": {"content":
     [{"token": "}]", "bytes": [1, 2], "top_logprobs": []}] * 80_000}, **answer({"content": "a"})},
     usage=USAGE)), kind=JSON, content="a", total_tokens=30)  # fmt: skip
good("6 MB of text", document(completion(answer({"content": "é" * 3 * MB}), usage=USAGE)),
     kind=JSON, content=ends_in("…[cut: 3000000 characters in all]"), total_tokens=30,
     finish_reason="stop")  # fmt: skip
good("6 MB of text in many deltas, then a call", chunks(*[chunk({"content": "z" * 100_000})] * 60,
     chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]},
     "tool_calls"), chunk(usage=USAGE)) + DONE, total_tokens=30, has_tool_calls=True,
     content=ends_in("…[cut: 6000000 characters in all]"))  # fmt: skip
good("6 MB of embeddings", document({"data": [{"embedding": [0.125] * 1000}] * 800,
     "usage": USAGE}), kind=JSON, path=EMBEDDINGS, total_tokens=30)  # fmt: skip
RESPONSE_OF_5_MB = {"object": "response", "id": "r1", "status": "completed", "output": [
    {"type": "message", "content": [{"type": "output_text", "text": "w" * 5 * MB}]}],
    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}  # fmt: skip
good("response.completed over the limit", b"event: response.completed\n" + chunks(
     {"type": "response.completed", "response": RESPONSE_OF_5_MB}), path=RESPONSES, total_tokens=7,
     finish_reason="completed",
     content=ends_in("…[cut: 5000000 characters in all]"))  # fmt: skip
good("a whole response over the limit", document(RESPONSE_OF_5_MB), kind=JSON, path=RESPONSES,
     total_tokens=7, content=ends_in("…[cut: 5000000 characters in all]"))  # fmt: skip
good("an image of 5 MB in a response", document({"object": "response", "status": "completed",
     "output": [{"type": "image_generation_call", "result": "A" * (5 * MB - 2) + "=="}],
     "usage": USAGE}), kind=JSON, path=RESPONSES,
     content="[image_generation_call 3749998 bytes]", total_tokens=30)  # fmt: skip
good("100,000 parts of content", document(completion(answer({"content": [{"type": "text", "text":
     "part of it"}] * 100_000}), usage=USAGE)), kind=JSON, total_tokens=30, finish_reason="stop",
     content=says("part of it", "[cut: ", " bytes in all]"))  # fmt: skip
wrong("an error behind 5 MB", chunks({"junk": "x" * 5 * MB, "error": {"message": "late"}}) + DONE,
      '{"message":"late"}')  # fmt: skip
wrong("5 MB of a page", b"<html>" + b"x" * 5 * MB, says("<html>xxx"), kind="text/html")

# 3. Tool calls are kept apart.
WEATHER, CLOCK = '{"city":"Bonn"}', '{"zone":"CET"}'


def piece(name: str | None, arguments: str | None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**more, "function": {k: v for k, v in function.items() if v is not None}}


def delta(*calls: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": list(calls)})


END_CALLS = chunks(chunk({}, "tool_calls")) + DONE
TWO = has_calls((None, "weather", WEATHER), (None, "clock", CLOCK))
for label, more in (("missing", {}), ("empty", {"id": ""}), ("null", {"id": None})):
    first, second = (
        piece("weather", WEATHER, index=0, **more),
        piece("clock", CLOCK, index=0, **more),
    )
    good(f"both index 0, ids {label}, one chunk", chunks(delta(first, second)) + END_CALLS,
         tool_calls=TWO)  # fmt: skip
    good(f"both index 0, ids {label}, two chunks", chunks(delta(first), delta(second)) + END_CALLS,
         tool_calls=TWO)  # fmt: skip
    good(f"both index 0, ids {label}, in pieces", chunks(
         delta(piece("weather", "", index=0, **more)), delta(piece(None, WEATHER[:6], index=0)),
         delta(piece(None, WEATHER[6:], index=0)), delta(piece("clock", "", index=0, **more)),
         delta(piece(None, CLOCK, index=0))) + END_CALLS, tool_calls=TWO)  # fmt: skip
    good(f"the same tool twice, ids {label}", chunks(delta(first), delta(first)) + END_CALLS,
         tool_calls=has_calls((None, "weather", WEATHER), (None, "weather", WEATHER)))  # fmt: skip
    good(f"the same tool twice, ids {label}, one chunk", chunks(delta(first, first)) + END_CALLS,
         tool_calls=has_calls((None, "weather", WEATHER), (None, "weather", WEATHER)))  # fmt: skip
    good(f"calls without arguments, ids {label}", chunks(delta(
         piece("weather", "", index=0, **more), piece("clock", "", index=0, **more))) + END_CALLS,
         tool_calls=has_calls((None, "weather", None), (None, "clock", None)))  # fmt: skip
good("no index and no id", chunks(delta(piece("weather", WEATHER)), delta(piece("clock", CLOCK)))
     + END_CALLS, tool_calls=TWO)  # fmt: skip
good("id and name in every piece", chunks(
     *[delta(piece("weather", part, index=0, id="a"))
       for part in ("", WEATHER[:7], WEATHER[7:], "")],
     delta(piece("clock", CLOCK, index=1, id="b"))) + END_CALLS,
     tool_calls=has_calls(("a", "weather", WEATHER), ("b", "clock", CLOCK)))  # fmt: skip
good("one id for all", chunks(delta(piece("weather", WEATHER, index=0, id="call")),
     delta(piece("clock", CLOCK, index=1, id="call"))) + END_CALLS,
     tool_calls=has_calls(("call", "weather", WEATHER), ("call", "clock", CLOCK)))  # fmt: skip
good("a whole call that is repeated", chunks(delta(piece("weather", WEATHER, index=0, id="a")),
     delta(piece("weather", WEATHER, index=0, id="a"))) + END_CALLS,
     tool_calls=has_calls(("a", "weather", WEATHER)))  # fmt: skip
good("brackets within strings complete nothing", chunks(delta(piece("f", '{"a":"}', index=0)),
     delta(piece("f", '\\"{[', index=0)), delta(piece("f", '"}', index=0))) + END_CALLS,
     tool_calls=has_calls((None, "f", '{"a":"}\\"{["}')))  # fmt: skip
good("interleaved by ids, all with index 0", chunks(delta(piece("f", "", index=0, id="a")),
     delta(piece("g", "", index=0, id="b")), delta(piece(None, "[1]", index=0, id="a")),
     delta(piece(None, "[2]", index=0, id="b"))) + END_CALLS,
     tool_calls=has_calls(("a", "f", "[1]"), ("b", "g", "[2]")))  # fmt: skip
good("vllm: a new id in each piece", chunks(delta(piece("f", "", index=0, id="a")),
     delta(piece(None, "[1", index=0, id="b")), delta(piece(None, "]", index=0, id="c")),
     delta(piece(None, "", index=0, id="d"))) + END_CALLS,
     tool_calls=has_calls(("a", "f", "[1]")))  # fmt: skip
good("a name in pieces", chunks(delta(piece("wea", None, index=0, id="a")),
     delta({"index": 0, "function": {"name": "ther"}}), delta(piece(None, "{}", index=0)))
     + END_CALLS, tool_calls=has_calls(("a", "weather", "{}")))  # fmt: skip

# 4. Reasoning under every name in use.
REASONING: dict[str, Any] = {
    "reasoning_content": "Hm.",
    "reasoning": "Hm.",
    "reasoning_text": "Hm.",
    "thinking": "Hm.",
    "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "index": 0}],
    "reasoning_details ": [{"type": "reasoning.summary", "summary": "Hm."},
                           {"type": "reasoning.encrypted", "data": "zz"}],
    "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "zz"}],
    "reasoning  ": {"type": "text", "text": "Hm."},
    "thinking ": {"thinking": "Hm."},
}  # fmt: skip
for name, value in REASONING.items():
    thought = {name.strip(): value}
    good(f"{name!r} whole", document(completion(answer({"content": "a", **thought}))), kind=JSON,
         reasoning_content="Hm.", has_reasoning_content=True, content="a")  # fmt: skip
    good(f"{name!r} streamed", chunks(chunk(thought), chunk({"content": "a"}, "stop")) + DONE,
         reasoning_content="Hm.", content="a")  # fmt: skip
good("reasoning under three names at once", chunks(*[chunk({"reasoning": text, "reasoning_content":
     text, "reasoning_details": [{"text": text}]}) for text in ("H", "m.")], chunk({}, "stop"))
     + DONE, reasoning_content="Hm.", content=None)  # fmt: skip
good("encrypted reasoning is no text", document(completion(answer({"content": "a",
     "reasoning_details": [{"type": "reasoning.encrypted", "data": "zz"}]}))), kind=JSON,
     has_reasoning_content=False)  # fmt: skip
good("responses: a reasoning item", document({"object": "response", "status": "completed",
     "output": [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text":
     "Hm."}]}]}), kind=JSON, path=RESPONSES, reasoning_content="Hm.")  # fmt: skip

# 5. Only the model's words are content.
LIFE = b'data: {}\n\ndata: {"type":"ping"}\n\nevent: ping\ndata: {"time":1}\n\ndata: heartbeat\n\n'
LIFE += b'data: {"status":"processing"}\n\ndata:\n\n: wait\n\nevent: keepalive\ndata: x\n\n'
good("signs of life around calls", LIFE + chunks(delta(piece("f", "{}", index=0, id="a"))) + LIFE
     + END_CALLS, content=None, content_preview=None, has_content=False)  # fmt: skip
good("signs of life around text", LIFE + TEXT + LIFE + STOP + DONE, content="Par")
good("an unknown event beside text", TEXT + b'data: {"token":"x"}\n\n' + STOP + DONE, content="Par")
good("a text of null", document(completion(answer({"content": [{"type": "text", "text": None}]}))),
     kind=JSON, content=None)  # fmt: skip

# 6. One notion of a stream.
WHOLE_STREAM = TEXT + STOP + chunks(chunk(usage=USAGE)) + DONE
for label, kinds in {
    "twice": ("text/event-stream", "text/event-stream; charset=utf-8"),
    "beside JSON": ("application/json", "text/event-stream"),
    "with parameters": ('text/event-stream;charset="utf-8";x=y',),
    "in capitals": ("Text/Event-Stream",),
    "missing": (),
    "JSON": ("application/json",),
    "plain": ("text/plain",),
    "octets": ("application/octet-stream",),
}.items():
    good(f"a stream, its type {label}", WHOLE_STREAM, kind=kinds, content="Par", total_tokens=30,
         finish_reason="stop", ttft_ms=lambda value: value is not None)  # fmt: skip
good("a stream with a comment first, its type missing", b": hi\n\n" + WHOLE_STREAM, kind=(),
     content="Par")  # fmt: skip
good("a completion that says it is a stream", document(completion(answer({"content": "a"}))),
     content="a", finish_reason="stop")  # fmt: skip
good("a completion without a type", document(completion(answer({"content": "a"}))), kind=(),
     content="a", ttft_ms=lambda value: value is not None)  # fmt: skip
