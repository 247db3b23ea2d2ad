"""Server-sent events: framing however the bytes are cut, and what the gate lets through when."""

import re
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_time import cpu_seconds
from open_llm_proxy.server.relay.stream_gate import EventReader, StreamGate
from response_shapes import SHAPES, ResponseShape

LIMIT = 1 << 20
BOM = b"\xef\xbb\xbf"
USAGE_EVENT = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3}}\n\n'
TEXT_EVENT = b'data: {"id":"c1","choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"

# Small pieces that, joined at random, make streams with every kind of oddity.
PIECES = st.sampled_from(
    [
        *[b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"data", b"data:", b"data: ", b"data:  "],
        *[b": comment", b"event: x", b"id", b"datax: 1", b"x", b" ", b"[DONE]", b"[", b"{", BOM],
        *[b"event: response.completed", b'data: {"type":"response.', b"failed", "森".encode()],
        *[DONE, TEXT_EVENT, USAGE_EVENT, TEXT_EVENT.replace(b"\n", b"\r\n")],
    ]
)
STREAMS = st.lists(PIECES, max_size=24).map(b"".join)
CUTS = st.lists(st.floats(0, 1), max_size=12)


def cut(data: bytes, shares: list[float]) -> list[bytes]:
    """Cut the data at these shares of its length."""
    edges = sorted({0, len(data), *(int(share * len(data)) for share in shares)})
    return [data[start:end] for start, end in pairwise(edges)]


def read_all(chunks: list[bytes], max_event_bytes: int = LIMIT) -> list[bytes]:
    reader = EventReader(max_event_bytes)
    return [data for chunk in chunks for data in reader.feed(chunk)] + reader.finish()


def read_by_the_standard(stream: bytes) -> list[bytes]:
    """The event stream algorithm in its plainest form, over the whole stream at once."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(b"\r\n|\r|\n", stream.removeprefix(BOM)), b""]:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            events.append(b"\n".join(data))
            data = []
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata:b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"data:  a \n\n", [b" a "]),
        (b": comment\n\nevent: x\nid: 1\n\n", []),
        (b"event: x\ndata: a\nretry: 5\n\n", [b"a"]),
        (b"Data: a\ndatax: b\n\n", []),
        (BOM + b"data: a\n\n", [b"a"]),
        (b"data: a\n\n" + BOM + b"data: b\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
        (b"data: a\ndat", [b"a"]),
        (b"", []),
    ],
)
def test_events_are_read_whole_and_one_byte_at_a_time(stream: bytes, events: list[bytes]) -> None:
    assert read_all([stream]) == events
    assert read_all([stream[i : i + 1] for i in range(len(stream))]) == events
    if not stream.startswith(BOM):
        assert read_all([b"data: 0\n\n", stream]) == [b"0", *events]


@given(STREAMS, CUTS)
@settings(deadline=None, database=None)
def test_any_stream_cut_anywhere_is_read_as_the_standard_says(
    stream: bytes, shares: list[float]
) -> None:
    assert read_all(cut(stream, shares)) == read_by_the_standard(stream)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r"])
def test_an_event_is_handed_out_by_the_chunk_that_completes_it(end: bytes) -> None:
    reader = EventReader(LIMIT)
    assert reader.feed(b"data: a" + end[:-1]) == []
    assert reader.feed(end[-1:]) == [b"a"]


def test_an_oversize_event_is_left_out_and_counted() -> None:
    stream = b"data: a\n\n" + b"data: " + b"x" * 200 + b"\n\ndata: b\n\n"
    many_lines = b"data: xxxxx\n" * 20 + b"\ndata: c\n\n"
    for size in (1, 7, 1000):
        reader = EventReader(100)
        data = stream + many_lines
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert [event for chunk in chunks for event in reader.feed(chunk)] == [b"a", b"b", b"c"]
        assert reader.finish() == []
        assert reader.dropped_events == 2
    reader = EventReader(100)
    assert [*reader.feed(b"data: a\n\n"), *reader.feed(stream)] == [b"a", b"a", b"b"]
    assert reader.dropped_events == 1


def test_an_endless_comment_costs_no_event() -> None:
    reader = EventReader(100)
    assert reader.feed(b"data: a\n:" + b"x" * 500) == []
    assert reader.feed(b"x" * 500 + b"\ndata: b\n\n") == [b"a\nb"]
    assert reader.dropped_events == 0


def test_an_event_of_64_mb_is_read_in_linear_time() -> None:
    reader = EventReader(1 << 27)
    piece = b"x" * 16384
    with cpu_seconds(10):
        reader.feed(b"data: ")
        for _ in range(4096):
            assert reader.feed(piece) == []
        (event,) = reader.feed(b"\n\n")
    assert len(event) == 64 << 20


def test_a_long_event_byte_by_byte_takes_linear_time_in_reader_and_gate() -> None:
    reader, gate, hiding = EventReader(1 << 22), StreamGate(), StreamGate(hide_usage=True)
    byte = b"x"
    with cpu_seconds(7):
        for target in (reader.feed, gate.pass_on, hiding.pass_on):
            target(b"data: ")
            for _ in range(300_000):
                target(byte)
        assert len(reader.feed(b"\n\n")[0]) == 300_000


def test_memory_stays_bounded_by_the_largest_event() -> None:
    reader, gate = EventReader(100_000), StreamGate(hide_usage=True, max_event_bytes=100_000)
    chunk = b"y" * 50_000
    tracemalloc.start()
    try:
        reader.feed(b"data: ")
        gate.pass_on(b"data: ")
        for _ in range(400):
            reader.feed(chunk)
            gate.pass_on(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def passed_and_held(gate: StreamGate, chunks: list[bytes]) -> tuple[bytes, bytes]:
    passed = b"".join(gate.pass_on(chunk) for chunk in chunks)
    return passed, gate.held()


@pytest.mark.parametrize(
    ("passed", "held"),
    [
        (TEXT_EVENT, DONE),
        (TEXT_EVENT, b"data:[DONE]\r\n\r\n"),
        (TEXT_EVENT, b"data: [DONE]"),
        (TEXT_EVENT, DONE + b": bye\n\n" + TEXT_EVENT),
        (b"", DONE),
        (b"", BOM + DONE),
        (TEXT_EVENT, b"data: [D"),
        (TEXT_EVENT, b"d"),
        (TEXT_EVENT + b"data: x", b""),
        (b'data: "data: [DONE]"\n\n', b""),
        (b"data: x [DONE]\n\n", b""),
        (b": data: [DONE]\n\n", b""),
        (b"id: 1\n", DONE),
        (TEXT_EVENT, b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
        (TEXT_EVENT, b'data: {"type":"response.incomplete","response":{}}\n\n'),
        (b'event: response.created\ndata: {"type":"response.created"}\n\n', b"event: response.f"),
    ],
)
def test_the_gate_keeps_the_completion_and_passes_the_rest(passed: bytes, held: bytes) -> None:
    stream = passed + held
    assert passed_and_held(StreamGate(), [stream]) == (passed, held)
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    assert passed_and_held(StreamGate(), bytewise) == (passed, held)


@pytest.mark.parametrize("line_start", [b"x", b"data: x", b"y" * 100])
def test_a_completion_in_the_middle_of_a_line_is_none(line_start: bytes) -> None:
    gate = StreamGate()
    assert gate.pass_on(line_start) == line_start
    assert gate.pass_on(DONE) == DONE
    assert gate.pass_on(DONE) == b""


def completion_start(stream: bytes) -> int | None:
    """Where the first line begins that tells a client of the end, looked for line by line."""
    endings = ("completed", "incomplete", "failed")
    names = [f"response.{ending}" for ending in endings]
    lines = [f'data: {{"type":"{name}"' for name in names] + [f"event: {name}" for name in names]
    marks = (b"data: [DONE]", b"data:[DONE]", BOM + b"data: [DONE]", *map(str.encode, lines))
    position = 0
    for line in re.split(b"(\r\n|\r|\n)", stream):
        if line.startswith(tuple(mark.rstrip(b'"') for mark in marks)):
            return position
        position += len(line)
    return None


@given(STREAMS, CUTS)
@settings(deadline=None, database=None, max_examples=200)
def test_the_gate_never_passes_a_completion_and_never_delays_anything_else(
    stream: bytes, shares: list[float]
) -> None:
    gate = StreamGate()
    seen = passed = b""
    for chunk in cut(stream, shares):
        seen += chunk
        passed += gate.pass_on(chunk)
        assert seen.startswith(passed)
        end = completion_start(seen)
        if end is not None:
            assert len(passed) == end
        else:
            kept = seen[len(passed) :]
            assert not kept or (len(kept) < 60 and b"\n" not in kept and b"\r" not in kept)
            assert kept == b"" or passed == b"" or passed.endswith((b"\n", b"\r"))
    assert passed + gate.held() == stream


@pytest.mark.parametrize("recorded", SHAPES, ids=lambda recorded: recorded.name)
def test_what_the_gate_passes_and_holds_is_the_recorded_body(recorded: ResponseShape) -> None:
    body = recorded.body
    for size in (1, 3, 50, len(body) or 1):
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        assert b"".join(passed_and_held(StreamGate(), chunks)) == body


def test_after_held_everything_passes() -> None:
    gate = StreamGate()
    assert gate.pass_on(TEXT_EVENT + DONE) == TEXT_EVENT
    assert gate.pass_on(b"more") == b""
    assert gate.held() == DONE + b"more"
    assert gate.pass_on(DONE) == DONE
    assert gate.held() == b""


def test_a_gate_that_is_full_says_so_and_still_passes_nothing() -> None:
    gate = StreamGate(max_held_bytes=1000)
    gate.pass_on(DONE)
    assert not gate.is_full
    assert gate.pass_on(b"x" * 1000) == b""
    assert gate.is_full
    assert gate.held() == DONE + b"x" * 1000
    assert not gate.is_full
    assert gate.pass_on(b"y") == b"y"


def test_everything_is_kept_when_the_completion_was_seen_elsewhere() -> None:
    gate = StreamGate()
    assert gate.pass_on(b"\x1f\x8bda") == b"\x1f\x8bda"
    gate.keep_all()
    assert gate.pass_on(b"ta") == b""
    assert gate.held() == b"ta"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("end", [DONE, b"", b"data: {"])
def test_only_the_usage_chunk_is_hidden(newline: bytes, end: bytes) -> None:
    before = b": wait\n\n" + TEXT_EVENT * 2
    stream = (before + USAGE_EVENT + end).replace(b"\n", newline)
    rest = (before + end).replace(b"\n", newline)
    for size in (1, 2, 3, 5, 1000):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert b"".join(passed_and_held(StreamGate(hide_usage=True), chunks)) == rest


@given(st.lists(PIECES, max_size=8), st.lists(PIECES, max_size=8), CUTS)
@settings(deadline=None, database=None, max_examples=200)
def test_hiding_usage_changes_nothing_else_wherever_the_stream_is_cut(
    before: list[bytes], after: list[bytes], shares: list[float]
) -> None:
    head = b"".join(piece for piece in before if piece != USAGE_EVENT) + b"\n\n"
    tail = b"".join(after)
    stream = head + USAGE_EVENT + tail
    gate = StreamGate(hide_usage=True)
    assert b"".join(passed_and_held(gate, cut(stream, shares))) == head + tail


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b'data: {"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"choices":{},"usage":{}}\n\n',
        b'data: {"choices":[],"usage":{}\n\n',
        b": choices usage\n\n",
    ],
)
def test_an_event_of_another_shape_is_not_hidden(event: bytes) -> None:
    assert StreamGate(hide_usage=True).pass_on(event) == event


def test_only_the_first_usage_chunk_is_hidden() -> None:
    gate = StreamGate(hide_usage=True)
    assert gate.pass_on(TEXT_EVENT + USAGE_EVENT + USAGE_EVENT) == TEXT_EVENT + USAGE_EVENT


def test_a_usage_chunk_without_its_blank_line_is_hidden_at_the_end() -> None:
    gate = StreamGate(hide_usage=True)
    assert gate.pass_on(TEXT_EVENT + USAGE_EVENT.strip()) == TEXT_EVENT
    assert gate.held() == b""


def test_hiding_usage_passes_whole_events_and_keep_alive_comments_at_once() -> None:
    gate = StreamGate(hide_usage=True)
    assert gate.pass_on(b": wait\n") == b": wait\n"
    assert gate.pass_on(TEXT_EVENT[:30]) == b""
    assert gate.pass_on(TEXT_EVENT[30:]) == TEXT_EVENT


def test_an_event_too_large_to_be_looked_at_passes_byte_by_byte() -> None:
    gate = StreamGate(hide_usage=True, max_event_bytes=100)
    assert gate.pass_on(b"data: " + b"x" * 50) == b""
    assert gate.pass_on(b"x" * 50) == b"data: " + b"x" * 100
    assert gate.pass_on(b"x") == b"x"
    assert gate.pass_on(b"\n\n" + DONE) == b"\n\n"
    assert gate.held() == DONE
