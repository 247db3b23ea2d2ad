"""Replaying a big queue: to a directory in bounded memory, and to a real Ceph RGW beside boto3.

    python benchmarks/replay.py [ENTRIES] [MEGABYTES] [ROUNDS]

First a dead queue of ENTRIES (1,000,000) entries, 2 kB on average, is replayed to a directory,
by the real command as a process of its own, and the same objects are then written plainly (write,
fsync, rename), so that the disk's share is known. Then a queue of MEGABYTES (200) goes to the RGW
that tests/rgw.sh runs, in turn with boto3's put_object of the same objects: one after the other,
and four at a time as the replay does. That RGW keeps 1 GB in memory and gives nothing back for
hours, so three times MEGABYTES, and this for each of ROUNDS (1), must stay well below. 0 leaves a
part out.

Seen on two shared cores: a million entries in 33 s (61 MB/s; written plainly 8 s), with 102 MB at
the peak; 199 MB to the RGW in 8.1 s, where boto3 took 1.8 s one at a time and 1.1 s four at a time.
A replay is bound by its CPU (about 20 us a row: read from SQLite, checked by its CRC-32, hashed,
deleted) and shares the cores with an RGW that keeps everything in memory; boto3 sends what is in
memory already. Behind a network of less than 25 MB/s the store decides.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from open_llm_proxy.queue import folder
from open_llm_proxy.queue.entry import Append, Entry, LogFormat
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.store import Store
from open_llm_proxy.queue.uploads import AT_ONCE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import stores

ENTRY_BYTES = 2000
GROUP = 1000
BEGAN_MS = 1_700_049_600_000
MS_PER_ENTRY = 20  # 50 entries a second: windows of five minutes hold 30 MB
COMMAND = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "replay")


class Run(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> None:
    numbers = [int(argument) for argument in sys.argv[1:]]
    entries, megabytes, rounds = (*numbers, *(1_000_000, 200, 1)[len(numbers) :])
    with tempfile.TemporaryDirectory() as name:
        if entries:
            to_a_directory(Path(name) / "directory", entries)
        if megabytes:
            to_an_rgw(Path(name) / "rgw", megabytes, rounds)


def to_a_directory(base: Path, entries: int) -> None:
    queue = made_queue(base / "queues", entries)
    size = sum(path.stat().st_size for path in queue.iterdir())
    print(f"{entries:,} entries, queue of {size / 1e6:,.0f} MB, to a directory")
    run = measured([*COMMAND, str(queue), "--to", str(base / "objects")], {})
    objects = sorted((base / "objects").rglob("*.jsonl"))
    size = sum(path.stat().st_size for path in objects)
    report("replay", [run], size, len(objects))
    print(f"  peak memory {run.peak_bytes / 1e6:.0f} MB, CPU {run.cpu_seconds:.1f} s")
    began = time.monotonic()
    for path in objects:
        write_plainly(base / "plain" / path.name, path.read_bytes())
    report("the same objects written plainly", [Run(time.monotonic() - began, 0, 0)], size, 0)
    shutil.rmtree(base)


def to_an_rgw(base: Path, megabytes: int, rounds: int) -> None:
    entries = megabytes * 1_000_000 // ENTRY_BYTES
    queue = made_queue(base / "queues", entries)
    bodies = sealed_objects(base, queue)
    size = sum(map(len, bodies.values()))
    print(f"{size / 1e6:,.0f} MB in {len(bodies)} objects, to a Ceph RGW, {rounds} rounds in turn")
    found: dict[str, list[Run]] = {}
    with rgw(base) as server:
        for _ in range(rounds):
            for name, work in (
                ("replay", lambda store: replay_to(store, base, queue)),
                ("boto3, one at a time", lambda store: put_all(store, bodies, 1)),
                (f"boto3, {AT_ONCE} at a time", lambda s: put_all(s, bodies, AT_ONCE)),
            ):
                found.setdefault(name, []).append(in_a_bucket(server, bodies, work))
    for name, runs in found.items():
        report(name, runs, size, len(bodies))
        print(f"    CPU {statistics.median(run.cpu_seconds for run in runs):.1f} s")
    (base / "empty").mkdir()
    idle = measured([*COMMAND, str(base / "empty"), "--to", str(base / "nothing")], {})
    print(f"  starting the program, with nothing to do: {idle.seconds:.1f} s")
    for name in list(found)[1:]:
        ratios = [a.seconds / b.seconds for a, b in zip(found["replay"], found[name], strict=True)]
        print(f"  replay / {name}: {statistics.median(ratios):.2f} of its time")


def made_queue(root: Path, entries: int) -> Path:
    """The folder of a queue of `entries` entries whose process has ended."""
    folder.prepare_root(root)
    owned = folder.give_birth(root, Meta(300, 16 * 1024 * 1024, LogFormat(b"", b"}", b"{}")))
    store = Store.open(owned.path)
    chance = random.Random(1)
    text = "The states that protect the most land. " * (ENTRY_BYTES // 15)
    for start in range(0, entries, GROUP):
        sizes = (chance.randrange(2 * ENTRY_BYTES - 250) for _ in range(GROUP))
        numbers = range(start, min(start + GROUP, entries))
        group = tuple(entry(n, text[:size]) for n, size in zip(numbers, sizes, strict=False))
        store.commit([Append(group)])
        store.checkpoint_if_due()
    store.close(cleanly=True)
    owned.release()
    return owned.path


def entry(number: int, text: str) -> Entry:
    at_ms = BEGAN_MS + number * MS_PER_ENTRY
    fields = {"timestamp": at_ms, "type": "request", "number": number, "text": text}
    return Entry(json.dumps(fields).encode(), at_ms)


def sealed_objects(base: Path, queue: Path) -> dict[str, bytes]:
    """Key and bytes of the objects that the queue becomes."""
    copy = Path(shutil.copytree(queue, base / "copy" / queue.name))
    subprocess.run([*COMMAND, str(copy), "--to", str(base / "objects")], check=True,
                   capture_output=True)  # fmt: skip
    objects = base / "objects"
    return {
        path.relative_to(objects).as_posix(): path.read_bytes()
        for path in sorted(objects.rglob("*.jsonl"))
    }


def measured(command: list[str], environment: dict[str, str]) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment},
                          capture_output=True, text=True)  # fmt: skip
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The largest of all children so far; the replay is by far the largest.
    return Run(seconds, cpu, after.ru_maxrss * 1024)


def write_plainly(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path.with_suffix(".part"), path)


@contextmanager
def rgw(base: Path) -> Iterator[stores.S3Server]:
    try:
        gateway = stores.Rgw(base)
    except stores.StoreUnavailable as error:
        raise SystemExit(f"no Ceph RGW here: {error}") from None
    try:
        yield gateway.server
    finally:
        gateway.close()


def in_a_bucket(
    server: stores.S3Server, bodies: dict[str, bytes], work: Callable[[stores.S3Store], Run]
) -> Run:
    """Do `work` with a new bucket, and see that everything has arrived."""
    store = stores.S3Store(server, f"benchmark-{uuid.uuid4().hex[:12]}")
    try:
        run = work(store)
        assert dict(store.objects()) == bodies, "not what was sent"
        return run
    finally:
        store.close(remove=True)


def replay_to(store: stores.S3Store, base: Path, queue: Path) -> Run:
    copy = Path(shutil.copytree(queue, base / "again" / queue.name))
    return measured([*COMMAND, str(copy)], store.env())


def put_all(store: stores.S3Store, bodies: dict[str, bytes], at_once: int) -> Run:
    def put(item: tuple[str, bytes]) -> None:
        store.client.put_object(Bucket=store.bucket, Key=item[0], Body=item[1])

    began, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(at_once) as executor:
        list(executor.map(put, bodies.items()))
    return Run(time.monotonic() - began, time.process_time() - cpu, 0)


def report(name: str, runs: list[Run], size: int, objects: int) -> None:
    seconds = [run.seconds for run in runs]
    spread = f" ({min(seconds):.1f}-{max(seconds):.1f})" if len(runs) > 1 else ""
    count = f", {objects} objects" if objects else ""
    middle = statistics.median(seconds)
    print(f"  {name}: {middle:.1f} s{spread}, {size / 1e6 / middle:.0f} MB/s{count}", flush=True)


if __name__ == "__main__":
    main()
