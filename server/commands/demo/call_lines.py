"""What the demo prints of each call: one line for people instead of two of JSON.

08:22:01  demo            53 tokens    12 ms  ok
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from open_llm_proxy.archive.commands.terminal import one_line
from open_llm_proxy.server.entries.stdout import StdoutLines

MODEL_WIDTH = 16
ERROR_CHARACTERS = 60


class CallLines(StdoutLines):
    """Takes the log's lines and writes one for each call that has ended."""

    def write(self, lines: Sequence[bytes]) -> None:
        rows = (msgspec.json.decode(line) for line in lines)
        shown = [call_line(row) for row in rows if row.get("type") == "response"]
        if shown:
            super().write([f"{line}\n".encode() for line in shown])


def call_line(row: dict[str, Any]) -> str:
    """The line of a response row."""
    tokens = row.get("total_tokens")
    counted = f"{tokens:,} tokens" if tokens is not None else "no tokens told"
    outcome = row.get("outcome", "")
    if error := row.get("error"):
        outcome += f": {one_line(error, ERROR_CHARACTERS)}"
    model = one_line(str(row.get("model", "-")), MODEL_WIDTH)
    return (
        f"{row['timestamp'][11:19]}  {model:<{MODEL_WIDTH}}  {counted:>14}  "
        f"{row.get('latency_ms', 0):>7,} ms  {outcome}"
    )
