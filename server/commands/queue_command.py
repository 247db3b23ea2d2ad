"""open-llm-proxy queue status | verify | salvage: looking after queues, without changing them.

    open-llm-proxy queue status /var/lib/open-llm-proxy
    open-llm-proxy queue verify /var/lib/open-llm-proxy
    open-llm-proxy queue salvage ./quarantine/9f2c...-17... --to ./salvaged

status tells what lies in each queue, verify reads it whole and checks every row, salvage gets
everything that can be read out of a damaged file and reports what cannot. PATH is a folder of
queues or a queue's own folder; salvage takes a file too.

Exit codes: 0 all is well, 1 something is wrong or could not be looked at, 2 a mistake in the
command or the path, 3 a folder that cannot be read or written.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.damage.inspection import Inspection
from open_llm_proxy.queue.damage.salvage import Salvage, salvage, spelled
from open_llm_proxy.queue.damage.verification import Verification, verify
from open_llm_proxy.queue.errors import NotAQueue, OwnerAlive, QueueError
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.commands.console import iso_time
from open_llm_proxy.server.commands.queue_table import print_status

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
            code = EXIT_FOUND_FAULTS
            if chosen.json:
                _print_json({"path": str(path), "queue_id": path.name, "owner_lives": True})
            else:
                print(f"{path}: not verified: its process lives; its /health tells how it is")
            continue
        if not found.is_sound:
            code = EXIT_FOUND_FAULTS
        if chosen.json:
            _print_json(_verification_json(found))
        else:
            print("\n".join(_verification_lines(found)))
    return code


def _verification_lines(found: Verification) -> list[str]:
    verdict = "sound" if found.is_sound else "NOT SOUND"
    rows, calls = counted(found.checked_rows, "row"), counted(found.checked_open_calls, "open call")
    return [
        f"{found.path}: {verdict}, {rows} and {calls} checked",
        *(f"  {fault}" for fault in found.faults),
    ]


def _verification_json(found: Verification) -> dict[str, Any]:
    fields = {"path": str(found.path), "sound": found.is_sound, "owner_lives": False}
    return asdict(found) | fields


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
        f"  {counted(result.rows, 'row')} salvaged into {target / result.file}{times}",
        f"  {counted(result.uploaded_rows, 'row')} uploaded before and left out",
    ]
    for told, title in (
        (result.missing, "missing"),
        (result.undecided, "salvaged, and perhaps uploaded too"),
    ):
        lines.extend(f"  {title}: {spelled(rows)}" for rows in told[:TOLD])
        if len(told) > TOLD:
            lines.append(f"  {title}: {len(told) - TOLD} more ranges, see the report")
    lines.extend(_call_lines(target, result))
    lines.append(f"  report: {target / f'{result.queue_id}-report.json'}")
    lines.append("  rows behind the newest that was found leave no trace and cannot be named")
    return lines


def _call_lines(target: Path, result: Salvage) -> Iterator[str]:
    for count, file, what in (
        (result.open_calls, result.open_calls_file, "never closed"),
        (
            result.undecided_calls,
            result.undecided_calls_file,
            "without a closing row, which may be among the uploaded or missing rows",
        ),
        (
            result.outdated_calls,
            result.outdated_calls_file,
            "seen on outdated pages: closed, unless just those pages are damaged",
        ),
    ):
        if file:
            yield f"  {counted(count, 'call')} {what}; the rows that close: {target / file}"


def _queues(paths: list[Path]) -> list[Path]:
    """The folders of all queues that `paths` mean; one that means none is told on stderr."""
    found = []
    for path in paths:
        queues = inspection.queues_at(path)
        if not queues:
            print(f"no queue in {path}", file=sys.stderr)
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
