"""Responses in the shapes that providers send, and the transcript that each must give.

Written by hand after the formats of OpenAI, vLLM, OpenRouter (with Anthropic behind it),
Moonshot, Mistral, Gemini and Azure. `SHAPES` is plain data: the transcript tests read the bodies
from memory, whole and byte by byte; a relay test can send the same bytes over a socket.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from open_llm_proxy.server.transcript.transcript import ToolCall

JSON = "application/json"
STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class ResponseShape:
    """One response; ``expected`` names the transcript's fields that are not at their default."""

    name: str
    content_type: str | None
    status: int
    body: bytes
    expected: dict[str, object] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return (self.content_type or "").startswith("text/event-stream")


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def document(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def event(value: object, newline: bytes = b"\n") -> bytes:
    return b"data: " + compact(value).encode() + 2 * newline


def named_events(*values: dict[str, Any]) -> bytes:
    return b"".join(f"event: {value['type']}\n".encode() + event(value) for value in values)


def completion(*choices: dict[str, object], **more: object) -> dict[str, object]:
    head = {"id": "chatcmpl-A1", "object": "chat.completion", "created": 1775520000, "model": "m"}
    return {**head, "choices": list(choices), **more}


def answer(message: dict[str, object], finish: str = "stop", **more: object) -> dict[str, object]:
    message = {"role": "assistant", **message}
    return {"index": 0, "message": message, "finish_reason": finish, **more}


def chunk(
    delta: dict[str, object] | None = None,
    finish: str | None = None,
    index: int = 0,
    **more: object,
) -> dict[str, object]:
    head = {"id": "chatcmpl-S1", "object": "chat.completion.chunk", "created": 1775520000}
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {**head, "model": "m", "choices": choices, **more}


def chunks(*values: object, newline: bytes = b"\n") -> bytes:
    return b"".join(event(value, newline) for value in values)


def call_delta(index: int | None, **parts: object) -> dict[str, object]:
    """A delta with one piece of a tool call: id=, name=, arguments=."""
    function = {name: parts[name] for name in ("name", "arguments") if name in parts}
    call: dict[str, object] = {} if index is None else {"index": index}
    if "id" in parts:
        call |= {"id": parts["id"], "type": "function"}
    return {"tool_calls": [{**call, "function": function}]}


USAGE: dict[str, Any] = {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30}
COUNTS: dict[str, Any] = {**USAGE, "usage_json": compact(USAGE)}
DETAILED_USAGE: dict[str, Any] = {
    **USAGE,
    "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
DETAILED_COUNTS: dict[str, Any] = {
    **USAGE,
    "cached_tokens": 16,
    "reasoning_tokens": 4,
    "usage_json": compact(DETAILED_USAGE),
}
RESPONSES_USAGE: dict[str, Any] = {
    "input_tokens": 40,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 52,
}
RESPONSES_COUNTS: dict[str, Any] = {
    "prompt_tokens": 40,
    "completion_tokens": 12,
    "total_tokens": 52,
    "cached_tokens": 8,
    "reasoning_tokens": 5,
    "usage_json": compact(RESPONSES_USAGE),
}
LOGPROBS = {"content": [{"token": "Yes", "logprob": -0.01, "bytes": [89], "top_logprobs": []}]}
PNG = "data:image/png;base64," + "iVBORw0KGgoA" * 100
AREAS = '{"query":"SELECT count(*) FROM areas"}'

SHAPES: list[ResponseShape] = []


def shape(
    name: str, body: bytes, *, status: int = 200, kind: str | None = JSON, **expected: Any
) -> None:
    SHAPES.append(ResponseShape(name, kind, status, body, expected))


def whole(name: str, value: object, *, status: int = 200, **expected: Any) -> None:
    if isinstance(value, dict) and value.get("id") == "chatcmpl-A1":
        expected.setdefault("response_id", "chatcmpl-A1")
    shape(name, document(value), status=status, **expected)


def stream(name: str, body: bytes, *, done: bool = True, **expected: Any) -> None:
    if b'"chatcmpl-S1"' in body:
        expected.setdefault("response_id", "chatcmpl-S1")
    expected.setdefault("saw_done", done)
    shape(name, body + (DONE if done else b""), kind=STREAM, **expected)


whole(
    "openai: text",
    completion(
        answer({"content": "Nine areas.", "refusal": None, "annotations": []}, logprobs=None),
        usage=DETAILED_USAGE,
        service_tier="default",
    ),
    content="Nine areas.",
    finish_reason="stop",
    **DETAILED_COUNTS,
)
whole(
    "openai: two parallel tool calls",
    completion(
        answer(
            {
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_a",
                        "type": "function",
                        "function": {"name": "run_sql", "arguments": AREAS},
                    },
                    {
                        "id": "call_b",
                        "type": "custom",
                        "custom": {"name": "draw", "input": "a map"},
                    },
                ],
            },
            "tool_calls",
        ),
        usage=USAGE,
    ),
    tool_calls=[ToolCall("call_a", "run_sql", AREAS), ToolCall("call_b", "draw", "a map")],
    finish_reason="tool_calls",
    **COUNTS,
)
whole(
    "openai: n=2, the second choice first",
    completion({**answer({"content": "Two."}, "length"), "index": 1}, answer({"content": "One."})),
    content="One.\n\n[choice 1]\nTwo.",
    finish_reason="stop",
)
whole(
    "openai: logprobs",
    completion(answer({"content": "Yes"}, logprobs=LOGPROBS), usage=USAGE),
    content="Yes",
    finish_reason="stop",
    **COUNTS,
)
whole(
    "openai: refusal",
    completion(answer({"content": None, "refusal": "I will not help with that."})),
    content="I will not help with that.",
    finish_reason="stop",
)
whole(
    "openai: legacy function call",
    completion(
        answer(
            {"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call"
        )
    ),
    tool_calls=[ToolCall(None, "f", "{}")],
    finish_reason="function_call",
)
whole(
    "openai: spoken answer",
    completion(
        answer({"content": None, "audio": {"id": "au1", "data": "Ukl=", "transcript": "Hello."}})
    ),
    content="Hello.",
    finish_reason="stop",
)
whole(
    "vllm: qwen reasoning",
    completion(
        answer({"content": "\n\n42", "reasoning_content": "6 times 7.", "tool_calls": []}),
        usage={**USAGE, "prompt_tokens_details": None},
        prompt_logprobs=None,
        kv_transfer_params=None,
    ),
    content="\n\n42",
    reasoning_content="6 times 7.",
    finish_reason="stop",
    **{**COUNTS, "usage_json": compact({**USAGE, "prompt_tokens_details": None})},
)
whole(
    "vllm: glm reasoning under both names",
    completion(answer({"content": "Ok", "reasoning": "Short.", "reasoning_content": "Short."})),
    content="Ok",
    reasoning_content="Short.",
    finish_reason="stop",
)
whole(
    "openrouter: anthropic with reasoning details and cost",
    completion(
        answer(
            {
                "content": "Done.",
                "reasoning": "Check first.",
                "reasoning_details": [{"type": "reasoning.text", "text": "Check first."}],
                "refusal": None,
            },
            native_finish_reason="end_turn",
        ),
        id="gen-1775520000-Zq",
        provider="Anthropic",
        usage={**USAGE, "cost": 0.00123, "is_byok": False},
    ),
    content="Done.",
    reasoning_content="Check first.",
    finish_reason="stop",
    response_id="gen-1775520000-Zq",
    **{**COUNTS, "usage_json": compact({**USAGE, "cost": 0.00123, "is_byok": False})},
    cost_usd=0.00123,
)
whole(
    "openrouter: error inside a choice",
    completion(
        {**answer({"content": "Par"}, "error"), "error": {"code": 502, "message": "Overloaded"}}
    ),
    content="Par",
    finish_reason="error",
    error='{"code":502,"message":"Overloaded"}',
)
whole(
    "openrouter: generated image",
    completion(
        answer(
            {"content": "Here:", "images": [{"type": "image_url", "image_url": {"url": PNG}}]},
        )
    ),
    content="Here:\n[image/png 900 bytes]",
    finish_reason="stop",
)
whole(
    "content as a list of parts",
    completion(
        answer(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "See:"},
                    {"type": "image_url", "image_url": {"url": PNG}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAA"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "image_url", "image_url": "https://example.org/a.png"},
                ]
            }
        )
    ),
    content="See:\n[image/png 900 bytes]\n[a.pdf file 3 bytes]\n[audio/wav 3 bytes]\n"
    "[image_url https://example.org/a.png]",
    reasoning_content="Hm.",
    finish_reason="stop",
)
whole(
    "fields of wrong types",
    completion(
        answer(
            {
                "content": 7,
                "tool_calls": [
                    {
                        "id": 12,
                        "type": "function",
                        "function": {"name": "f", "arguments": {"a": 1}},
                    },
                    {"id": "call_c", "type": "function"},
                    "odd",
                ],
            },
        ),
        id=99,
        usage={"prompt_tokens": "21", "completion_tokens": 9.0, "total_tokens": "many"},
    ),
    content="7",
    tool_calls=[
        ToolCall("12", "f", '{"a":1}'),
        ToolCall("call_c", None, None),
        ToolCall(None, None, "odd"),
    ],
    finish_reason="stop",
    prompt_tokens=21,
    completion_tokens=9,
    usage_json='{"prompt_tokens":"21","completion_tokens":9.0,"total_tokens":"many"}',
    response_id="99",
)
whole(
    "completions: text",
    {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"text": " in Gabon", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": USAGE,
    },
    content=" in Gabon",
    finish_reason="length",
    response_id="cmpl-1",
    **COUNTS,
)
whole(
    "embeddings",
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -0.25, 1e-7]}],
        "model": "e",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    },
    prompt_tokens=5,
    total_tokens=5,
    usage_json='{"prompt_tokens":5,"total_tokens":5}',
)
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "output": [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Count them."}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Counting.", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_r",
            "name": "run_sql",
            "arguments": AREAS,
        },
    ],
    "usage": RESPONSES_USAGE,
}
RESPONSE_EXPECTED: dict[str, Any] = {
    "content": "Counting.",
    "reasoning_content": "Count them.",
    "tool_calls": [ToolCall("call_r", "run_sql", AREAS)],
    "finish_reason": "completed",
    "response_id": "resp_1",
    **RESPONSES_COUNTS,
}
whole("responses: reasoning, text and a function call", RESPONSE, **RESPONSE_EXPECTED)
whole(
    "responses: incomplete, two messages, an image",
    {
        **RESPONSE,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "A"}]},
            {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]},
            {"type": "image_generation_call", "id": "ig_1", "result": "AAAAAAAA"},
        ],
    },
    content="A\n\nNo.\n\n[image_generation_call 6 bytes]",
    finish_reason="max_output_tokens",
    response_id="resp_1",
    **RESPONSES_COUNTS,
)
whole(
    "error: openai 401",
    {"error": {"message": "Incorrect key.", "type": "invalid_request_error", "code": None}},
    status=401,
    error='{"message":"Incorrect key.","type":"invalid_request_error","code":null}',
)
whole(
    "error: vllm 400",
    {"object": "error", "message": "Too long.", "type": "BadRequestError", "code": 400},
    status=400,
    error='{"object":"error","message":"Too long.","type":"BadRequestError","code":400}',
)
whole("error: fastapi 404", {"detail": "Not Found"}, status=404, error='{"detail":"Not Found"}')
whole("error: a string, 429", {"error": "Slow down."}, status=429, error="Slow down.")
whole(
    "error: openrouter 429 with the provider's own words",
    {"error": {"message": "Provider", "code": 429, "metadata": {"raw": "busy"}}, "user_id": "u"},
    status=429,
    error='{"message":"Provider","code":429,"metadata":{"raw":"busy"}}',
)
shape(
    "error: html 502",
    b"<html><head><title>502 Bad Gateway</title></head></html>\r\n",
    status=502,
    kind="text/html",
    raw_text="<html><head><title>502 Bad Gateway</title></head></html>\r\n",
)
shape("error: empty 503", b"", status=503, kind=None)
shape("not JSON", b"upstream said no", raw_text="upstream said no")
shape("JSON of an unknown shape", b'{"results": [1]}', raw_text='{"results": [1]}')
shape("JSON, but no object", b'["a"]', raw_text='["a"]')
shape(
    "JSON that breaks off inside the text",
    document(completion(answer({"content": "The answer is forty"}), usage=USAGE)).split(b"ty")[0],
    content="The answer is for",
    response_id="chatcmpl-A1",
)
shape(
    "invalid UTF-8",
    b'{"choices":[{"message":{"content":"caf\xe9"},"finish_reason":"stop"}]}',
    content="caf\ufffd",
    finish_reason="stop",
)
shape(
    "lone surrogate, NUL and NaN",
    b'{"choices":[{"message":{"content":"a\\ud800b\\u0000"}}],"usage":{"prompt_tokens":NaN}}',
    content="a\ud800b\0",
    usage_json='{"prompt_tokens":null}',
)

stream(
    "openai stream: text and the usage that was asked for",
    chunks(
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None),
        chunk({"content": "Nine"}, usage=None),
        chunk({"content": " areas."}, usage=None),
        chunk({}, "stop", usage=None),
        chunk(usage=DETAILED_USAGE),
    ),
    content="Nine areas.",
    finish_reason="stop",
    **DETAILED_COUNTS,
)
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
for name, usages in {
    "zeros behind the usage": (USAGE, ZEROS),
    "zeros before the usage": (ZEROS, USAGE),
    "a usage that grows": ({**USAGE, "completion_tokens": 0, "total_tokens": 0}, USAGE),
    "a usage without its completion behind the usage": (
        USAGE,
        {"prompt_tokens": USAGE["prompt_tokens"], "completion_tokens": 0},
    ),
    "empty usages around the usage": ({}, None, USAGE, {}, None),
}.items():
    stream(
        name,
        chunks(chunk({"content": "a"}, "stop"), *(chunk(usage=usage) for usage in usages)),
        content="a",
        finish_reason="stop",
        **COUNTS,
    )
stream(
    "openai stream: parallel tool calls by index, interleaved",
    chunks(
        chunk({"role": "assistant", "content": None}),
        chunk(call_delta(0, id="call_a", name="run_sql", arguments="")),
        chunk(call_delta(1, id="call_b", name="draw", arguments='{"z"')),
        chunk(call_delta(0, arguments=AREAS[:9])),
        chunk(call_delta(1, arguments=":3}")),
        chunk(call_delta(0, arguments=AREAS[9:])),
        chunk({}, "tool_calls"),
    ),
    tool_calls=[ToolCall("call_a", "run_sql", AREAS), ToolCall("call_b", "draw", '{"z":3}')],
    finish_reason="tool_calls",
)
stream(
    "openai stream: n=2, interleaved",
    chunks(
        chunk({"content": "One"}),
        chunk({"content": "Two"}, index=1),
        chunk({"content": "."}, "stop"),
        chunk({"content": "!"}, "length", index=1),
    ),
    content="One.\n\n[choice 1]\nTwo!",
    finish_reason="stop",
)
stream(
    "openai stream: legacy function call",
    chunks(
        chunk({"function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a":'}}),
        chunk({"function_call": {"arguments": "1}"}}, "function_call"),
    ),
    tool_calls=[ToolCall(None, "f", '{"a":1}')],
    finish_reason="function_call",
)
stream(
    "openai stream: logprobs",
    chunks(
        {
            **chunk(),
            "choices": [{"index": 0, "delta": {"content": "Yes"}, "logprobs": LOGPROBS}],
        },
        chunk({}, "stop"),
    ),
    content="Yes",
    finish_reason="stop",
)
stream(
    "azure stream: the filter's result first",
    chunks(
        {"choices": [], "id": "", "object": "", "prompt_filter_results": [{"prompt_index": 0}]},
        chunk({"content": "Hi"}, "stop"),
    ),
    content="Hi",
    finish_reason="stop",
)
stream(
    "vllm stream: kimi reasoning, CR LF",
    chunks(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Let me "}),
        chunk({"reasoning_content": "see."}),
        chunk({"content": "Seen."}),
        chunk({"content": ""}, "stop", stop_reason=None),
        newline=b"\r\n",
    ),
    content="Seen.",
    reasoning_content="Let me see.",
    finish_reason="stop",
)
stream(
    "vllm stream: qwen reasoning under both names, running usage",
    chunks(
        chunk({"reasoning": "Hm", "reasoning_content": "Hm"}, usage={"prompt_tokens": 21}),
        chunk({"content": "42"}, "stop", usage=USAGE),
    ),
    content="42",
    reasoning_content="Hm",
    finish_reason="stop",
    **COUNTS,
)
stream(
    "vllm stream: an older version, a new id in each delta of one call",
    chunks(
        chunk(call_delta(0, id="chatcmpl-tool-1", name="f")),
        chunk(call_delta(0, id="chatcmpl-tool-2", arguments="{")),
        chunk(call_delta(0, id="chatcmpl-tool-3", arguments="}"), "tool_calls"),
    ),
    tool_calls=[ToolCall("chatcmpl-tool-1", "f", "{}")],
    finish_reason="tool_calls",
)
stream(
    "gemini stream: parallel calls, all with index 0",
    chunks(
        chunk(call_delta(0, id="c1", name="f", arguments="{}")),
        chunk(call_delta(0, id="c2", name="f", arguments='{"b":2}'), "tool_calls"),
    ),
    tool_calls=[ToolCall("c1", "f", "{}"), ToolCall("c2", "f", '{"b":2}')],
    finish_reason="tool_calls",
)
stream(
    "tool calls without an index",
    chunks(
        chunk(call_delta(None, id="c1", name="f", arguments="{")),
        chunk(call_delta(None, arguments="}")),
        chunk(call_delta(None, id="c2", name="g", arguments="[")),
        chunk(call_delta(None, id="c2", name="g", arguments="]")),
        chunk(call_delta(None, id="c3", arguments="3"), "tool_calls"),
    ),
    tool_calls=[ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "[]"), ToolCall("c3", None, "3")],
    finish_reason="tool_calls",
)
stream(
    "glm stream: no space behind the colon, the whole message in the last chunk",
    b"".join(
        b"data:" + compact(value).encode() + b"\n\n"
        for value in (
            chunk({"reasoning_content": "Hm."}),
            chunk({"content": "So."}),
            {
                **chunk(),
                "choices": [{"index": 0, "message": {"content": "So."}, "finish_reason": "stop"}],
            },
        )
    ),
    content="So.",
    reasoning_content="Hm.",
    finish_reason="stop",
)
stream(
    "moonshot stream: usage inside the choice",
    chunks(
        chunk({"content": "Hi"}),
        {
            **chunk(),
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}],
        },
    ),
    content="Hi",
    finish_reason="stop",
    **COUNTS,
)
stream(
    "mistral stream: thinking as parts of the content",
    chunks(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "."}]}]}),
        chunk({"content": [{"type": "text", "text": "Yes"}]}),
        chunk({"content": "."}, "stop"),
    ),
    content="Yes.",
    reasoning_content="Hm.",
    finish_reason="stop",
)
stream(
    "openrouter stream: anthropic with comments, reasoning details and cost",
    b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
    + chunks(
        chunk({"content": "", "reasoning": "Check", "reasoning_details": [{"text": "Check"}]}),
        chunk({"content": "", "reasoning": " it.", "reasoning_details": [{"text": " it."}]}),
    )
    + b": OPENROUTER PROCESSING\n\n"
    + chunks(
        chunk({"content": "Checked."}, native_finish_reason=None),
        chunk({"content": ""}, "stop", usage={**USAGE, "cost": 0.5}),
    ),
    content="Checked.",
    reasoning_content="Check it.",
    finish_reason="stop",
    **{**COUNTS, "usage_json": compact({**USAGE, "cost": 0.5})},
    cost_usd=0.5,
)
stream(
    "openrouter stream: error in mid-stream",
    chunks(
        chunk({"content": "Par"}),
        chunk({"content": ""}, "error", error={"code": 502, "message": "Provider gone"}),
    ),
    content="Par",
    finish_reason="error",
    error='{"code":502,"message":"Provider gone"}',
)
stream(
    "error event, and no end",
    chunks(chunk({"content": "Par"})) + b'event: error\ndata: {"error":{"message":"Lost"}}\n\n',
    done=False,
    content="Par",
    error='{"message":"Lost"}',
)
stream(
    "two error events",
    chunks({"error": {"message": "Lost"}}, {"error": "No more."}),
    error='{"message":"Lost"}',
)
stream(
    "invalid UTF-8 in an event",
    b'data: {"choices":[{"delta":{"content":"caf\xe9"}}]}\n\n',
    content="caf\ufffd",
)
stream(
    "broken off inside an event",
    chunks(chunk({"content": "Half an ans"})) + event(chunk({"content": "wer"}))[:90],
    done=False,
    content="Half an ans",
    raw_text=event(chunk({"content": "wer"}))[6:90].decode(),
)
stream(
    "broken off before the blank line",
    chunks(chunk({"content": "All"}, "stop")).rstrip(b"\n"),
    done=False,
    content="All",
    finish_reason="stop",
)
stream(
    "byte order mark, events over several data lines, other fields, CR only",
    b"\xef\xbb\xbf"
    + b'id: 7\rretry: 100\rdata: {"choices":\rdata: [{"delta":{"content":\r'
    + 'data: "Zażółć 森林 🌲"}}]}\r\r'.encode(),
    content="Zażółć 森林 🌲",
)
stream(
    "surrogate pair in two deltas",
    b'data: {"choices":[{"delta":{"content":"tree \\ud83c"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\\udf32."}}]}\n\n',
    content="tree 🌲.",
)
stream(
    "events that are no JSON, or nothing known",
    chunks(chunk({"content": "a"}))
    + b'data: {"choi\n\ndata: {"token": {"text": "b"}}\n\ndata: {"type": "ping"}\n\n'
    + chunks(chunk({"content": "c"}, "stop")),
    content="ac",
    finish_reason="stop",
    raw_text='{"choi\n{"token": {"text": "b"}}',
)
stream(
    "deltas of wrong types",
    chunks(
        chunk({"content": 1, "tool_calls": {"index": 0}}),
        chunk({"content": {"type": "text", "text": "+"}, "reasoning_content": [2]}),
        chunk({"content": True, "tool_calls": [{"index": "0", "function": "f"}]}, "stop"),
        {"choices": [None, 3, {"index": {}, "delta": "."}]},
    ),
    content="1+true.",
    tool_calls=[ToolCall(None, "f", None)],
    finish_reason="stop",
)
stream(
    "completions stream",
    chunks(
        {"id": "cmpl-2", "choices": [{"text": " in", "index": 0, "finish_reason": None}]},
        {"id": "cmpl-2", "choices": [{"text": " Gabon", "index": 0, "finish_reason": "stop"}]},
    ),
    content=" in Gabon",
    finish_reason="stop",
    response_id="cmpl-2",
)
CREATED: dict[str, Any] = {**RESPONSE, "status": "in_progress", "output": [], "usage": None}
stream(
    "responses stream: reasoning, text and a function call",
    named_events(
        {"type": "response.created", "response": CREATED},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"type": "reasoning", "id": "rs_1", "summary": []},
        },
        {
            "type": "response.reasoning_summary_text.delta",
            "output_index": 0,
            "summary_index": 0,
            "delta": "Count ",
        },
        {
            "type": "response.reasoning_summary_text.delta",
            "output_index": 0,
            "summary_index": 0,
            "delta": "them.",
        },
        {
            "type": "response.output_text.delta",
            "output_index": 1,
            "content_index": 0,
            "delta": "Count",
        },
        {
            "type": "response.output_text.delta",
            "output_index": 1,
            "content_index": 0,
            "delta": "ing.",
        },
        {
            "type": "response.output_text.done",
            "output_index": 1,
            "content_index": 0,
            "text": "Counting.",
        },
        {
            "type": "response.output_item.added",
            "output_index": 2,
            "item": {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_r",
                "name": "run_sql",
                "arguments": "",
            },
        },
        {
            "type": "response.function_call_arguments.delta",
            "output_index": 2,
            "delta": AREAS[:11],
        },
        {
            "type": "response.function_call_arguments.delta",
            "output_index": 2,
            "delta": AREAS[11:],
        },
        {
            "type": "response.output_item.done",
            "output_index": 2,
            "item": RESPONSE["output"][2],
        },
        {"type": "response.completed", "response": RESPONSE},
    ),
    done=False,
    saw_done=True,
    **RESPONSE_EXPECTED,
)
stream(
    "responses stream: no deltas, only the last event",
    named_events({"type": "response.completed", "response": RESPONSE}),
    done=False,
    saw_done=True,
    **RESPONSE_EXPECTED,
)
stream(
    "responses stream: events that do not say which output they belong to",
    named_events(
        {"type": "response.reasoning_text.delta", "delta": "Count them."},
        {"type": "response.output_text.delta", "delta": "Counting."},
        {
            "type": "response.output_item.added",
            "item": {"type": "function_call", "call_id": "call_r", "name": "run_sql"},
        },
        {"type": "response.function_call_arguments.delta", "delta": AREAS[:5]},
        {"type": "response.function_call_arguments.delta", "delta": AREAS[5:]},
        {"type": "response.completed", "response": RESPONSE},
    ),
    done=False,
    saw_done=True,
    **RESPONSE_EXPECTED,
)
stream(
    "responses stream: failed",
    named_events(
        {"type": "response.created", "response": CREATED},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "Par"},
        {
            "type": "response.failed",
            "response": {**CREATED, "status": "failed", "error": {"code": "server_error"}},
        },
    ),
    done=False,
    saw_done=True,
    content="Par",
    finish_reason="failed",
    error='{"code":"server_error"}',
    response_id="resp_1",
)
stream(
    "responses stream: error event",
    named_events({"type": "error", "code": "rate_limit", "message": "Later.", "param": None}),
    done=False,
    error='{"type":"error","code":"rate_limit","message":"Later.","param":null}',
)
shape(
    "a stream that says it is JSON",
    chunks(chunk({"content": "Hi"}, "stop")) + DONE,
    content="Hi",
    finish_reason="stop",
    saw_done=True,
    response_id="chatcmpl-S1",
)
shape(
    "an error that says it is a stream",
    document({"error": {"message": "No model."}}),
    status=404,
    kind=STREAM,
    error='{"message":"No model."}',
)
shape("a stream of comments only", b": wait\n\n: wait\n\n", kind=STREAM)
