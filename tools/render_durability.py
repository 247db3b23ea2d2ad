"""Writes the tables of docs/durability.md, so that no figure in it is typed by hand.

    python tools/render_durability.py [RECORDS]   takes over new records, then writes the tables
    python tools/render_durability.py --check     exit code 1 where the page is not up to date

RECORDS is the folder (build/durability) into which the tests and benchmarks write: faults.jsonl,
soak.json, writer.json and backlog.json. What is there replaces that part of docs/durability.json,
from which the tables are made; what is missing stays as it was.
"""

import json
import os
import platform
import re
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from render_docs import rendered

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "durability.md"
RECORD = ROOT / "docs" / "durability.json"
FAULTS = ROOT / "tests" / "faults"
_FAULT = re.compile(r"test_fault_(\d+)_\w+")
_CONTROL = "::test_the_same_test_notices"

Fields = dict[str, Any]


def machine() -> Fields:
    """What the figures depend on, in neutral words."""
    return {
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def taken_over(record: Fields, folder: Path) -> Fields:
    """`record` with the parts that lie in `folder`."""
    new = dict(record)
    if (path := folder / "faults.jsonl").exists():
        new["faults"] = {"machine": machine(), "rows": fault_rows(path)}
    for part in ("soak", "writer", "backlog"):
        if (path := folder / f"{part}.json").exists():
            new[part] = {"machine": machine(), **json.loads(path.read_text())}
    return new


def fault_rows(path: Path) -> list[Fields]:
    """One row per fault, out of the verdicts and the ends of its tests."""
    sums: dict[str, Counter[str]] = {name: Counter() for name in sorted(titles())}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        match = _FAULT.search(entry["test"])
        if match is None:
            continue
        counts = sums[match[0]]
        is_control = _CONTROL in entry["test"]
        if "outcome" in entry:
            counts[f"{'controls' if is_control else 'tests'}_{entry['outcome']}"] += 1
        elif not is_control and not entry["variant"]:
            for name in ("repetitions", "calls", "acknowledged", "lost", "doubled", "other"):
                counts[name] += entry[name]
    return [{"file": file, "title": titles()[file], **counts} for file, counts in sums.items()]


def titles() -> dict[str, str]:
    """What each file of fault tests is about, by its first sentence."""
    found = {}
    for path in FAULTS.glob("test_fault_*.py"):
        sentence = path.read_text().removeprefix('"""').partition(".\n")[0].partition(". ")[0]
        found[path.stem] = " ".join(sentence.partition(": ")[2].split())
    return found


def parts(record: Fields) -> dict[str, str]:
    """Name of the part → its text."""
    return {
        "faults": fault_table(record["faults"]) if "faults" in record else "",
        "soak": soak_table(record["soak"]) if "soak" in record else "",
        "writer": writer_table(record["writer"]) if "writer" in record else "",
        "backlog": backlog_table(record["backlog"]) if "backlog" in record else "",
    }


def fault_table(part: Fields) -> str:
    heads = ("", "fault", "tests", "times made", "calls answered", "rows acknowledged", "lost",
             "doubled", "broken variants noticed")  # fmt: skip
    rows = []
    for number, row in enumerate(part["rows"], 1):
        tests = str(row.get("tests_passed", 0))
        for outcome in ("failed", "skipped"):
            if count := row.get(f"tests_{outcome}", 0) + row.get(f"controls_{outcome}", 0):
                tests += f", {count} {outcome}"
        counts = (row.get(name, 0) for name in ("repetitions", "calls", "acknowledged"))
        bad = (str(row.get(name, 0)) for name in ("lost", "doubled"))
        noticed = str(row.get("controls_passed", 0))
        rows.append((str(number), row["title"], tests, *map(_number, counts), *bad, noticed))
    names = ("repetitions", "calls", "acknowledged", "lost", "doubled", "controls_passed")
    total = {name: sum(row.get(name, 0) for row in part["rows"]) for name in names}
    passed = sum(row.get("tests_passed", 0) for row in part["rows"])
    rows.append(("", "**all**", str(passed), *(_number(total[name]) for name in names)))
    return f"{_table(heads, rows)}\n\n{_machine(part['machine'])}"


def soak_table(part: Fields) -> str:
    minutes = part["seconds"] / 60
    made = [(name, _number(count)) for name, count in part["faults"].items()]
    made.append(("**all**", _number(sum(part["faults"].values()))))
    rows = (
        ("duration", f"{minutes:.0f} minutes, seed {part['seed']}"),
        ("times that the oracle judged", str(part["rounds"])),
        ("servers started, queues left", f"{_number(part['starts'])}, {_number(part['queues'])}"),
        ("calls sent", _number(part["sent"])),
        ("… answered in full", _number(part["answered"])),
        ("… refused with a status", _number(part["refused"])),
        ("… broken off", _number(part["failed"])),
        ("rows acknowledged", _number(part["acknowledged"])),
        ("rows stored", f"{_number(part['stored'])} in {_number(part['objects'])} objects"),
        ("**rows lost**", f"**{part['lost']}**"),
        ("**rows doubled**", f"**{part['doubled']}**"),
        ("other findings", str(part["other"])),
        ("largest resident size of a server", f"{part['peak_memory_bytes'] / 1e6:.0f} MB"),
    )
    return (
        f"{_table(('', ''), rows)}\n\n{_table(('fault', 'times'), made)}\n\n"
        f"{_machine(part['machine'])}"
    )


def writer_table(part: Fields) -> str:
    heads = ("waiting at once", "commits/s", "entries/s", "bare sqlite3: commits/s", "entries/s")
    rows = [
        (
            str(rate["appenders"]),
            *(
                _number(round(rate[who][unit]))
                for who in ("writer", "bare_sqlite3")
                for unit in ("commits_per_second", "entries_per_second")
            ),
        )
        for rate in part["rates"]
    ]
    return (
        f"{_table(heads, rows)}\n\n"
        f"Entries of {_number(part['entry_bytes'])} bytes; writing as much and one fdatasync took "
        f"{part['fdatasync_seconds'] * 1e3:.2f} ms on that disk. "
        f"{_machine(part['machine'])}{_load(part)}"
    )


def backlog_table(part: Fields) -> str:
    rows = (
        ("backlog", f"{_number(part['rows'])} rows, {part['queue_bytes'] / 1e6:,.0f} MB"),
        ("start, until calls are taken", f"{part['start_seconds']:.2f} s"),
        ("… on an empty folder", f"{part['start_empty_seconds']:.2f} s"),
        (
            "drained into a directory",
            f"{_number(round(part['rows_per_second']))} rows/s, "
            f"{part['bytes_per_second'] / 1e6:.0f} MB/s, {part['drain_seconds']:.0f} s in all",
        ),
        ("largest resident size meanwhile", f"{part['peak_memory_bytes'] / 1e6:.0f} MB"),
        ("… of an idle server", f"{part['idle_memory_bytes'] / 1e6:.0f} MB"),
    )
    return f"{_table(('', ''), rows)}\n\n{_machine(part['machine'])}{_load(part)}"


def _load(part: Fields) -> str:
    """How busy the machine was with other things, where that was noted."""
    if "load_average" not in part:
        return ""
    return f" Other programs kept it busy meanwhile: load average {part['load_average']:.1f}."


def _machine(machine: Fields) -> str:
    return (
        f"Taken on {machine['system']} with {machine['cores']} cores, Python {machine['python']}, "
        f"SQLite {machine['sqlite']}."
    )


def _number(value: int) -> str:
    return f"{value:,}"


def _table(heads: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(record: Fields) -> str:
    text = PAGE.read_text()
    for name, part in parts(record).items():
        text = rendered(text, name, part)
    return text


def main(arguments: list[str]) -> int:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if "--check" in arguments:
        if page(record) == PAGE.read_text():
            return 0
        print("docs/durability.md is not up to date: run tools/render_durability.py")
        return 1
    record = taken_over(record, Path(arguments[0]) if arguments else ROOT / "build" / "durability")
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
