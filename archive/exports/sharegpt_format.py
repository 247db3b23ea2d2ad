"""The ShareGPT format: ``{"conversations": [{"from": "human", "value": ...}, ...]}`` a line.

Its consumers want turns that alternate: `human` or `observation`, then `gpt` or `function_call`, to
the end. Calls of several tools at once are one `function_call` with a list, and so are their
results; messages of one side that follow each other are joined.
"""

import json
from typing import Any

from open_llm_proxy.archive.exports.examples import Example, Unusable
from open_llm_proxy.archive.exports.openai_format import checked


def sharegpt_line(example: Example) -> dict[str, Any]:
    """The example in this format; raises `Unusable`."""
    messages = checked(example)
    system = "\n\n".join(m["content"] for m in messages if m["role"] in ("system", "developer"))
    turns: list[dict[str, str]] = []
    results: list[str] = []
    for message in messages:
        role = message["role"]
        if role == "tool":
            results.append(message["content"])
            continue
        _flush(turns, results)
        if role == "user":
            _append(turns, "human", message["content"])
        elif role == "assistant" and message.get("tool_calls"):
            _append(turns, "function_call", _calls(message["tool_calls"]))
        elif role == "assistant":
            _append(turns, "gpt", message["content"])
    _flush(turns, results)
    for number, turn in enumerate(turns):
        is_asking = turn["from"] in ("human", "observation")
        if is_asking is not (number % 2 == 0):
            raise Unusable("whose turns do not alternate")
    if len(turns) % 2:
        raise Unusable("without an answer")
    line: dict[str, Any] = {"conversations": turns, "system": system}
    if example.tools:
        line["tools"] = json.dumps([tool["function"] for tool in example.tools], ensure_ascii=False)
    return line


def _append(turns: list[dict[str, str]], speaker: str, text: str) -> None:
    if turns and turns[-1]["from"] == speaker and speaker in ("human", "gpt"):
        turns[-1]["value"] += "\n\n" + text
    else:
        turns.append({"from": speaker, "value": text})


def _flush(turns: list[dict[str, str]], results: list[str]) -> None:
    """Results of tools that were called together are one observation."""
    if results:
        value = results[0] if len(results) == 1 else json.dumps(results, ensure_ascii=False)
        turns.append({"from": "observation", "value": value})
        results.clear()


def _calls(calls: list[dict[str, Any]]) -> str:
    functions = [
        {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        for call in calls
    ]
    return json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False)
