"""Server-sent events: framing however the bytes are cut, linear time and bounded memory."""

import re
import tracemalloc

import pytest
from hypothesis import given, settings

from cpu_time import cpu_seconds
from event_streams import BOM, CUTS, STREAMS, cut
from open_llm_proxy.server.relay.held_end import HeldStreamEnd
from open_llm_proxy.server.transcript.event_reader import EventReader

LIMIT = 1 << 20


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
        assert reader.dropped_head.startswith((b"xxxxx", b"data: xxxxx"))
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
    reader, gate, hiding = EventReader(1 << 22), HeldStreamEnd(), HeldStreamEnd(hide_usage=True)
    byte = b"x"
    with cpu_seconds(4):
        for target in (reader.feed, gate.pass_on, hiding.pass_on):
            target(b"data: ")
            for _ in range(100_000):
                target(byte)
        assert len(reader.feed(b"\n\n")[0]) == 100_000


def test_memory_stays_bounded_by_the_largest_event() -> None:
    reader, gate = EventReader(100_000), HeldStreamEnd(hide_usage=True, max_event_bytes=100_000)
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
