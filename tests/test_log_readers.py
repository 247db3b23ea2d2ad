"""The parts that read the log as it comes: lines out of streams, entries out of captures."""

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_llm_proxy.archive.sources.capture import BROKEN_LINES, OTHER_LINES, CaptureReader
from open_llm_proxy.archive.sources.lines import (
    CHUNK_BYTES,
    MAX_LINE_BYTES,
    decoded,
    split_lines,
)
from open_llm_proxy.archive.sources.source import Problems

ROW: dict[str, object] = {
    "timestamp": "2026-04-07T10:00:00.000Z",
    "type": "request",
    "stream": True,
    "log": None,
}
ROW |= {"user_question": "x" * 50}
ENTRY = json.dumps(ROW).encode()
STDERR = b"2026-04-07T10:00:00Z WARNING Something is slow"
TIME = b"2026-04-07T10:00:00.123456789Z "


def chunks_of(data: bytes, size: int) -> Callable[[int], bytes]:
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda _: next(pieces, b"")


def lines_of(read: Callable[[int], bytes], problems: Problems | None = None) -> list[bytes]:
    problems = problems or Problems()
    return list(split_lines(decoded(read, problems), problems))


@pytest.mark.parametrize("size", [3, 7, CHUNK_BYTES])
def test_lines_are_split_whatever_the_chunks(size: int) -> None:
    data = b"one\n\ntwo\r\nthree \xe2\x80\xa8 still three\nrest"
    assert lines_of(chunks_of(data, size)) == data.split(b"\n")
    assert lines_of(chunks_of(b"one\n", size)) == [b"one"]
    assert lines_of(chunks_of(b"", size)) == []


@pytest.mark.parametrize("size", [3, 7, CHUNK_BYTES])
@pytest.mark.parametrize("form", ["gzip", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_gzip_and_what_shells_write_are_decoded(form: str, size: int) -> None:
    text = 'one\n{"a":"größer ✓"}\n' * 50
    if form == "gzip":
        half = len(text) // 2
        data = gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode())
    else:
        data = (text if "sig" in form else "\ufeff" + text).encode(form)
    problems = Problems()
    assert b"\n".join(lines_of(chunks_of(data, size), problems)) + b"\n" == text.encode()
    assert not problems.counts


def test_a_gzip_stream_that_is_damaged_or_cut_off_is_told() -> None:
    data = gzip.compress(ENTRY + b"\n" + bytes(range(256)) * 40)
    for broken in (data[:60], data[:40] + b"\xff" * 40 + data[80:]):
        problems = Problems()
        lines_of(chunks_of(broken, 1000), problems)
        assert problems.is_short


def test_a_line_beyond_any_entry_takes_no_memory_and_the_next_ones_are_read() -> None:
    def read() -> Iterator[bytes]:
        yield b"first\n"
        for _ in range(400):
            yield b"x" * CHUNK_BYTES
        yield b"\nlast\n"

    pieces = read()
    problems = Problems()
    tracemalloc.start()
    found = lines_of(lambda _: next(pieces, b""), problems)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [b"first", b"last"]
    assert problems.is_short and sum(problems.counts.values()) == 1
    assert peak < 4 * MAX_LINE_BYTES < 400 * CHUNK_BYTES


def captured(*lines: bytes) -> tuple[list[bytes], dict[str, int]]:
    problems = Problems()
    return list(CaptureReader(problems).entries(lines)), dict(problems.counts)


def cri(text: bytes, stream: bytes = b"stdout", flag: bytes = b"F") -> bytes:
    return TIME + stream + b" " + flag + b" " + text


def docker(text: bytes, stream: str = "stdout", end: str = "\n") -> bytes:
    return json.dumps({"log": text.decode() + end, "stream": stream, "time": "t"}).encode()


@pytest.mark.parametrize(
    "lines",
    [
        [ENTRY],
        [ENTRY + b"\r"],
        [TIME + ENTRY],
        [b"[pod/proxy-7d4f/proxy] " + ENTRY],
        [b"[pod/proxy-7d4f/proxy] " + TIME + ENTRY],
        [cri(ENTRY)],
        [cri(ENTRY[:20], flag=b"P"), cri(ENTRY[20:40], flag=b"P"), cri(ENTRY[40:])],
        [cri(ENTRY[:20], flag=b"P"), cri(STDERR, b"stderr"), cri(ENTRY[20:])],
        [ENTRY[:40] + STDERR, ENTRY[40:]],
        [TIME + ENTRY[:40] + STDERR, STDERR, ENTRY[40:]],
        [ENTRY[:30] + STDERR, ENTRY[30:40] + STDERR, ENTRY[40:]],
        [docker(ENTRY)],
        [docker(ENTRY[:30], end=""), docker(STDERR, "stderr"), docker(ENTRY[30:])],
        [b"[pod/a/c] " + cri(ENTRY[:20], flag=b"P"), b"[pod/b/c] " + cri(STDERR),
         b"[pod/a/c] " + cri(ENTRY[20:])],
        [json.dumps({**ROW, "type": "schema"}).encode(), ENTRY],
    ],
)  # fmt: skip
def test_an_entry_is_found_whatever_was_made_of_its_line(lines: list[bytes]) -> None:
    entries, counts = captured(*lines, STDERR, b"", b"Traceback (most recent call last):")
    assert entries == [ENTRY]
    assert BROKEN_LINES not in counts


def test_what_is_no_entry_is_counted_and_what_was_one_is_told_apart() -> None:
    noise = [STDERR, b"42", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 5000]
    entries, counts = captured(*noise, ENTRY, ENTRY[:40], ENTRY, cri(ENTRY[:30], flag=b"P"))
    assert entries == [ENTRY, ENTRY]
    assert counts == {OTHER_LINES: len(noise), BROKEN_LINES: 2}


@settings(deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(1, len(ENTRY) - 1), st.booleans()), max_size=5))
def test_no_way_of_cutting_loses_an_entry_silently(cuts: list[tuple[int, bool]]) -> None:
    """A runtime's parts, with stderr in between or not; then the last part is lost."""
    places = sorted({at for at, _ in cuts})
    parts = [ENTRY[a:b] for a, b in zip([0, *places], [*places, len(ENTRY)], strict=True)]
    lines: list[bytes] = []
    for number, part in enumerate(parts):
        lines.append(cri(part, flag=b"F" if number == len(parts) - 1 else b"P"))
        if number < len(cuts) and cuts[number][1]:
            lines.append(cri(STDERR, b"stderr"))
    entries, counts = captured(*lines, cri(ENTRY))
    assert entries == [ENTRY, ENTRY] and BROKEN_LINES not in counts
    if places:
        last = max(at for at, line in enumerate(lines) if b" F " in line[:45] and b"stdout" in line)
        entries, counts = captured(*lines[:last])
        assert entries == [] and counts[BROKEN_LINES] == 1
