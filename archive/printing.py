"""The log on a terminal, for people: rows as lines, conversations, tables.

What a client or a model wrote is data: control characters in it are shown and never sent to the
terminal, and nothing in it is read as markup.
"""

import json
import re
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from open_llm_proxy.archive.conversation import Utterance
from open_llm_proxy.archive.rows import LogRow
from open_llm_proxy.archive.text import shortened
from open_llm_proxy.archive.usage_stats import Group

PREVIEW_CHARACTERS = 200
TOOL_RESULT_CHARACTERS = 2_000
_STYLES = {
    "user": "bold cyan",
    "assistant": "bold green",
    "reasoning": "dim",
    "tool_call": "yellow",
    "tool": "yellow",
    "error": "bold red",
}
# C0 and C1 controls but for line end and tab, separators of lines, what changes the direction of
# text, and lone surrogates, which cannot be written.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """A text that a terminal only shows: control characters as their pictures."""
    return _UNSAFE.sub(_picture, text)


def terminal_json(line: bytes) -> bytes:
    """A JSON line for a terminal: the same JSON, with unsafe characters as its escapes."""
    text = line.decode("utf-8", "surrogatepass")
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text).encode()


class _Shown(Text):
    """A text that may be put together from anything: each part is made visible."""

    def __init__(self, text: str = "", style: str = "") -> None:
        super().__init__(visible(text), style)

    def append(self, text: Text | str, style: Any = None) -> Text:
        return super().append(visible(text) if isinstance(text, str) else text, style)


def _picture(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def print_row(console: Console, row: LogRow) -> None:
    """One row as one line: when, what, who, and as much of what was said as fits."""
    line = _Shown()
    line.append(row.timestamp[11:19] + " ", style="dim")
    name, style = _row_label(row)
    line.append(f"{name:<9} ", style=style)
    line.append(row.model or "-", style="magenta")
    for part in (row.origin, row.session_id):
        if part:
            line.append(" " + part, style="dim")
    if row.type == "response":
        line.append(f" {_answer_facts(row)}")
    asked = row.user_message_this_turn or row.user_question
    text = asked or row.content_preview or row.error or row.content or ""
    line.append(" " + " ".join(text[:PREVIEW_CHARACTERS].split()))
    line.plain = line.plain.replace("\n", " ").replace("\t", " ")
    console.print(line, no_wrap=True, overflow="ellipsis")


def _row_label(row: LogRow) -> tuple[str, str]:
    if row.type == "request":
        return "question", "cyan"
    if row.type == "response":
        return ("answer", "green") if row.outcome == "ok" else ("failure", "bold red")
    return row.type, "yellow"


def _answer_facts(row: LogRow) -> str:
    facts = [] if row.outcome == "ok" else [row.outcome or ""]
    if row.latency_ms is not None:
        facts.append(_seconds(row.latency_ms))
    if row.total_tokens is not None:
        facts.append(f"{row.total_tokens:,} tokens")
    facts += [f"→{call.name or '?'}" for call in row.tool_calls or ()]
    return " ".join(facts)


def print_utterance(console: Console, said: Utterance, whole: bool) -> None:
    """One thing that was said, under a line that says who and when."""
    head = _Shown()
    head.append(said.row.timestamp[:19].replace("T", " ") + "  ", style="dim")
    head.append(_speaker(said), style=_STYLES[said.speaker])
    console.print(head)
    text = _arguments(said.text) if said.speaker == "tool_call" else said.text
    if said.speaker == "tool" and not whole:
        text = shortened(text, TOOL_RESULT_CHARACTERS)
    style = "dim" if said.speaker == "reasoning" else ""
    console.print(_Shown(text, style))
    console.print()


def _speaker(said: Utterance) -> str:
    row = said.row
    if said.speaker == "assistant":
        return f"{row.model or 'assistant'}  {_answer_facts(row)}"
    if said.speaker == "tool_call":
        return f"calls {said.name or '?'}"
    if said.speaker == "tool":
        return f"{said.name or 'a tool'} answers"
    return said.speaker


def _arguments(text: str) -> str:
    """The arguments of a tool call, one a line and their texts, SQL above all, as they are."""
    try:
        arguments = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    if not isinstance(arguments, dict) or not arguments:
        return text
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in arguments.items()
    )


def print_groups(console: Console, groups: list[Group], title: str) -> None:
    """Usage by app and model as a table."""
    table = Table(title=visible(title), title_justify="left", header_style="bold")
    for name in ("app", "model"):
        table.add_column(name, overflow="fold")
    for name in ("calls", "tokens in", "out", "median", "p95", "first token"):
        table.add_column(name, justify="right")
    table.add_column("not ok", overflow="fold")
    for group in groups:
        table.add_row(
            _Shown(group.origin),
            _Shown(group.model),
            f"{group.calls:,}",
            f"{group.prompt_tokens:,}",
            f"{group.completion_tokens:,}",
            *map(_seconds, (group.latency.quantile(0.5), group.latency.quantile(0.95))),
            _seconds(group.ttft.quantile(0.5)),
            _Shown(", ".join(f"{count} {name}" for name, count in group.errors.items())),
        )
    if len(groups) > 1:
        calls, prompt, completion = (
            sum(getattr(group, name) for group in groups)
            for name in ("calls", "prompt_tokens", "completion_tokens")
        )
        table.add_section()
        table.add_row("all", "", f"{calls:,}", f"{prompt:,}", f"{completion:,}")
    console.print(table)


def _seconds(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
