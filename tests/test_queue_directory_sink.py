"""The directory sink: no half-written object, and none that a power cut could take away."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from open_llm_proxy.queue import sinks
from open_llm_proxy.queue.sinks import (
    DirectorySink,
    SinkFailure,
    SinkRefused,
)
from test_queue_sinks import BODY, NAME, batch_of


def test_an_object_in_a_directory_lies_where_it_would_in_a_bucket(tmp_path: Path) -> None:
    sink = DirectorySink(tmp_path / "not" / "there")
    sink.put(batch_of(), BODY)
    sink.put(batch_of(), BODY)
    assert (tmp_path / "not" / "there" / NAME).read_bytes() == BODY
    assert sink.identity == f"dir:{tmp_path}/not/there"
    assert len(list((tmp_path / "not" / "there").rglob("*"))) == 2


def test_nobody_sees_a_half_written_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sinks, "reach", lambda name: seen.extend((name, *jsonl(tmp_path))))
    DirectorySink(tmp_path).put(batch_of(), BODY)
    assert seen == ["object-written", "object-renamed", NAME]


def jsonl(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*.jsonl")]


def test_an_object_is_synced_before_its_name_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("object" if path.suffix == ".part" else path.relative_to(tmp_path).as_posix())
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    (tmp_path / "objects" / "2026-03-01").mkdir(parents=True)
    sink = DirectorySink(tmp_path / "objects")
    sink.put(batch_of(), BODY)
    # The folder was there, but a process that died may have made it just before.
    assert steps == ["objects", "object", "rename", "objects/2026-03-01"]
    steps.clear()
    sink.put(batch_of(), BODY)
    assert steps == ["object", "rename", "objects/2026-03-01"]


def test_what_a_dead_writer_left_is_cleared_with_the_next_put(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.parent.mkdir()
    left = path.with_name(f".{path.name}.aabbccdd.part")
    other = path.with_name(".another.jsonl.aabbccdd.part")
    left.write_bytes(BODY[:10])
    other.write_bytes(b"")
    DirectorySink(tmp_path).put(batch_of(), BODY)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [other.name, path.name]


def test_a_directory_that_cannot_be_written_is_a_failure_that_may_be_tried_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "objects").write_bytes(b"a file is in the way")
    sink = DirectorySink(tmp_path / "objects")
    with pytest.raises(SinkRefused):
        sink.put(batch_of(), BODY)
    assert not sink.holds(batch_of())
    (tmp_path / "objects").unlink()
    sink.put(batch_of(), BODY)
    assert sink.holds(batch_of())


@pytest.mark.parametrize(
    "name",
    [
        f"../{NAME}",
        f"2026-03-01/../../{NAME[11:]}",
        f"{NAME[:10]}/{NAME}",
        f"/{NAME}",
        f"{NAME}\n",
        "elsewhere.jsonl",
        "",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SinkRefused, match="nothing is written there"):
        DirectorySink(tmp_path / "objects").put(batch_of(name=name), BODY)
    assert list(tmp_path.rglob("*")) == []


def test_a_day_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / NAME[:10]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkRefused, match="nothing is written there"):
        DirectorySink(tmp_path / "objects").put(batch_of(), BODY)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_directory_leaves_no_part_of_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, pieces: Iterable[bytes], mode: int) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks, "write_file", full)
    with pytest.raises(SinkRefused, match="No space left"):
        DirectorySink(tmp_path).put(batch_of(), BODY)
    assert list((tmp_path / "2026-03-01").iterdir()) == []


def test_an_object_that_has_its_name_but_is_not_durable_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = DirectorySink(tmp_path)
    sink.put(batch_of(), BODY)  # so that the day's folder is durable

    def broken(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sinks, "fsync_folder", broken)
    with pytest.raises(SinkFailure, match="Input/output error") as raised:
        sink.put(batch_of(), BODY)
    assert not isinstance(raised.value, SinkRefused)
