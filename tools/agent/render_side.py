"""A recorded session and what other models made of it, question by question, side by side."""

from collections.abc import Iterator, Sequence
from typing import Any

from .columns import fitted, side_by_side
from .settings import shown

LEAST_COLUMN = 30
BETWEEN = 3


def comparison(records: Sequence[dict[str, Any]], questions: Sequence[str], width: int) -> str:
    """The records as text of at most `width` cells a line; the first one is the recorded session.

    Where not all fit beside each other, the others follow below.
    """
    per_block = max(1, (width + BETWEEN) // (LEAST_COLUMN + BETWEEN))
    return "\n".join(
        line
        for start in range(0, len(records), per_block)
        for line in block(records[start : start + per_block], questions, width)
    )


def block(records: Sequence[dict[str, Any]], questions: Sequence[str], width: int) -> Iterator[str]:
    column = (width + BETWEEN) // len(records) - BETWEEN
    yield from side_by_side([head(record) for record in records], column)
    for number, question in enumerate(questions):
        yield ""
        yield fitted(f"> {' '.join(shown(question).split())}", width)
        yield from side_by_side([answer(record, number) for record in records], column)
    yield ""


def head(record: dict[str, Any]) -> str:
    """Who answered, and at what cost."""
    name = f"{record['model']} (recorded)" if record["cell"] == "recorded" else record["model"]
    if record.get("trial", 1) > 1:
        name += f" (trial {record['trial']})"
    missing = record.get("not_recorded", 0)
    calls = f"{record['tool_calls']} tool calls" + f", {missing} not recorded" * bool(missing)
    cost = f"{record['total_tokens']:,} tokens, {record['seconds']:.1f} s"
    return shown(f"{name}\n{record['turns']} turns, {calls}\n{cost}")


def answer(record: dict[str, Any], number: int) -> str:
    """The answer to one question, or why there is none."""
    answers = record["answers"]
    if number < len(answers):
        return shown(answers[number])
    return shown(f"[{record['error']}]") if number == len(answers) and record["error"] else "-"
