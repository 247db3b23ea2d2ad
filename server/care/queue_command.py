"""``open-llm-proxy queue status | verify | salvage``: looking after queues, without changing them.

    open-llm-proxy queue status /var/lib/open-llm-proxy
    open-llm-proxy queue verify /var/lib/open-llm-proxy
    open-llm-proxy queue salvage ./quarantine/9f2c...-17... --to ./salvaged

status tells what lies in each queue, verify reads it whole and checks every row, salvage gets
everything that can be read out of a damaged file and reports what cannot. PATH is a folder of
queues or a queue's own folder; salvage takes a file too.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_llm_proxy.queue import inspection
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, QueueError
from open_llm_proxy.queue.inspection import Inspection
from open_llm_proxy.queue.salvage import Salvage, salvage, spelled
from open_llm_proxy.queue.verification import Verification, verify
from open_llm_proxy.server.care.queue_table import iso_time, print_status

EXIT_FOUND_FAULTS = 1
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3
# The field by which a call's rows belong together.
CALL_FIELD = "request_id"
# More lines of one kind than these stand in the report only.
TOLD = 20


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``queue`` and its three verbs to the program's commands."""
    text = "look at queues, verify them, salvage damaged ones"
    parser = commands.add_parser(
        "queue",
        help=text,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, run, help_text in (
        ("status", _status, "what lies in each queue, and whether its process lives"),
        ("verify", _verify, "read each queue whole and check every row"),
        ("salvage", _salvage, "get out of a damaged file what can be read"),
    ):
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.add_argument("paths", nargs="+", type=Path, metavar="PATH")
        verb.add_argument("--json", action="store_true", help="JSON, one object per queue and line")
        if name == "salvage":
            verb.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to")
        verb.set_defaults(run=_guarded, verb=run)


def _guarded(chosen: argparse.Namespace) -> int:
    try:
        code: int = chosen.verb(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has enough; what Python still flushes goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NotAQueue as error:
        return _complain(str(error), EXIT_USAGE)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}", EXIT_ENVIRONMENT)
    return code


def _status(chosen: argparse.Namespace) -> int:
    looks = [inspection.inspect(path) for path in _queues(chosen.paths)]
    if chosen.json:
        for look in looks:
            _print_json(_status_json(look))
    else:
        if looks:
            print_status(looks)
        for path in chosen.paths:
            if told := inspection.quarantine_told(path):
                print(told)
    return EXIT_FOUND_FAULTS if any(look.faults for look in looks) else 0


def _verify(chosen: argparse.Namespace) -> int:
    code = 0
    for path in _queues(chosen.paths):
        try:
            found = verify(path)
        except OwnerAlive:
            found = Verification(path, path.name)
            found.faults.append(
                "its process lives: ask its /health, or verify it once it has ended"
            )
        if not found.is_sound:
            code = EXIT_FOUND_FAULTS
        if chosen.json:
            _print_json(asdict(found) | {"path": str(path), "sound": found.is_sound})
            continue
        checked = f"{found.checked_rows} rows and {found.checked_open_calls} open calls checked"
        print(f"{path}: {'sound' if found.is_sound else 'NOT SOUND'}, {checked}")
        for fault in found.faults:
            print(f"  {fault}")
    return code


def _salvage(chosen: argparse.Namespace) -> int:
    code = 0
    target = chosen.to.resolve()
    paths = [p for path in chosen.paths for p in ([path] if path.is_file() else _queues([path]))]
    for path in paths:
        if target.is_relative_to(path.resolve()):
            return _complain(f"--to {chosen.to} lies in the queue's own folder", EXIT_USAGE)
        try:
            salvaged = salvage(path, target, CALL_FIELD)
        except QueueError as error:
            code = _complain(str(error), EXIT_FOUND_FAULTS)
            continue
        for result in salvaged:
            if not result.is_whole:
                code = EXIT_FOUND_FAULTS
            if chosen.json:
                _print_json(asdict(result) | {"path": str(path)})
            else:
                print("\n".join(_salvage_lines(path, target, result)))
    return code


def _salvage_lines(path: Path, target: Path, result: Salvage) -> list[str]:
    times = f", {result.oldest} to {result.newest}" if result.oldest else ""
    lines = [
        f"{path}: queue {result.queue_id}",
        f"  {result.rows} rows salvaged into {target / result.file}{times}",
        f"  {result.uploaded_rows} rows were uploaded before and are left out",
    ]
    for told, title in (
        (result.missing, "missing"),
        (result.undecided, "salvaged, and perhaps uploaded too"),
    ):
        lines.extend(f"  {title}: {spelled(rows)}" for rows in told[:TOLD])
        if len(told) > TOLD:
            lines.append(f"  {title}: {len(told) - TOLD} more ranges, see the report")
    if result.open_calls_file:
        name = target / result.open_calls_file
        lines.append(f"  {result.open_calls} calls were never closed; their kept ends: {name}")
    if result.undecided_calls_file:
        name = target / result.undecided_calls_file
        lines.append(
            f"  {result.undecided_calls} calls have no closing row in this file, which may be "
            f"among the uploaded or missing ones; their kept ends: {name}"
        )
    if result.outdated_calls_file:
        name = target / result.outdated_calls_file
        lines.append(
            f"  {result.outdated_calls} calls left traces on pages that are used otherwise by now: "
            f"they were closed, unless just those pages are damaged; their kept ends: {name}"
        )
    lines.append(f"  report: {target / f'{result.queue_id}-report.json'}")
    lines.append("  rows behind the newest that was found leave no trace and cannot be named")
    return lines


def _queues(paths: list[Path]) -> list[Path]:
    """The folders of all queues that `paths` mean; one that means none is told on stderr."""
    found = []
    for path in paths:
        queues = inspection.queues_at(path)
        if not queues:
            print(f"no queue below {path}", file=sys.stderr)
        found.extend(queues)
    return list(dict.fromkeys(found))


def _status_json(look: Inspection) -> dict[str, Any]:
    fields = asdict(look) | {"path": str(look.path)}
    for name in ("oldest", "newest"):
        fields[name] = iso_time(fields.pop(f"{name}_ms"))
    return fields


def _print_json(fields: dict[str, Any]) -> None:
    print(json.dumps(fields, ensure_ascii=False))


def _complain(text: str, code: int) -> int:
    print(f"open-llm-proxy queue: {text}", file=sys.stderr)
    return code
