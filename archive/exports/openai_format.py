"""OpenAI's format of fine-tuning: ``{"messages": [...], "tools": [...]}`` a line.

`checked` demands what the API demands of a file: known roles, text or tool calls in every answer,
each tool's result behind the call that asked for it, arguments that are JSON, tools that exist.
"""

import json
import re
from typing import Any

from open_llm_proxy.archive.exports.examples import Example, Unusable

ROLES = ("system", "developer", "user", "assistant", "tool")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def openai_line(example: Example) -> dict[str, Any]:
    """The example in this format; raises `Unusable`."""
    line: dict[str, Any] = {"messages": checked(example)}
    if example.tools:
        line["tools"] = example.tools
        if isinstance(example.params.get("parallel_tool_calls"), bool):
            line["parallel_tool_calls"] = example.params["parallel_tool_calls"]
    return line


def checked(example: Example) -> list[dict[str, Any]]:
    """The messages, if a consumer of the format takes them; raises `Unusable`."""
    names = {_tool_name(tool) for tool in example.tools}
    waiting: set[str] = set()
    for message in example.messages:
        role = message["role"]
        if role not in ROLES:
            raise Unusable(f"with a message of the role {role!r:.40}")
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                raise Unusable("with a tool's result that no call asked for")
            waiting.discard(message["tool_call_id"])
        elif waiting:
            raise Unusable("with a tool call that has no result")
        calls = message.get("tool_calls")
        if not isinstance(message["content"], str) and not (role == "assistant" and calls):
            raise Unusable("with a message that has no text")
        for call in calls or ():
            waiting.add(_checked_call(call, names))
    return example.messages


def _tool_name(tool: Any) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Unusable("with a tool that is no function with a name")
    return name


def _checked_call(call: Any, names: set[str]) -> str:
    try:
        function, call_id = call["function"], call["id"]
        name, arguments = function["name"], json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Unusable("with a tool call whose arguments are no JSON") from None
    if names and name not in names:
        raise Unusable("with a call of a tool that was not offered")
    if not isinstance(arguments, dict) or not isinstance(call_id, str):
        raise Unusable("with a tool call whose arguments are no JSON object")
    return call_id
