"""open-llm-proxy replay: finish the queues of dead processes, from wherever their folders are.

    open-llm-proxy replay /var/lib/open-llm-proxy            to the sink of the environment
    open-llm-proxy replay ./copied-queue --to s3://logs-ns/
    open-llm-proxy replay ./copied-queue --to ./logs --dry-run
    open-llm-proxy replay ./copied-queue --to - | duckdb ...

The objects are those that the server would have uploaded, byte for byte: replaying twice, or
after the server has uploaded half, changes nothing. A folder whose process lives is refused.
Ctrl-C stops after the objects under way, and the next run goes on. PATH is a folder of queues
or a queue's own folder.

Exit codes: 0 nothing is left, 1 something is (its line says LEFT and why), 2 a mistake in the
command, the settings or the path, 3 a folder that cannot be read or written.
"""

import argparse
import asyncio
import errno
import io
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

from open_llm_proxy.queue.damage import inspection
from open_llm_proxy.queue.damage.plan import Plan, planned
from open_llm_proxy.queue.durable_files import make_folders
from open_llm_proxy.queue.errors import NotAQueue
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.orphans.replay import Replay, Replayed
from open_llm_proxy.queue.orphans.replay_target import Delivery, SinkUnavailable, ToSinks, ToStdout
from open_llm_proxy.queue.sinks import DirectorySink, Sink
from open_llm_proxy.server.commands.console import size
from open_llm_proxy.server.commands.replay_progress import Progress, Totals
from open_llm_proxy.server.serve import SWITCH_INTERVAL_SECONDS
from open_llm_proxy.server.settings import Settings, SettingsError, from_process_environment
from open_llm_proxy.server.sink_choice import choose_sink, open_sink

EXIT_LEFT = 1
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3
STDOUT = "-"


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``replay`` to the program's commands."""
    parser = commands.add_parser(
        "replay",
        help="upload what dead processes left in their queues",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument(
        "--to",
        metavar="s3://BUCKET/PREFIX|DIR|-",
        help="where to, instead of the environment's sink; the prefix is put in front of keys as "
        "it is, like LOG_PREFIX; - prints the rows and acknowledges nothing",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="send also what was first tried on another sink; its rows may then be in both",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing, say what would be done"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders of finished queues")
    parser.set_defaults(run=_replay)


def _replay(chosen: argparse.Namespace) -> int:
    settings = from_process_environment()
    sink = None if chosen.to == STDOUT else _sink(chosen.to, settings)
    try:
        paths = _queues(chosen.paths)
        if isinstance(sink, DirectorySink):
            _check_folder(sink.root, paths, chosen.dry_run)
    except NotAQueue as error:
        return _complain(str(error), EXIT_USAGE)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}", EXIT_ENVIRONMENT)
    out = sys.stderr if sink is None else sys.stdout
    if chosen.dry_run:
        code = _plan(paths, sink, chosen, settings, out)
    else:
        code = _finish(paths, sink, chosen, settings, out) if paths else 0
    if not paths:
        names = ", ".join(str(path) for path in chosen.paths)
        print(f"no queue in {names}: nothing is left to do", file=out)
    for told in filter(None, map(inspection.quarantine_told, chosen.paths)):
        print(told, file=out)
    return code


def _plan(
    paths: list[Path],
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
    out: TextIO,
) -> int:
    """Say what would be done; returns the exit code."""
    plans = [planned(path) for path in paths]
    for plan in plans:
        print("\n".join(_told(plan, sink, chosen.again, settings)), file=out)
    return EXIT_LEFT if any(plan.refusal for plan in plans) else 0


def _finish(
    paths: list[Path],
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
    out: TextIO,
) -> int:
    """Finish the queues and say what became of each; returns the exit code."""
    totals = Totals.of(paths)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    done = asyncio.run(_run(paths, totals, sink, chosen, settings))
    for result in done:
        print(_spelled(result, sink, chosen.keep), file=out)
    return EXIT_LEFT if any(result.left for result in done) else 0


async def _run(
    paths: list[Path],
    totals: Totals,
    sink: Sink | None,
    chosen: argparse.Namespace,
    settings: Settings,
) -> list[Replayed]:
    delivery: Delivery
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
            left = "stopped at once; another run goes on"
            rest = paths[len(replay.done) :]
            return [*replay.done, *(Replayed(path, left=left) for path in rest)]


def _listen(replay: Replay, task: "asyncio.Task[list[Replayed]]", progress: Progress) -> None:
    """SIGINT and SIGTERM stop after the objects under way, a second one at once."""
    asked: list[int] = []

    def on_signal(number: int) -> None:
        if asked:
            task.cancel()
            return
        asked.append(number)
        progress.say("stopping after the objects under way; once more stops at once")
        replay.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)


def _sink(to: str | None, settings: Settings) -> Sink:
    """The sink to replay to; raises `SettingsError` where there is none."""
    if to is None:
        sink = choose_sink(settings)
        if isinstance(sink, str):
            raise SettingsError(f"{sink.partition(':')[0]}: name one with --to")
        return sink
    if not to:
        raise SettingsError("--to is empty: name s3://bucket/prefix, a folder, or -")
    if to.startswith("s3://"):
        try:
            return open_sink(to, settings)
        except SinkUnavailable as error:
            raise SettingsError(f"--to {to}: {error}") from None
    return DirectorySink(Path(to.removeprefix("dir:")))


def _check_folder(root: Path, paths: list[Path], dry_run: bool) -> None:
    """Make the sink's folder if need be; raises OSError where nothing can be written to it.

    Raises `NotAQueue` where it lies in a queue's own folder and would be removed with that.
    """
    if inside := [path for path in paths if root.resolve().is_relative_to(path)]:
        raise NotAQueue(f"{root} lies in {inside[0]}, which is removed when it is finished")
    if paths and not dry_run:
        make_folders(root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))


def _queues(paths: list[Path]) -> list[Path]:
    """The folders of all queues that `paths` mean, each once."""
    found = [queue.resolve() for path in paths for queue in inspection.queues_at(path)]
    return list(dict.fromkeys(found))


def _told(plan: Plan, sink: Sink | None, again: bool, settings: Settings) -> list[str]:
    """What the replay of one queue would do, as lines."""
    lines = [f"{plan.path}: {fault}" for fault in plan.faults]
    if plan.refusal is not None:
        reason = plan.refusal.removeprefix(f"{plan.path} ")
        return [*lines, f"{plan.path}: nothing would be done: {reason}"]
    rows = f"{plan.path}: {counted(plan.rows, 'row')} ({size(plan.bytes)})"
    if sink is None:
        return [*lines, f"{rows}; would print them"]
    own = sum(count for to, count in plan.objects.items() if again or to in (None, sink.identity))
    closed = f", after closing {counted(plan.closed_calls, 'call')}" if plan.closed_calls else ""
    lines.append(f"{rows}{closed}; would put {counted(own, 'object')} to {sink.identity}")
    for to, count in plan.objects.items():
        if to in (None, sink.identity):
            continue
        objects = counted(count, "object")
        if again:
            lines.append(f"{plan.path}: {count} of them may be on {to} too, where they were tried")
            continue
        try:
            open_sink(to, settings)
        except SinkUnavailable as error:
            plan.refusal = f"{objects} first tried on {to}: {error}"
            lines.append(f"{plan.path}: would be left: {plan.refusal}; --again sends what is left")
        else:
            lines.append(f"{plan.path}: would put {objects} to {to}, where they were tried")
    return lines


def _spelled(result: Replayed, sink: Sink | None, keep: bool) -> str:
    """What became of one queue."""
    rows = counted(result.rows, "row")
    if sink is None:
        did = f"printed {rows}, acknowledged nothing"
    elif result.rows:
        did = f"uploaded {rows} in {counted(result.objects, 'object')}"
    else:
        did = "nothing was left to upload"
    if result.left is not None:
        left = f"LEFT: {result.left.removeprefix(f'{result.path} ')}"
        return f"{result.path}: {did}; {left}" if result.rows else f"{result.path}: {left}"
    if result.from_copy:
        return f"{result.path}: {did}; from a copy, the folder stays as it was"
    if sink is None:
        return f"{result.path}: {did}"
    return f"{result.path}: {did}; {'kept' if keep else 'finished and removed'}"


def _complain(text: str, code: int) -> int:
    print(f"open-llm-proxy replay: {text}", file=sys.stderr)
    return code
