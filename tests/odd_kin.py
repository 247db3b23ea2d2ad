"""More odd answers of the kinds in `odd_answers.py`: relatives of its examples, found later.

Importing this module adds them to `ODD_ANSWERS`.
"""

from typing import Any

from odd_answers import (
    COMPLETIONS,
    EMBEDDINGS,
    END_CALLS,
    MB,
    RESPONSES,
    STOP,
    TEXT,
    delta,
    good,
    has_calls,
    piece,
    says,
    wrong,
)
from response_shapes import DONE, JSON, USAGE, answer, chunk, chunks, completion, document

WHOLE = document(completion(answer({"content": "a"})))


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + chunks({"type": kind, **fields})


COMPLETED = event("response.completed", response={"object": "response", "status": "completed"})

# 1. `ok` means an answer.
for name in ("failed", "errors", "throttlingException"):
    wrong(f"an event named {name}", TEXT + f"event: {name}\ndata: gone\n\n".encode() + STOP + DONE,
          "gone", content="Par")  # fmt: skip
wrong("words behind whole JSON", WHOLE + b"\nTimeout", "Timeout", kind=JSON, content="a")
wrong("an error behind whole JSON", WHOLE + b'{"error":"late"}', '{"error":"late"}', kind=JSON)
wrong("an empty vector", b'{"data":[{"embedding":[]}]}', says("embedding"), kind=JSON,
      path=EMBEDDINGS)  # fmt: skip
good("an mcp call that failed is no failed response", event("response.mcp_call.failed")
     + event("response.output_text.delta", delta="a") + COMPLETED, path=RESPONSES,
     content="a")  # fmt: skip
good("a notice within an answer that comes to its end", TEXT + b'event: warning\ndata: {"message":'
     b'"slow"}\n\n' + STOP + DONE, content="Par", finish_reason="stop")  # fmt: skip
wrong("a comment that tells why the text ends", TEXT + b": error: GPU lost\n\n" + DONE,
      "error: GPU lost", content="Par")  # fmt: skip
wrong("dashscope: the word null as finish reason, and no end", chunks(chunk({"content": "Par"},
      "null")), says("without a finish_reason"), finish_reason=None)  # fmt: skip

# 2. A limit costs text, never facts.
good("6 MB of search results in front of the text", chunks({"search_results": [{"title": "t" * 200}]
     * 30_000, "id": "p1", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason":
     "stop"}], "usage": USAGE}) + DONE, content="a", finish_reason="stop",
     total_tokens=30)  # fmt: skip
wrong("an error of 5 MB, its code behind it", chunks({"error": {"message": "x" * 5 * MB, "code":
      7}}) + DONE, says("…[cut: 5000000 characters in all]", '"code":7'))  # fmt: skip
wrong("an error event of 5 MB of words", b"event: error\ndata: " + b"x" * 5 * MB + b"\n\n",
      says("xxx…[cut: 5000000 bytes in all]"))  # fmt: skip

# 3. Tool calls are kept apart.
BOTH = {"function_call": {"name": "f", "arguments": "{}"}, "tool_calls": [piece("f", "{}", id="a")]}
good("a call in the old form beside the new one", document(completion(answer({"content": None,
     **BOTH}, "tool_calls"))), kind=JSON, tool_calls=has_calls(("a", "f", "{}")))  # fmt: skip
good("both forms, streamed", chunks(chunk(BOTH)) + END_CALLS,
     tool_calls=has_calls(("a", "f", "{}")))  # fmt: skip
good("name and arguments without function", chunks(delta({"index": 0, "id": "a", "name": "f",
     "arguments": "{"}), delta({"index": 0, "arguments": "}"})) + END_CALLS,
     tool_calls=has_calls(("a", "f", "{}")))  # fmt: skip
good("a call that is no list", document(completion(answer({"content": None, "tool_calls":
     piece("f", "{}", id="a")}, "tool_calls"))), kind=JSON,
     tool_calls=has_calls(("a", "f", "{}")))  # fmt: skip
good("two choices that both say 0", document(completion(answer({"content": "a"}),
     answer({"content": "b"}, "length"))), kind=JSON, content="a\n\n[choice 1]\nb",
     finish_reason="stop")  # fmt: skip
ADDED = [event("response.output_item.added", item={"type": "function_call", "id": f"item_{name}",
         "call_id": name, "name": name}) for name in "fg"]  # fmt: skip
PARTS = [event("response.function_call_arguments.delta", item_id=f"item_{name}", delta=part)
         for name, part in (("f", "[1"), ("g", "[2"), ("f", "]"), ("g", "]"))]  # fmt: skip
good("responses: calls told apart by the ids of their items", b"".join(ADDED + PARTS) + COMPLETED,
     path=RESPONSES, tool_calls=has_calls(("f", "f", "[1]"), ("g", "g", "[2]")))  # fmt: skip
good("responses: arguments only when they are done", event("response.function_call_arguments.done",
     item_id="i", output_index=0, name="f", arguments="{}") + COMPLETED, path=RESPONSES,
     tool_calls=has_calls((None, "f", "{}")))  # fmt: skip

# 4. Reasoning under every name in use, and 5: it is no content.
good("'thought' whole", document(completion(answer({"content": "a", "thought": "Hm."}))), kind=JSON,
     reasoning_content="Hm.")  # fmt: skip
good("'thought' streamed", chunks(chunk({"thought": "Hm."}), chunk({}, "stop")) + DONE,
     reasoning_content="Hm.")  # fmt: skip
good("openrouter: reasoning beside the text of a completion", document({"choices": [{"text": "a",
     "reasoning": "Hm.", "finish_reason": "stop"}]}), kind=JSON, path=COMPLETIONS, content="a",
     reasoning_content="Hm.")  # fmt: skip
THINKING: dict[str, dict[str, Any]] = {
    "gemini: a part marked as thought": {"text": "Hm.", "thought": True},
    "a part with a summary": {"type": "reasoning", "summary": [{"text": "Hm."}]},
    "a redacted part": {"type": "redacted_thinking", "data": "AAAA"},
}
for name, part in THINKING.items():
    good(name, document(completion(answer({"content": [part, {"type": "text", "text": "a"}]}))),
         kind=JSON, content="a",
         reasoning_content=None if "redacted" in name else "Hm.")  # fmt: skip
good("responses: texts only when they are done", event("response.reasoning_text.done", text="Hm.")
     + event("response.output_text.done", text="a") + COMPLETED, path=RESPONSES, content="a",
     reasoning_content="Hm.")  # fmt: skip
good("responses: deltas and the same text when it is done", event("response.output_text.delta",
     delta="a") + event("response.output_text.done", text="a") + COMPLETED, path=RESPONSES,
     content="a")  # fmt: skip
good("responses: a delta that is an object", event("response.reasoning.delta", delta={"text":
     "Hm."}) + COMPLETED, path=RESPONSES, reasoning_content="Hm.")  # fmt: skip
