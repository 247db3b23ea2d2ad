"""What a call costs in the log, in bytes: the figures of LOGGING.md, "Size".

    python benchmarks/line_bytes.py

Three calls with the system prompt of a real application go through the real server in each
capture mode, each in a process and a window of its own: a call that says next to nothing, one
question with its answer, and a late step of an agent, which sends everything that was said and
done before it. The lines are measured in the objects, line ends included.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from given_answers import completion, logged, tool_call  # noqa: E402

PROMPT = (ROOT / "tests" / "data" / "geo-agent-system-prompt.md").read_text()
QUESTION = "Which states protect the largest share of their land as GAP 1 or 2?"
ANSWER = ("Protected areas cover a growing share of the sea, and most allow fishing. " * 20)[:1200]
RESULT = json.dumps([{"state": "CA", "ha": 6_612_345.25, "share": 0.23}] * 70)[:3000]
SQL = "SELECT state, SUM(ha) FROM read_parquet('s3://public-cpad/hex/*.parquet') GROUP BY state "
USAGE = {
    "prompt_tokens": 23_000,
    "completion_tokens": 300,
    "total_tokens": 23_300,
    "prompt_tokens_details": {"cached_tokens": 20_000},
}
HEADERS = {"Origin": "https://padus.example.org", "X-Session-Id": "s-12345678"}
TOOL_CALLS_BEFORE = 8


def conversation() -> list[dict[str, Any]]:
    """A question with the application's system prompt ahead of it."""
    return [{"role": "system", "content": PROMPT}, {"role": "user", "content": QUESTION}]


def agent_step() -> list[dict[str, Any]]:
    """The same after so many calls of a tool and their results."""
    messages = conversation()
    for number in range(TOOL_CALLS_BEFORE):
        call = tool_call(f"call_{number}", "query", json.dumps({"sql": SQL * 3}))
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": RESULT})
    return messages


def calls() -> dict[str, dict[str, Any]]:
    """The calls that are measured, each with the answer that the provider is to give."""
    asking = tool_call("call_9", "query", json.dumps({"sql": SQL}))
    next_step = completion(None, tool_calls=[asking], finish_reason="tool_calls", usage=USAGE)
    return {
        "least": {"messages": "hi", "given": {"body": completion("hello")}},
        "chat": {
            "messages": conversation(),
            "headers": HEADERS,
            "given": {"body": completion(ANSWER, usage=USAGE)},
        },
        "step": {"messages": agent_step(), "headers": HEADERS, "given": {"body": next_step}},
    }


async def lines_of(call: dict[str, Any], mode: str) -> dict[str, int]:
    """The bytes of each row that one call makes, by the row's type."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await logged(folder, [call], LOG_CAPTURE=mode)
        files = sorted((folder / "objects").rglob("*.jsonl"))
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return {json.loads(line)["type"]: len(without_given(line)) for line in lines}


def without_given(line: bytes) -> bytes:
    """A line without what only the test's provider needs: the answer that it is to give."""
    row = json.loads(line)
    if row["type"] != "request" or "params_json" not in row:
        return line
    params = json.loads(row["params_json"])
    del params["given"]
    row["params_json"] = msgspec.json.encode(params).decode()
    return msgspec.json.encode(row) + b"\n"


async def main() -> None:
    print(
        f"{'capture':10}{'call':8}{'request':>10}{'response':>10}{'call':>10}{'prompt, a row':>16}"
    )
    for mode in ("metadata", "summary", "full"):
        for name, call in calls().items():
            found = await lines_of(call, mode)
            both = found["request"] + found["response"]
            prompt = f"{found['text']:,}" if "text" in found else ""
            print(
                f"{mode:10}{name:8}{found['request']:>10,}{found['response']:>10,}"
                f"{both:>10,}{prompt:>16}"
            )
    sent = len(json.dumps(agent_step()))
    print(f"\nmessages of the step as sent: {sent:,} bytes; the system prompt: {len(PROMPT):,}")


if __name__ == "__main__":
    asyncio.run(main())
