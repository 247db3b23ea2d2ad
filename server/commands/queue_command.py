"""open-llm-proxy queue status | verify | salvage: inspect queues without changing them.

    open-llm-proxy queue status /var/lib/open-llm-proxy
    open-llm-proxy queue verify /var/lib/open-llm-proxy
    open-llm-proxy queue salvage ./quarantine/9f2c...-17... --to ./salvaged

status shows the contents of each queue. verify reads all of it and checks every row. salvage
extracts everything readable from a damaged queue and reports what is missing. PATH is LOG_QUEUE_DIR
or the directory of one queue; for salvage it may also be a file. Without a PATH status and verify
read LOG_QUEUE_DIR.

Exit codes: 0 no faults, 1 faults found or a queue could not be read, 2 wrong command line or path,
3 a directory cannot be read or written.
"""

import argparse
import json
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.damage.inspection import Inspection
from open_llm_proxy.queue.damage.salvage import Salvage, salvage, spelled
from open_llm_proxy.queue.damage.verification import Verification, verify
from open_llm_proxy.queue.durable_files import make_folders
from open_llm_proxy.queue.errors import OwnerAlive, QueueError
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.commands.console import ExitCode, complain, iso_time
from open_llm_proxy.server.commands.queue_table import print_status
from open_llm_proxy.server.settings import from_process_environment

# The field that all rows of one call share.
CALL_FIELD = "request_id"
# Ranges of one kind that are printed; the report has all of them.
MAX_PRINTED_RANGES = 20


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``queue`` and its three verbs to the program's commands."""
    text = "inspect and verify queues, salvage damaged ones"
    parser = commands.add_parser(
        "queue",
        help=text,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, run, help_text in (
        ("status", _status, "show the contents of each queue and whether its process is running"),
        ("verify", _verify, "read each queue completely and check every row"),
        ("salvage", _salvage, "extract everything readable from a damaged queue"),
    ):
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.add_argument(
            "paths",
            nargs="+" if name == "salvage" else "*",
            type=Path,
            metavar="PATH",
            help="LOG_QUEUE_DIR or the directory of one queue",
        )
        verb.add_argument("--json", action="store_true", help="print one JSON object per queue")
        if name == "salvage":
            verb.add_argument(
                "--to", required=True, type=Path, metavar="DIR", help="directory for the results"
            )
        verb.set_defaults(run=run)


def _status(chosen: argparse.Namespace) -> ExitCode:
    roots = chosen.paths or [from_process_environment().log_queue_dir]
    looks = [inspection.inspect(path) for path in _queues(roots)]
    if chosen.json:
        for look in looks:
            _print_json(_status_json(look))
    else:
        if looks:
            print_status(looks)
        for path in roots:
            if told := inspection.quarantine_told(path):
                print(told)
    return ExitCode.FAILED if any(look.faults for look in looks) else ExitCode.DONE


def _verify(chosen: argparse.Namespace) -> ExitCode:
    code = ExitCode.DONE
    for path in _queues(chosen.paths or [from_process_environment().log_queue_dir]):
        try:
            found = verify(path)
        except (QueueError, sqlite3.Error, OSError) as error:
            code = ExitCode.FAILED
            if not isinstance(error, OwnerAlive):
                _print_unreadable(path, error, chosen.json)
                continue
            if chosen.json:
                _print_json({"path": str(path), "queue_id": path.name, "owner_lives": True})
            else:
                print(f"{path}: not verified; its process is still running, see its /health")
            continue
        if not found.is_sound:
            code = ExitCode.FAILED
        if chosen.json:
            _print_json(_verification_json(found))
        else:
            print("\n".join(_verification_lines(found)))
    return code


def _print_unreadable(path: Path, error: Exception, as_json: bool) -> None:
    """A queue that cannot be read is a result of its own, and the others still get theirs."""
    text = inspection.explained(path, error)
    if as_json:
        fields = {"path": str(path), "queue_id": path.name, "sound": False, "faults": [text]}
        _print_json(fields | {"owner_lives": False})
    else:
        print(f"{path}: NOT READABLE: {text}")


def _verification_lines(found: Verification) -> list[str]:
    verdict = "sound" if found.is_sound else "NOT SOUND"
    rows, calls = counted(found.checked_rows, "row"), counted(found.checked_open_calls, "open call")
    return [
        f"{found.path}: {verdict}, {rows} and {calls} checked",
        *(f"  {sentence}" for sentence in [*found.faults, *found.doubts]),
    ]


def _verification_json(found: Verification) -> dict[str, Any]:
    fields = {"path": str(found.path), "sound": found.is_sound, "owner_lives": False}
    return asdict(found) | fields


def _salvage(chosen: argparse.Namespace) -> ExitCode:
    code = ExitCode.DONE
    target = chosen.to.resolve()
    paths = [p for path in chosen.paths for p in ([path] if path.is_file() else _queues([path]))]
    if any(target.is_relative_to(path.resolve()) for path in paths):
        text = f"--to {chosen.to} is inside the queue's own directory; choose another one"
        return complain(text, ExitCode.USAGE)
    make_folders(target)
    for path in paths:
        try:
            salvaged = salvage(path, target, CALL_FIELD)
        except (QueueError, sqlite3.Error, OSError) as error:
            code = complain(inspection.explained(path, error), ExitCode.FAILED)
            continue
        for result in salvaged:
            if not result.is_whole:
                code = ExitCode.FAILED
            if chosen.json:
                _print_json(asdict(result) | {"path": str(path)})
            else:
                print("\n".join(_salvage_lines(path, target, result)))
    return code


def _salvage_lines(path: Path, target: Path, result: Salvage) -> list[str]:
    times = f", {result.oldest} to {result.newest}" if result.oldest else ""
    lines = [
        f"{path}: queue {result.queue_id}",
        f"  {counted(result.rows, 'row')} salvaged into {target / result.file}{times}",
        f"  {counted(result.uploaded_rows, 'row')} already uploaded, not salvaged",
    ]
    for told, title in (
        (result.missing, "missing"),
        (result.undecided, "salvaged, may be uploaded already"),
    ):
        lines.extend(f"  {title}: {spelled(rows)}" for rows in told[:MAX_PRINTED_RANGES])
        if (more := len(told) - MAX_PRINTED_RANGES) > 0:
            lines.append(f"  {title}: {counted(more, 'more range')}, see the report")
    lines.extend(_call_lines(target, result))
    lines.append(f"  report: {target / f'{result.queue_id}-report.json'}")
    lines.append("  rows after the newest one that was found cannot be detected")
    return lines


def _call_lines(target: Path, result: Salvage) -> Iterator[str]:
    for count, file, what in (
        (result.open_calls, result.open_calls_file, "without a response row"),
        (
            result.undecided_calls,
            result.undecided_calls_file,
            "whose response row may be among the uploaded or missing rows",
        ),
        (
            result.outdated_calls,
            result.outdated_calls_file,
            "found on outdated pages, most likely answered",
        ),
    ):
        if file:
            yield f"  {counted(count, 'call')} {what}; `interrupted` rows: {target / file}"


def _queues(paths: list[Path]) -> list[Path]:
    """The directories of all queues at `paths`; a path without a queue is reported on stderr."""
    found = []
    for path in paths:
        queues = inspection.queues_at(path)
        if not queues:
            print(f"No queue in {path}", file=sys.stderr)
        found.extend(queues)
    return list(dict.fromkeys(found))


def _status_json(look: Inspection) -> dict[str, Any]:
    fields = asdict(look) | {"path": str(look.path)}
    for name in ("oldest", "newest"):
        fields[name] = iso_time(fields.pop(f"{name}_ms"))
    return fields


def _print_json(fields: dict[str, Any]) -> None:
    print(json.dumps(fields, ensure_ascii=False))
