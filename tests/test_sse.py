"""Server-sent events: framing however the bytes are cut, linear time and bounded memory."""

import json
import re
import tracemalloc

import pytest
from hypothesis import given, settings

from cpu_time import cpu_seconds
from event_streams import BOM, CUTS, STREAMS, cut
from open_llm_proxy.server.relay.held_end import HeldStreamEnd
from open_llm_proxy.server.transcript.event_reader import Event, EventReader
from open_llm_proxy.server.transcript.reduced_json import ReducedJSON

LIMIT = 1 << 20


def read_events(chunks: list[bytes], max_event_bytes: int = LIMIT) -> list[Event]:
    reader = EventReader(max_event_bytes)
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.finish()


def data_of(events: list[Event]) -> list[bytes]:
    """The data of those events that have any; of one that was reduced, the reduced document."""
    return [
        event.data if isinstance(event.data, bytes) else event.data.document()
        for event in events
        if event.data is not None
    ]


def read_all(chunks: list[bytes], max_event_bytes: int = LIMIT) -> list[bytes]:
    return data_of(read_events(chunks, max_event_bytes))


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
    assert reader.feed(end[-1:]) == [Event(b"a")]


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        (b"event: error\ndata: x\n\n", Event(b"x", name=b"error")),
        (b"event:error\n: because\n:of it\n\n", Event(name=b"error", comments=b"because\nof it")),
        (b": PROCESSING\n\n", Event(comments=b"PROCESSING")),
        (b'{"error": 1}\n\n', Event(stray=b'{"error": 1}')),
        (b"{\r\n 1\r\n}\r\n\r\n", Event(stray=b"{\n 1\n}")),
        (b"error: no\ndata: x\n\n", Event(b"x", stray=b"error: no")),
        (b"Bad Gateway", Event(stray=b"Bad Gateway")),
        (b"id: 1\nretry: 5\nid\ndata\n\n", Event(b"")),
    ],
)
def test_names_comments_and_unknown_lines_are_kept(stream: bytes, event: Event) -> None:
    assert read_events([stream]) == [event]
    assert read_events([stream[i : i + 1] for i in range(len(stream))]) == [event]
    assert read_events([b"data: 0\n\n", stream]) == [Event(b"0"), event]


def test_an_oversize_event_is_reduced_while_it_comes() -> None:
    long = b'{"a":"' + b"x" * 300 + b'","b":1}'
    lines = b'data: {"a":"' + b"x" * 3000 + b'",\ndata: "b":1}\n\n'
    stream = b"data: a\n\ndata: " + long + b"\n\n" + long + b"\r\n\r\ndata: b\n\n" + lines
    for size in (1, 7, 1000, 10_000):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        events = read_events(chunks, 100)
        assert [event.data for event in events if isinstance(event.data, bytes)] == [b"a", b"b"]
        documents = [event.data or event.stray for event in events]
        reduced = [each for each in documents if isinstance(each, ReducedJSON)]
        assert [json.loads(each.document())["b"] for each in reduced] == [1, 1, 1]
        assert all(each.is_whole for each in reduced)
        assert [each.size for each in reduced] == [len(long), len(long), len(lines) - 14]


@pytest.mark.parametrize("start", [b":", b"event: ", b"id: ", b"what: "])
def test_an_endless_line_of_another_kind_costs_no_event(start: bytes) -> None:
    stream = b"data: a\n" + start + b"x" * 50_000 + b"\ndata: b\n\ndata: c\n\n"
    for size in (1000, 60_000):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert read_all(chunks, 100) == [b"a\nb", b"c"]


def test_an_event_of_64_mb_is_read_in_linear_time() -> None:
    reader = EventReader(1 << 27)
    piece = b"x" * 16384
    with cpu_seconds(10):
        reader.feed(b"data: ")
        for _ in range(4096):
            assert reader.feed(piece) == []
        (event,) = data_of(reader.feed(b"\n\n"))
    assert len(event) == 64 << 20


def test_a_long_event_byte_by_byte_takes_linear_time_in_reader_and_gate() -> None:
    reader, gate, hiding = EventReader(1 << 22), HeldStreamEnd(), HeldStreamEnd(hide_usage=True)
    byte = b"x"
    with cpu_seconds(4):
        for target in (reader.feed, gate.pass_on, hiding.pass_on):
            target(b"data: ")
            for _ in range(100_000):
                target(byte)
        assert len(data_of(reader.feed(b"\n\n"))[0]) == 100_000


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
