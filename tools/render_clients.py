"""Writes the table of docs/clients.md from what `make test-clients` found.

    python tools/render_clients.py

The runs leave one JSON file for each client below build/clients/results/. A client that could not
be run keeps its line of the table.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "clients" / "results"
PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- clients: begin, made by make test-clients -->", "<!-- clients: end -->"
CHECKS = (
    *("chat", "stream", "usage", "tools", "structured", "thinking", "embeddings", "models"),
    *("responses", "error", "retry", "abort", "broken", "ids"),
)


def main() -> None:
    text = PAGE.read_text()
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    known = re.findall(r"^\| ([^|]+?) +\|.*$", text[start:stop], re.MULTILINE)
    lines = {name: line for name, line in zip(known, rows(text[start:stop]), strict=True)}
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        lines[found["name"]] = client_row(found)
    lines.pop("client", None)
    lines.pop("---", None)
    head = row("client", "version", *CHECKS)
    table = "\n".join([head, row(*["---"] * (len(CHECKS) + 2)), *lines.values()])
    PAGE.write_text(f"{text[:start]}\n{table}\n{text[stop:]}")


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def client_row(found: dict[str, Any]) -> str:
    direct, proxied = found["direct"], found["proxied"]
    marks = [mark(name, direct, proxied) for name in CHECKS]
    return row(found["name"], found["version"], *marks)


def mark(name: str, direct: dict[str, str | None], proxied: dict[str, str | None]) -> str:
    """`✓` both ways, `both fail`, or which way failed; empty where the check is not made."""
    if name not in proxied:
        return ""
    outcome = (direct[name] is None, proxied[name] is None)
    words = {(True, True): "✓", (False, False): "both fail", (False, True): "only proxy"}
    return words.get(outcome, "only direct")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
