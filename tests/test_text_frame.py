"""Events that differ in a text only are read by their bytes, and the same as one by one."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from open_llm_proxy.server.transcript.assembly import Assembly
from open_llm_proxy.server.transcript.reader import TranscriptReader
from open_llm_proxy.server.transcript.text_frame import frame_of
from open_llm_proxy.server.transcript.transcript import Transcript
from response_shapes import DONE, STREAM, chunk, chunks
from transcripts import CAP

CONTENT = b'{"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
THOUGHT = CONTENT.replace(b"content", b"reasoning_content")
END = chunks(chunk({}, "stop")) + DONE


def event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def framed(data: bytes, events: bytes) -> str | None:
    """What a frame learned of this event takes out of others; None where it takes nothing."""
    assembly = Assembly(CAP)
    frame = frame_of(data, assembly)
    if frame is None or not frame.take(events):
        return None
    transcript = assembly.build()
    return transcript.content or transcript.reasoning_content or ""


def transcript_of(pieces: list[bytes]) -> Transcript:
    reader = TranscriptReader(STREAM, None, CAP)
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


@pytest.mark.parametrize("shape", [CONTENT, THOUGHT, b'{"choices":[{"delta":{"content":"%b"}}]}'])
def test_events_of_one_frame_give_their_texts_whatever_is_in_them(shape: bytes) -> None:
    texts = [" one", "", '"', "\\", "\n\n", "é", "\N{EVERGREEN TREE}", "\0", "data: [DONE]"]
    spelled = [json.dumps(text)[1:-1].encode() for text in texts]
    spelled += [json.dumps(text, ensure_ascii=False)[1:-1].encode() for text in texts]
    events = b"".join(event(shape % text) for text in spelled)
    assert framed(shape % b"a", events) == "".join(2 * texts)


@pytest.mark.parametrize(
    "data",
    [
        CONTENT % b"",
        CONTENT % b"\\u0061",
        CONTENT.replace(b"null", b'"stop"') % b"a",
        CONTENT.replace(b'"id"', b'"usage":{"prompt_tokens":1},"id"') % b"a",
        CONTENT.replace(b'"id"', b'"error":"oh","id"') % b"a",
        CONTENT.replace(b'"id"', b'"object":"response","id"') % b"a",
        CONTENT.replace(b'"delta"', b'"text":"b","delta"') % b"a",
        CONTENT.replace(b'"content"', b'"reasoning":"b","content"') % b"a",
        CONTENT.replace(b'"content"', b'"content":"a","content"') % b"a",
        CONTENT.replace(b'"id"', b'"obfuscation":"a","id"') % b"a",
        CONTENT.replace(b'"c"', b'"a"') % b"a",
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"a"}}]}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}',
        CONTENT.replace(b"0", b"1") % b"a",
        b'{"type":"response.output_text.delta","delta":"a"}',
        b"[DONE]",
        b"a",
    ],
)
def test_an_event_that_does_more_or_is_told_otherwise_has_no_frame(data: bytes) -> None:
    assert framed(data, event(data)) is None


@pytest.mark.parametrize(
    "events",
    [
        event(CONTENT % b"a")[:-1],
        event(CONTENT % b"a") + b"\n",
        event(CONTENT % b'a","refusal":"b'),
        event(CONTENT % b"a\\"),
        event(CONTENT % b"a\\" + CONTENT % b"b"),
        event(CONTENT % b"a\nb"),
        event(CONTENT % b"a\rb"),
        event(CONTENT % b"a\xff"),
        event(CONTENT % b"a\\ud83c"),
        event(CONTENT % b"\\x"),
        event(CONTENT % b"a") + event(CONTENT.replace(b"0", b"1") % b"b"),
        event(CONTENT % b"a") + event(THOUGHT % b"b") + event(CONTENT % b"a"),
        event(CONTENT.replace(b'"%b"', b'"')),
    ],
)
def test_other_events_are_left_to_the_reader_of_all(events: bytes) -> None:
    assert framed(CONTENT % b"a", events) is None


PIECES = st.sampled_from(
    [
        *[b"a", b" ", b'"', b"\\", b"\\\\", b'\\"', b"\\n", b"\n", b"\r", b"\xff", b"\x01", b""],
        *[b"\\ud83c", b"\\udf32", b"\\u00e9", "é".encode(), b'","', b"{", b"}", b"\n\n"],
        b"\n\ndata: ",
    ]
)
TEXTS = st.lists(st.lists(PIECES, max_size=4).map(b"".join), max_size=6)
SHAPES = st.sampled_from([CONTENT, THOUGHT, CONTENT.replace(b"0", b"1")])


@given(SHAPES, st.lists(st.tuples(SHAPES, TEXTS), min_size=1, max_size=4))
@example(CONTENT, [(CONTENT, [b"a\\", b'","b'])])
@settings(deadline=None, database=None, max_examples=500)
def test_any_events_give_the_same_together_and_byte_by_byte(
    first: bytes, groups: list[tuple[bytes, list[bytes]]]
) -> None:
    learned = [event(first % b"one"), event(first % b"two"), event(first % b"three")]
    chunked = [b"".join(event(shape % text) for text in texts) for shape, texts in groups]
    whole = [*learned, *chunked, END]
    stream = b"".join(whole)
    one_by_one = [stream[start : start + 1] for start in range(len(stream))]
    assert transcript_of(whole) == transcript_of(one_by_one)
