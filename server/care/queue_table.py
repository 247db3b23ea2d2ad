"""The table that ``open-llm-proxy queue status`` prints."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from open_llm_proxy.queue.batches import utc_moment
from open_llm_proxy.queue.inspection import Inspection

# Wide enough that nothing is cut where the output goes to a file.
PLAIN_WIDTH = 180


def print_status(looks: Sequence[Inspection]) -> None:
    """One line per queue, and below the table what needs a sentence."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    table = Table(box=SIMPLE, pad_edge=False)
    for title in ("queue", "process", "integrity"):
        table.add_column(title, no_wrap=True)
    for title in ("rows", "bytes", "on disk"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("oldest", "newest", "open calls", "batches"):
        table.add_column(title)
    for look in looks:
        table.add_row(*_cells(look))
    console.print(table)
    for look in looks:
        for text in _sentences(look):
            console.print(f"{look.path}: {text}", soft_wrap=True)


def _cells(look: Inspection) -> list[str]:
    process = "lives" if look.owner_lives else "ended" if look.ended_cleanly else "died"
    if look.ended_cleanly is None and not look.owner_lives:
        process = "ended"
    integrity = "-" if look.owner_lives else "FAULTS" if look.faults else "ok"
    return [
        look.path.name,
        process,
        integrity,
        _number(look.rows),
        "-" if look.queued_bytes is None else decimal(look.queued_bytes),
        decimal(look.disk_bytes),
        iso_time(look.oldest_ms) or "-",
        iso_time(look.newest_ms) or "-",
        _number(look.open_calls),
        _batches(look),
    ]


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
    lines = list(look.faults)
    if look.owner_lives:
        lines.append("its process lives: its /health tells the rest")
    for sink, count in (look.tried_batches or {}).items():
        lines.append(f"{count} batches were tried on {sink} and are finished there")
    return lines


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def iso_time(timestamp_ms: int | None) -> str | None:
    """UTC, ISO 8601, to the second."""
    if timestamp_ms is None:
        return None
    return utc_moment(timestamp_ms).isoformat(timespec="seconds").replace("+00:00", "Z")
