"""Answers of real engines and providers beside the ones in `response_shapes.py`.

Written by hand after their documents: vLLM, SGLang, llama.cpp's server, Ollama, OpenRouter,
Anthropic's and Gemini's compatible endpoints, MiniMax, DeepSeek and GLM. Importing this module adds
them to `SHAPES`.
"""

from open_llm_proxy.server.transcript.transcript import ToolCall
from response_shapes import (
    AREAS,
    COUNTS,
    USAGE,
    answer,
    call_delta,
    chunk,
    chunks,
    compact,
    completion,
    stream,
    whole,
)

stream(
    "vllm stream: reasoning parser, tool parser, stop_reason, usage in the last chunk",
    chunks(
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=None),
        chunk({"reasoning": "Look", "reasoning_content": "Look"}, token_ids=None),
        chunk({"reasoning": " up.", "reasoning_content": " up."}),
        chunk(call_delta(0, id="chatcmpl-tool-9f", name="run_sql")),
        chunk(call_delta(0, arguments=AREAS[:12])),
        chunk(call_delta(0, arguments=AREAS[12:])),
        chunk({"content": ""}, "tool_calls", stop_reason=None),
        chunk(usage=USAGE),
    ),
    reasoning_content="Look up.",
    tool_calls=[ToolCall("chatcmpl-tool-9f", "run_sql", AREAS)],
    finish_reason="tool_calls",
    **COUNTS,
)
SGLANG_USAGE = {**USAGE, "prompt_tokens_details": None, "reasoning_tokens": 4}
stream(
    "sglang stream: matched_stop, nulls in every delta, usage beside the choices",
    chunks(
        chunk({"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}),
        chunk({"role": None, "content": None, "reasoning_content": "Hm.", "tool_calls": None}),
        chunk({"role": None, "content": "42", "reasoning_content": None, "tool_calls": None}),
        {
            **chunk(),
            "choices": [
                {"index": 0, "delta": {"content": None}, "finish_reason": "stop", "matched_stop": 2}
            ],
        },
        chunk(usage=SGLANG_USAGE),
    ),
    content="42",
    reasoning_content="Hm.",
    finish_reason="stop",
    reasoning_tokens=4,
    **{**COUNTS, "usage_json": compact(SGLANG_USAGE)},
)
stream(
    "llama.cpp stream: timings, and a progress of the prompt",
    chunks(
        chunk(prompt_progress={"total": 21, "processed": 10}),
        chunk({"role": "assistant", "content": None}),
        chunk({"content": "Hi"}),
        chunk({}, "stop"),
        chunk(usage=USAGE, timings={"prompt_n": 21, "predicted_per_second": 41.5}),
    ),
    content="Hi",
    finish_reason="stop",
    **COUNTS,
)
stream(
    "ollama stream: a fingerprint, reasoning, calls whole and all with index 0",
    chunks(
        chunk({"role": "assistant", "content": "", "reasoning": "Two."}, system_fingerprint="fp"),
        chunk(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": f"call_{i}",
                        "index": 0,
                        "type": "function",
                        "function": {"name": name, "arguments": "{}"},
                    }
                    for i, name in enumerate(("weather", "clock"))
                ],
            }
        ),
        chunk({"role": "assistant", "content": ""}, "tool_calls"),
    ),
    reasoning_content="Two.",
    tool_calls=[ToolCall("call_0", "weather", "{}"), ToolCall("call_1", "clock", "{}")],
    finish_reason="tool_calls",
)
OPENROUTER_USAGE = {**USAGE, "cost": 0.00014, "cost_details": {"upstream_inference_cost": None}}
stream(
    "openrouter stream: reasoning details of summaries alone, encrypted ones, cost",
    b": OPENROUTER PROCESSING\n\n"
    + chunks(
        chunk({"reasoning_details": [{"type": "reasoning.summary", "summary": "Sum", "index": 0}]}),
        chunk(
            {"reasoning_details": [{"type": "reasoning.summary", "summary": "med.", "index": 0}]}
        ),
        chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": "AAAA"}]}),
        chunk({"content": "So."}, "stop", native_finish_reason="completed"),
        chunk({"role": "assistant", "content": ""}, usage=OPENROUTER_USAGE),
    ),
    content="So.",
    reasoning_content="Summed.",
    finish_reason="stop",
    cost_usd=0.00014,
    **{**COUNTS, "usage_json": compact(OPENROUTER_USAGE)},
)
whole(
    "anthropic, compatible: empty fields that it does not support",
    completion(
        answer({"content": "Hello.", "refusal": "", "tool_calls": []}),
        usage={**USAGE, "completion_tokens_details": None},
        service_tier=None,
    ),
    content="Hello.",
    finish_reason="stop",
    **{**COUNTS, "usage_json": compact({**USAGE, "completion_tokens_details": None})},
)
stream(
    "anthropic behind a gateway: thinking blocks, pings by name",
    b'event: ping\ndata: {"type": "ping"}\n\n'
    + chunks(
        chunk({"thinking_blocks": [{"type": "thinking", "thinking": "We", "signature": None}]}),
        chunk({"thinking_blocks": [{"type": "thinking", "thinking": "ll.", "signature": None}]}),
        chunk({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "AA=="}]}),
        chunk({"content": "Well."}, "stop"),
    ),
    content="Well.",
    reasoning_content="Well.",
    finish_reason="stop",
)
stream(
    "gemini stream: calls whole, their index missing, a thought signature beside them",
    chunks(
        chunk(
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "extra_content": {"google": {"thought_signature": "AAAA"}},
                        "function": {"arguments": '{"city":"Bonn"}', "name": "weather"},
                        "id": "",
                        "type": "function",
                    },
                    {
                        "function": {"arguments": "{}", "name": "clock"},
                        "id": "",
                        "type": "function",
                    },
                ],
            },
            "tool_calls",
            usage=USAGE,
        )
    ),
    tool_calls=[ToolCall(None, "weather", '{"city":"Bonn"}'), ToolCall(None, "clock", "{}")],
    finish_reason="tool_calls",
    **COUNTS,
)
MINIMAX = {"base_resp": {"status_code": 0, "status_msg": ""}, "input_sensitive": False}
stream(
    "minimax stream: reasoning details, then the whole message again, and no [DONE]",
    chunks(
        chunk({"reasoning_details": [{"type": "reasoning.text", "text": "Hm", "index": 0}]}),
        chunk({"reasoning_details": [{"type": "reasoning.text", "text": ".", "index": 0}]}),
        chunk({"content": "So", "name": "MiniMax AI"}),
        chunk({"content": "."}, "stop"),
        {
            **completion(
                answer({"content": "So.", "reasoning_details": [{"text": "Hm."}]}), usage=USAGE
            ),
            **MINIMAX,
            "id": "chatcmpl-S1",
        },
    ),
    done=False,
    content="So.",
    reasoning_content="Hm.",
    finish_reason="stop",
    **COUNTS,
)
DEEPSEEK_USAGE = {**USAGE, "prompt_cache_hit_tokens": 16, "prompt_cache_miss_tokens": 5}
stream(
    "deepseek stream: keep-alive comments, cache hits",
    b": keep-alive\n\n: keep-alive\n\n"
    + chunks(
        chunk({"role": "assistant", "content": None, "reasoning_content": "Hm."}),
        chunk({"content": "So.", "reasoning_content": None}),
        chunk({"content": "", "reasoning_content": None}, "stop", usage=DEEPSEEK_USAGE),
    ),
    content="So.",
    reasoning_content="Hm.",
    finish_reason="stop",
    cached_tokens=16,
    **{**COUNTS, "usage_json": compact(DEEPSEEK_USAGE)},
)
stream(
    "glm stream: a call whole in one chunk, a web search beside it",
    chunks(
        chunk({"role": "assistant", "content": ""}, web_search=[{"link": "https://example.org"}]),
        chunk(call_delta(0, id="call_7", name="run_sql", arguments=AREAS), "tool_calls"),
    ),
    tool_calls=[ToolCall("call_7", "run_sql", AREAS)],
    finish_reason="tool_calls",
)
