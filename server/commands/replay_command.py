"""open-llm-proxy replay: upload the queues that ended processes left, from wherever they are.

    open-llm-proxy replay /var/lib/open-llm-proxy            to LOG_BUCKET or LOG_DIR
    open-llm-proxy replay ./copied-queue --to s3://logs-ns/
    open-llm-proxy replay ./copied-queue --to ./logs --dry-run
    open-llm-proxy replay ./copied-queue --to - | duckdb ...

The objects are byte for byte those that the server would have uploaded. So replaying twice, or
after the server has uploaded half, changes nothing. The queue of a running process is refused.
Ctrl-C stops after the current uploads; run the command again to resume. PATH is LOG_QUEUE_DIR or
the directory of one queue.

Exit codes: 0 everything is uploaded, 1 something is left (the line says LEFT and why), 2 mistake in
the command line, the settings or the path, 3 a directory cannot be read or written.
"""

import argparse
import asyncio
import errno
import io
import json
import os
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TextIO

from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.damage.plan import Plan, planned
from open_llm_proxy.queue.durable_files import SHARED_FOLDER, make_folders
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.orphans.replay import Replay, Replayed
from open_llm_proxy.queue.orphans.replay_target import (
    ReplayTarget,
    SinkUnavailable,
    ToSinks,
    ToStdout,
)
from open_llm_proxy.queue.sinks import DirectorySink, Sink
from open_llm_proxy.server.commands.console import ExitCode, size
from open_llm_proxy.server.commands.replay_progress import Progress, Totals
from open_llm_proxy.server.serve import SWITCH_INTERVAL_SECONDS
from open_llm_proxy.server.settings import Settings, SettingsError, from_process_environment
from open_llm_proxy.server.sink_choice import choose_sink, open_sink

STDOUT = "-"


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``replay`` to the program's commands."""
    parser = commands.add_parser(
        "replay",
        help="upload the queues that ended processes left",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument(
        "--to",
        metavar="s3://BUCKET/PREFIX|DIR|-",
        help="destination instead of LOG_BUCKET or LOG_DIR; the prefix works like LOG_PREFIX; "
        "- prints the rows to stdout and leaves them in the queue",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="also upload what may be in another bucket already; its rows may then be in both",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done, change nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per queue")
    parser.add_argument("--keep", action="store_true", help="keep directories of uploaded queues")
    parser.set_defaults(run=_replay)


def _replay(chosen: argparse.Namespace) -> ExitCode:
    settings = from_process_environment()
    sink = None if chosen.to == STDOUT else _sink(chosen.to, settings)
    paths = _queues(chosen.paths)
    if isinstance(sink, DirectorySink):
        _check_directory(sink.root, paths, chosen.dry_run)
    out = sys.stderr if sink is None or (chosen.json and not paths) else sys.stdout
    if not paths:
        code = ExitCode.DONE
        names = ", ".join(str(path) for path in chosen.paths)
        print(f"No queue in {names}; nothing to do", file=out)
    elif chosen.dry_run:
        code = _plan(paths, sink, chosen, settings, out)
    else:
        code = _finish(paths, sink, chosen, settings, out)
    for told in filter(None, map(inspection.quarantine_told, chosen.paths)):
        print(told, file=sys.stderr if chosen.json else out)
    return code


def _plan(
    paths: list[Path],
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
    out: TextIO,
) -> ExitCode:
    """Print what would be done; returns the exit code."""
    plans = [planned(path) for path in paths]
    for plan in plans:
        lines = _plan_lines(plan, sink, chosen.again, settings)
        print(_json(plan) if chosen.json else "\n".join(lines), file=out)
    return ExitCode.FAILED if any(plan.refusal for plan in plans) else ExitCode.DONE


def _finish(
    paths: list[Path],
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
    out: TextIO,
) -> ExitCode:
    """Upload the queues and print a line for each; returns the exit code."""
    totals = Totals.of(paths)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    done = asyncio.run(_run(paths, totals, sink, chosen, settings))
    for result in done:
        print(_json(result) if chosen.json else _result_line(result, sink, chosen.keep), file=out)
    return ExitCode.FAILED if any(result.left for result in done) else ExitCode.DONE


async def _run(
    paths: list[Path],
    totals: Totals,
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
) -> list[Replayed]:
    delivery: ReplayTarget
    if sink is None:
        delivery = ToStdout(io.FileIO(sys.stdout.fileno(), "wb", closefd=False))
    else:
        delivery = ToSinks(sink, partial(open_sink, settings=settings), again=chosen.again)
    replay = Replay(delivery, keep=chosen.keep, allow_copies=chosen.again)
    with Progress(delivery.counts, totals) as progress:
        task = asyncio.ensure_future(replay.run(paths))
        _listen(replay, task, progress)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=progress.every_seconds)
                progress.show()
            return task.result()
        except asyncio.CancelledError:
            left = "stopped immediately; run the command again to resume"
            rest = paths[len(replay.done) :]
            return [*replay.done, *(Replayed(path, left=left) for path in rest)]


def _listen(replay: Replay, task: "asyncio.Task[list[Replayed]]", progress: Progress) -> None:
    """SIGINT and SIGTERM stop after the current uploads, a second one stops immediately."""
    asked: list[int] = []

    def on_signal(number: int) -> None:
        if asked:
            task.cancel()
            return
        asked.append(number)
        progress.say("Stopping after the current uploads; press Ctrl-C again to stop immediately")
        replay.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)


def _sink(to: str | None, settings: Settings) -> Sink:
    """The sink to replay to; raises `SettingsError` if there is none."""
    if to is None:
        sink = choose_sink(settings)
        if isinstance(sink, str):
            reason = sink.partition(":")[0]
            raise SettingsError(f"No destination: {reason}; set them or use --to")
        return sink
    if not to:
        raise SettingsError("--to is empty: use s3://bucket/prefix, a directory, or -")
    if to.startswith("s3://"):
        try:
            return open_sink(to, settings)
        except SinkUnavailable as error:
            raise SettingsError(f"--to {to}: {error}") from None
    return DirectorySink(Path(to.removeprefix("dir:")))


def _check_directory(root: Path, paths: list[Path], dry_run: bool) -> None:
    """Make the sink's directory if necessary; raises OSError where it cannot be written.

    Raises `SettingsError` where it is inside a queue's own directory, which is removed at the end.
    """
    if inside := [path for path in paths if root.resolve().is_relative_to(path)]:
        raise SettingsError(
            f"{root} is inside {inside[0]}, which is removed after the upload; "
            "choose another destination"
        )
    if paths and not dry_run:
        make_folders(root, SHARED_FOLDER)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))


def _queues(paths: list[Path]) -> list[Path]:
    """The directories of all queues at `paths`, each once."""
    found = [queue.resolve() for path in paths for queue in inspection.queues_at(path)]
    return list(dict.fromkeys(found))


def _json(result: Plan | Replayed) -> str:
    """What is known of one queue; `left` and `refusal` are null where nothing is left."""
    return json.dumps(asdict(result), default=str)


def _plan_lines(plan: Plan, sink: Sink | None, again: bool, settings: Settings) -> list[str]:
    """The lines that say what a replay of one queue would do."""
    lines = [f"{plan.path}: {sentence}" for sentence in (*plan.faults, *plan.doubts)]
    if plan.refusal is not None:
        reason = plan.refusal.removeprefix(f"{plan.path} ")
        return [*lines, f"{plan.path}: would be skipped: {reason}"]
    rows = f"{plan.path}: {counted(plan.rows, 'row')} ({size(plan.bytes)})"
    if sink is None:
        return [*lines, f"{rows}; would be printed"]
    own = sum(count for to, count in plan.objects.items() if again or to in (None, sink.identity))
    closed = ""
    if plan.closed_calls:
        closed = f", after marking {counted(plan.closed_calls, 'call')} interrupted"
    lines.append(f"{rows}{closed}; would upload {counted(own, 'object')} to {sink.identity}")
    for to, count in plan.objects.items():
        if to in (None, sink.identity):
            continue
        objects = counted(count, "object")
        if again:
            lines.append(f"{plan.path}: {count} of them may be in {to} already")
            continue
        try:
            open_sink(to, settings)
        except SinkUnavailable as error:
            plan.refusal = f"{objects} may be in {to} already ({error})"
            lines.append(f"{plan.path}: would be left: {plan.refusal}; --again uploads them anyway")
        else:
            lines.append(f"{plan.path}: would upload {objects} to {to}, where they may be already")
    return lines


def _result_line(result: Replayed, sink: Sink | None, keep: bool) -> str:
    """The line that says what was done with one queue."""
    rows = counted(result.rows, "row")
    if sink is None:
        did = f"printed {rows}, which stay in the queue"
    elif result.rows:
        did = f"uploaded {rows} in {counted(result.objects, 'object')}"
    else:
        did = "nothing to upload"
    if result.damaged_rows:
        did += f", {result.damaged_rows:,} of which stand for rows that are damaged or lost"
    if result.left is not None:
        left = f"LEFT: {result.left.removeprefix(f'{result.path} ')}"
        return f"{result.path}: {did}; {left}" if result.rows else f"{result.path}: {left}"
    if result.from_copy:
        return f"{result.path}: {did}; from a copy, the directory is unchanged"
    if sink is None:
        return f"{result.path}: {did}"
    return f"{result.path}: {did}; {'directory kept' if keep else 'directory removed'}"
