"""``logs show ID``: a session, or one call, as people read a conversation."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from open_llm_proxy.archive.commands.context import (
    EXIT_FAILED,
    Context,
    ReadEnvironment,
    Redact,
    UsageError,
    command,
    complain,
)
from open_llm_proxy.archive.commands.options import add_filters, add_json, add_source
from open_llm_proxy.archive.commands.terminal import Shown, count, dollars, milliseconds, visible
from open_llm_proxy.archive.tables.connection import Tables
from open_llm_proxy.archive.tables.conversation import COLUMNS, Turn, Utterance, conversation
from open_llm_proxy.archive.tables.filters import literal
from open_llm_proxy.archive.text import shortened

FOLDED_CHARACTERS = 200
MARKDOWN_CHARACTERS = 50_000  # beyond it, layout takes seconds
_STYLES = {
    "user": "bold cyan",
    "assistant": "bold green",
    "reasoning": "dim",
    "tool_call": "yellow",
    "tool": "yellow",
    "error": "bold red",
}


def add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    read_environment: ReadEnvironment,
    redact: Redact | None,
) -> None:
    """Make the parser."""
    parser = commands.add_parser("show", help="a session or a call as people read a conversation")
    parser.add_argument("id", metavar="ID", help="session_id or request_id, or its beginning")
    parser.add_argument(
        "--full", action="store_true", help="tool results and reasoning in their full length"
    )
    add_source(parser)
    add_filters(parser)
    add_json(parser)
    parser.set_defaults(run=command(read_environment, _run))


def _run(context: Context) -> int:
    name: str = context.chosen.id
    start = literal(name)
    only = (
        f"starts_with(coalesce(session_id, ''), {start}) OR "
        f"starts_with(coalesce(request_id, ''), {start})"
    )
    with context.tables(columns=COLUMNS, only=only) as tables:
        turns = _turns(tables, name)
    if not turns:
        days = f" in {tables.days[0]} to {tables.days[-1]}" if tables.days else ""
        return complain(
            f"no session or request {visible(name)!r} in {context.source.name}{days}", EXIT_FAILED
        )
    if context.output.console is None:
        context.output.all_fields(said.as_fields() for said in conversation(turns))
        return 0
    with context.output.paged() as console:
        print_conversation(console, turns, context.chosen.full)
    return 0


def print_conversation(console: Console, turns: list[Turn], is_full: bool) -> None:
    """The turns of a session under its header; what is long is folded unless `is_full`."""
    _print_header(console, turns)
    for said in conversation(turns):
        _print_utterance(console, said, is_full)


def _turns(tables: Tables, name: str) -> list[Turn]:
    """The turns of the session or the request that `name` is, or is the beginning of."""
    found: list[str] = [
        row["name"]
        for row in tables.rows(
            "SELECT DISTINCT unnest([session_id, request_id]) AS name FROM turns"
        )
        if row["name"] is not None and row["name"].startswith(name)
    ]
    if name not in found:
        if len(found) > 1:
            raise UsageError(
                f"{visible(name)!r} is the beginning of {len(found)} ids: "
                f"{', '.join(map(visible, sorted(found)[:5]))}"
            )
        if found:
            name = found[0]
    rows: list[Turn] = list(
        tables.rows(
            "SELECT * FROM turns WHERE $name IN (session_id, request_id) "
            "ORDER BY started, queue_id, request_seq",
            {"name": name},
        )
    )
    return rows


def _print_header(console: Console, turns: list[Turn]) -> None:
    first, last = turns[0], turns[-1]
    line = Shown(first["session_id"] or first["request_id"] or "", "bold")
    console.print(line)
    models = sorted({turn["model"] for turn in turns if turn["model"]})
    facts = [
        f"{first['started']:%Y-%m-%d %H:%M:%S} to {last['ended'] or last['started']:%H:%M:%S}",
        first["app"],
        ", ".join(models),
        f"key {first['key_name']}" if first["key_name"] else None,
    ]
    console.print(Shown(" · ".join(fact for fact in facts if fact), "dim"))
    failed = sum(turn["outcome"] not in ("ok", "open") for turn in turns)
    totals = [
        f"{len(turns)} {'turn' if len(turns) == 1 else 'turns'}",
        f"{sum(turn['tool_calls_count'] or 0 for turn in turns)} tool calls",
        f"{count(_sum(turns, 'prompt_tokens')) or 'unknown'} tokens in",
        f"{count(_sum(turns, 'completion_tokens')) or 'unknown'} out",
        dollars(_sum(turns, "cost_usd")),
        f"{failed} failed" if failed else "",
    ]
    console.print(Shown(" · ".join(total for total in totals if total), "dim"))
    console.print()


def _sum(turns: list[Turn], name: str) -> Any:
    """The sum of what is known; None where nothing is."""
    values = [turn[name] for turn in turns if turn[name] is not None]
    return sum(values) if values else None


def _print_utterance(console: Console, said: Utterance, is_full: bool) -> None:
    """One thing that was said, under a line that says who and when."""
    fields = said.as_fields()
    head = Shown()
    if fields["timestamp"] is not None:
        head.append(f"{fields['timestamp']:%H:%M:%S}  ", style="dim")
    head.append(_speaker(said), style=_STYLES[said.speaker])
    console.print(head)
    text = visible(_arguments(said.text) if said.speaker == "tool_call" else said.text)
    is_folded = said.speaker in ("tool", "reasoning", "tool_call") and not is_full
    if is_folded and len(text) > FOLDED_CHARACTERS:
        text = shortened(text, FOLDED_CHARACTERS) + " --full shows all"
    if said.speaker == "assistant" and len(text) <= MARKDOWN_CHARACTERS:
        console.print(Markdown(text, hyperlinks=False))
    else:
        console.print(Shown(text, "dim" if said.speaker == "reasoning" else ""))
    console.print()


def _speaker(said: Utterance) -> str:
    turn = said.turn
    if said.speaker == "assistant":
        tokens = count(turn["total_tokens"])
        facts = (milliseconds(turn["latency_ms"]), f"{tokens} tokens" if tokens else "")
        return "  ".join(part for part in (turn["model"] or "assistant", *facts) if part)
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
