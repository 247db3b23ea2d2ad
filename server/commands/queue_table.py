"""What ``open-llm-proxy queue status`` prints: one line per queue, several if it is narrow."""

import sys
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from open_llm_proxy.queue.damage.inspection import Inspection
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.commands.console import iso_time, size

# Wide enough for every column; used when the output is not a terminal.
TABLE_WIDTH = 150
WORDS = ("queue", "process", "integrity")
NUMBERS = ("rows", "bytes", "on disk")
REST = ("oldest", "newest", "open calls", "batches")


def print_status(looks: Sequence[Inspection]) -> None:
    """Print all queues, and below them what needs a sentence.

    On a terminal that is too narrow for the table, each queue is a paragraph instead: no value is
    cut off.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    table = _table(looks)
    if _width(table, console) <= console.width:
        console.print(table)
    else:
        for look in looks:
            console.print(_paragraph(look), soft_wrap=True)
    for look in looks:
        for text in _sentences(look):
            console.print(f"{look.path}: {text}", soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    unlimited = console.options.update(max_width=sys.maxsize)
    return Measurement.get(console, unlimited, table).maximum


def _table(looks: Sequence[Inspection]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for title in WORDS + NUMBERS + REST:
        table.add_column(title, justify="right" if title in NUMBERS else "left", no_wrap=True)
    for look in looks:
        table.add_row(*_cells(look).values())
    return table


def _paragraph(look: Inspection) -> str:
    cells = _cells(look)
    lines = [cells.pop("queue"), *(f"  {title:<10}  {cell}" for title, cell in cells.items())]
    return "\n".join(lines)


def _cells(look: Inspection) -> dict[str, str]:
    if look.owner_lives:
        process, integrity = "running", "-"
    else:
        process = {None: "gone", False: "crashed", True: "ended"}[look.ended_cleanly]
        integrity = "FAULTS" if look.faults else "ok"
    return {
        "queue": look.path.name,
        "process": process,
        "integrity": integrity,
        "rows": _number(look.rows),
        "bytes": "-" if look.queued_bytes is None else size(look.queued_bytes),
        "on disk": size(look.disk_bytes),
        "oldest": iso_time(look.oldest_ms) or "-",
        "newest": iso_time(look.newest_ms) or "-",
        "open calls": _number(look.open_calls),
        "batches": _batches(look),
    }


def _batches(look: Inspection) -> str:
    if look.uploaded_batches is None:
        return "-"
    tried = sum((look.tried_batches or {}).values())
    counts = {
        "uploaded": look.uploaded_batches,
        "sealed": look.sealed_batches,
        "tried": tried,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def _sentences(look: Inspection) -> list[str]:
    lines = [*look.faults, *look.doubts]
    if look.owner_lives:
        lines.append("its process is still running; see its /health for the rest")
    for sink, count in (look.tried_batches or {}).items():
        batches = counted(count, "batch")
        lines.append(f"{batches} may be in {sink} already and must be uploaded there")
    return lines


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
