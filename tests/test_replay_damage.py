"""Flipped bits anywhere in a queue's files: noticed, told, and nothing is destroyed."""

import random
import shutil
from pathlib import Path

import pytest

from open_llm_proxy.queue import schema
from open_llm_proxy.queue.damage.inspection import inspect
from open_llm_proxy.queue.damage.plan import planned
from open_llm_proxy.queue.damage.verification import verify
from open_llm_proxy.queue.orphans.replay import Replay, Replayed
from open_llm_proxy.queue.orphans.replay_target import ToSinks
from queue_fixtures import MemorySink, dead_queue, flip_bit, quarantined
from replay_fixtures import nowhere
from test_queue_damage import MixedFill
from test_queue_inspection import snapshot

OPEN_CALLS = 4  # those that MixedFill leaves


async def replayed(queue: Path, sink: MemorySink) -> Replayed:
    (result,) = await Replay(ToSinks(sink, nowhere, retry_seconds=0.001)).run([queue])
    return result


async def check_flip(tmp_path: Path, seed: int) -> None:
    """Flip a random bit of the file or its log; look, verify and replay."""
    chance = random.Random(seed)
    root, sink = tmp_path / f"queues-{seed}", MemorySink()
    fill = MixedFill(sink)
    queue = dead_queue(root, fill, cleanly=seed % 2 == 0)
    expected, untouched = MemorySink(), root.with_name(f"untouched-{seed}")
    expected.objects.update(sink.objects)
    shutil.copytree(root, untouched)
    assert (await replayed(untouched / queue.name, expected)).left is None
    whole = {row["seq"]: row for row in expected.rows()}
    assert len(whole) == fill.rows + OPEN_CALLS
    files = [queue / name for name in (schema.DATABASE_NAME, schema.WAL_NAME)]
    file = chance.choice([file for file in files if file.exists()])
    flip_bit(file, chance.randrange(file.stat().st_size), chance.randrange(8))
    before = snapshot(root)
    inspect(queue)
    planned(queue)
    verification = verify(queue)
    assert snapshot(root) == before
    result = await replayed(queue, sink)
    rows = {row["seq"]: row for row in sink.rows()}
    if result.left is not None:
        assert "queue salvage" in result.left, f"seed {seed}: {result.left}"
        assert not verification.is_sound, f"seed {seed}: {result.left}"
        assert (queue / schema.DATABASE_NAME).stat().st_size >= before[
            f"{queue.name}/{schema.DATABASE_NAME}"
        ][1]
        return
    changed = {seq for seq, row in whole.items() if rows.get(seq) != row}
    told = {seq for seq, row in rows.items() if row["type"] == "damaged"}
    # A torn end of the log cannot be told from a kill: the last rows may be as they were before.
    behind = {seq for seq in changed if seq not in rows or rows[seq]["type"] == "interrupted"}
    assert changed - told <= behind, f"seed {seed}: rows were changed without a word"
    if file.name == schema.DATABASE_NAME:
        assert not changed - told, f"seed {seed}: rows are gone without a word"
        assert bool(changed) <= (not verification.is_sound), f"seed {seed}: verify missed it"
    assert bool(told) <= bool(quarantined(root)), f"seed {seed}: what was found is not kept"


@pytest.mark.parametrize("seeds", [range(0, 10), range(10, 20)])
async def test_a_flipped_bit_is_told_and_costs_little(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        await check_flip(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(1000, 1200, 20)])
async def test_many_flipped_bits_one_by_one(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        await check_flip(tmp_path, seed)
