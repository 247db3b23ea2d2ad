"""What ``open-llm-proxy queue status`` prints: a table of 80 columns, and sentences below it."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from open_llm_proxy.queue.damage.inspection import Inspection
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.commands.console import iso_time, size

WIDTH = 80
COLUMNS = ("queue", "process", "state", "rows", "size", "oldest row")
NUMBERS = ("rows", "size")


def print_status(looks: Sequence[Inspection]) -> None:
    """Print all queues, and below them what needs a sentence. ``--json`` has everything."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for title in COLUMNS:
        right = title in NUMBERS
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for look in looks:
        table.add_row(*_cells(look))
    console.print(table)
    for look in looks:
        for text in _sentences(look):
            console.print(f"{look.path}: {text.removeprefix(f'{look.path}/')}", soft_wrap=True)


def _cells(look: Inspection) -> tuple[str, ...]:
    if look.owner_lives:
        process, state = "running", "-"
    else:
        process = {None: "gone", False: "crashed", True: "ended"}[look.ended_cleanly]
        state = "FAULTS" if look.faults else "ok"
    return (
        look.path.name,
        process,
        state,
        "-" if look.rows is None else f"{look.rows:,}",
        size(look.disk_bytes if look.queued_bytes is None else look.queued_bytes),
        iso_time(look.oldest_ms) or "-",
    )


def _sentences(look: Inspection) -> list[str]:
    lines = [*look.faults, *look.doubts]
    if look.owner_lives:
        lines.append("its process is still running; see its /health for the rest")
    if look.open_calls:
        calls = counted(look.open_calls, "call")
        lines.append(f"{calls} without a response row; replay marks them interrupted")
    for sink, count in (look.tried_batches or {}).items():
        batches = counted(count, "batch")
        lines.append(f"{batches} may be in {sink} already and must be uploaded there")
    return lines
