"""What a replay and a server count is true, also where a repair came in the middle."""

from pathlib import Path

from queue_fixtures import MemorySink, adopted, alter, seqs
from replay_fixtures import replayed, root, sink, small_objects_queue

__all__ = ["root", "sink"]


def damaged_in_reading(root: Path) -> Path:
    """34 rows in objects of three; row 2 does not match its CRC-32, row 20 is gone, and so is the
    text of the format's head. All of it shows only when it is read."""
    queue = small_objects_queue(root)
    alter(
        queue,
        "UPDATE rows SET crc32 = crc32 + 1 WHERE seq = 2",
        "DELETE FROM rows WHERE seq = 20",
        "UPDATE log_format SET crc32 = crc32 + 1 WHERE name = 'interrupted_tail'",
    )
    return queue


async def test_the_counts_are_true_after_a_repair_in_the_middle(
    root: Path, sink: MemorySink
) -> None:
    queue = damaged_in_reading(root)
    result = await replayed(queue, sink)
    rows = sink.rows()
    assert seqs(rows) == list(range(1, 35))
    assert [row["seq"] for row in rows if row["type"] == "damaged"] == [2, 20]
    assert (result.rows, result.objects, result.damaged_rows) == (34, len(sink.objects), 2)


async def test_a_servers_counts_are_too(root: Path, sink: MemorySink) -> None:
    damaged_in_reading(root)
    settled = (await adopted(root, sink)).settled
    assert len(sink.rows()) == settled.accepted_rows == settled.uploaded_rows == 34
    assert (settled.damaged_rows, settled.damaged_texts) == (2, 1)
