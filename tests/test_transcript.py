"""The transcript of an answer: recorded shapes, any cutting of the bytes, hostile input, caps."""

import gzip
import json
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_time import cpu_seconds
from open_llm_proxy.server.relay.stream_gate import StreamGate
from open_llm_proxy.server.transcript.content_coding import Inflation
from open_llm_proxy.server.transcript.content_parts import content_text
from open_llm_proxy.server.transcript.reader import (
    ToolCall,
    Transcript,
    TranscriptReader,
    make_transcript_reader,
)
from open_llm_proxy.server.transcript.usage import read_token_counts
from response_shapes import (
    DONE,
    JSON,
    SHAPES,
    STREAM,
    USAGE,
    ResponseShape,
    answer,
    chunk,
    chunks,
    compact,
    completion,
    document,
)

CAP = 4 << 20
SURROGATE = "\ud83c"


def read(
    body: bytes,
    content_type: str | None = JSON,
    coding: str | None = None,
    max_bytes: int = CAP,
    piece_bytes: int | None = None,
) -> Transcript:
    reader = make_transcript_reader(content_type, coding, max_bytes)
    feed_in_pieces(reader, body, piece_bytes or len(body) or 1)
    return reader.finish()


def feed_in_pieces(reader: TranscriptReader, body: bytes, piece_bytes: int) -> None:
    for start in range(0, len(body), piece_bytes):
        reader.feed(body[start : start + piece_bytes])


def texts(count: int, piece: str) -> bytes:
    """A stream of so many deltas."""
    return chunks(*[chunk({"content": piece})] * count)


@pytest.mark.parametrize("recorded", SHAPES, ids=lambda recorded: recorded.name)
def test_a_recorded_response_gives_its_transcript(recorded: ResponseShape) -> None:
    expected = Transcript(**recorded.expected)  # type: ignore[arg-type]
    assert read(recorded.body, recorded.content_type) == expected
    assert read(recorded.body, recorded.content_type, piece_bytes=1) == expected


def test_the_recorded_responses_have_names_of_their_own() -> None:
    assert len({recorded.name for recorded in SHAPES}) == len(SHAPES) >= 30


@given(
    st.sampled_from(SHAPES),
    st.lists(st.floats(0, 1), max_size=20),
    st.sampled_from([None, "gzip"]),
)
@settings(deadline=None, database=None, max_examples=300)
def test_cutting_a_response_anywhere_changes_neither_transcript_nor_bytes(
    recorded: ResponseShape, shares: list[float], coding: str | None
) -> None:
    body = gzip.compress(recorded.body, mtime=0) if coding else recorded.body
    edges = sorted({0, len(body), *(int(share * len(body)) for share in shares)})
    reader, gate = make_transcript_reader(recorded.content_type, coding, CAP), StreamGate()
    passed = b""
    for start, end in pairwise(edges):
        reader.feed(body[start:end])
        passed += gate.pass_on(body[start:end])
    assert reader.finish() == Transcript(**recorded.expected)  # type: ignore[arg-type]
    assert passed + gate.held() == body


def test_finishing_twice_gives_the_same_transcript() -> None:
    reader = make_transcript_reader(STREAM, None, CAP)
    reader.feed(texts(1, "a"))
    assert reader.finish() is reader.finish()


def test_the_flags_follow_the_texts() -> None:
    transcript = Transcript(content="a", tool_calls=[ToolCall()], reasoning_content="b")
    assert transcript.has_content and transcript.has_tool_calls
    assert transcript.has_reasoning_content
    empty = Transcript()
    assert not (empty.has_content or empty.has_tool_calls or empty.has_reasoning_content)


@pytest.mark.parametrize(
    "first",
    [
        {"content": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]},
    ],
)
def test_the_first_content_is_seen_when_it_comes_and_not_before(first: dict[str, object]) -> None:
    reader = make_transcript_reader(STREAM, None, CAP)
    reader.feed(b": wait\n\n" + chunks(chunk({"role": "assistant", "content": ""})))
    assert not reader.first_content_seen
    event = chunks(chunk(first))
    reader.feed(event[:-1])
    assert not reader.first_content_seen
    reader.feed(event[-1:])
    assert reader.first_content_seen


def test_the_completion_is_seen_when_it_comes_also_through_gzip() -> None:
    for coding in (None, "gzip"):
        reader = make_transcript_reader(STREAM, coding, CAP)
        compressor = zlib.compressobj(wbits=31)
        for part, is_done in ((texts(1, "a"), False), (DONE, True)):
            if coding:
                part = compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
            reader.feed(part)
            assert reader.saw_done is is_done


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZip ", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip", lambda body: gzip.compress(body[:70]) + gzip.compress(body[70:])),
        ("gzip", lambda body: gzip.compress(body) + b"\0" * 100),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_compressed_bodies_are_decoded_for_the_transcript(coding: str, encode: object) -> None:
    body = texts(20, "森") + DONE
    encoded = encode(body)  # type: ignore[operator]
    for piece_bytes in (1, 1000):
        transcript = read(encoded, STREAM, coding, piece_bytes=piece_bytes)
        expected = Transcript(content="森" * 20, saw_done=True, response_id="chatcmpl-S1")
        assert transcript == expected


def test_a_compressed_stream_that_breaks_off_gives_what_had_arrived() -> None:
    compressor = zlib.compressobj(wbits=31)
    body = compressor.compress(texts(3, "a")) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert read(body, STREAM, "gzip").content == "aaa"


def test_a_damaged_compressed_body_keeps_what_came_before_the_damage() -> None:
    compressor = zlib.compressobj(wbits=31)
    body = compressor.compress(texts(3, "a")) + compressor.flush(zlib.Z_SYNC_FLUSH)
    transcript = read(body + b"\xff" * 50, STREAM, "gzip", piece_bytes=10)
    assert transcript.content == "aaa"
    assert transcript.truncated
    assert transcript.raw_text is not None and "damaged" in transcript.raw_text
    assert "damaged" in str(read(b"no gzip at all", JSON, "gzip").raw_text)


@pytest.mark.parametrize("size", range(65_537, 66_000, 66))
def test_a_chunk_is_decoded_whole_at_once_also_where_it_fills_the_last_piece(size: int) -> None:
    compressor = zlib.compressobj(wbits=31)
    chunk = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert sum(len(piece) for piece in Inflation(CAP).feed(chunk)) == size


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "x" * 1000])
def test_an_unknown_coding_is_said_and_not_decoded(coding: str) -> None:
    transcript = read(b"\x8b\x02\x80{}", JSON, coding)
    assert transcript.raw_text is not None and len(transcript.raw_text) < 200
    assert transcript.raw_text.startswith("[5 bytes in content coding")


@pytest.mark.parametrize("kind", [JSON, STREAM])
def test_a_zip_bomb_costs_bounded_memory_and_time(kind: str) -> None:
    bomb = gzip.compress(b"data: " + b"\0" * (80 << 20), compresslevel=1)
    tracemalloc.start()
    try:
        with cpu_seconds(10):
            transcript = read(bomb, kind, "gzip", max_bytes=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert transcript.truncated
    assert "too large" in str(transcript.raw_text)
    assert peak < 8_000_000


def test_a_stream_beyond_the_cap_is_cut_with_a_mark_and_still_read_to_its_end() -> None:
    body = texts(50, "0123456789") + chunks(chunk({}, "stop"), chunk(usage=USAGE)) + DONE
    transcript = read(body, STREAM, max_bytes=101)
    assert transcript.content == "0123456789" * 10 + "0…[cut: 500 characters in all]"
    assert transcript.truncated and transcript.saw_done
    assert (transcript.finish_reason, transcript.total_tokens) == ("stop", 30)


def test_the_cap_holds_over_all_texts_together() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "z" * 40}}
    body = chunks(
        chunk({"reasoning": "x" * 60}), chunk({"content": "y" * 60}), chunk({"tool_calls": [call]})
    )
    transcript = read(body, STREAM, max_bytes=100)
    assert transcript.reasoning_content == "x" * 60
    assert transcript.content == "y" * 40 + "…[cut: 60 characters in all]"
    assert transcript.tool_calls == [ToolCall("c", "f", "…[cut: 40 characters in all]")]


def test_a_text_that_just_fits_is_not_cut() -> None:
    transcript = read(texts(10, "森"), STREAM, max_bytes=30)
    assert (transcript.content, transcript.truncated) == ("森" * 10, False)


@pytest.mark.parametrize("cap", range(1, 14))
def test_a_cut_never_breaks_a_character(cap: int) -> None:
    transcript = read(texts(1, "é森🌲é🌲"), STREAM, max_bytes=cap)
    kept = str(transcript.content).partition("…")[0]
    assert "é森🌲é🌲".startswith(kept)
    assert len(kept.encode()) <= cap < len(kept.encode()) + 4


def test_a_cut_never_leaves_half_a_surrogate_pair() -> None:
    halves = b'data: {"choices":[{"delta":{"content":"ab\\ud83c"}}]}\n\n'
    halves += b'data: {"choices":[{"delta":{"content":"\\udf32"}}]}\n\n'
    assert read(halves, STREAM, max_bytes=5).content == "ab…[cut: 4 characters in all]"
    body = b'{"choices":[{"message":{"content":"ab\\ud83c\\udf32cd"}}]}'
    for cap in range(37, 49):
        content = read(body, JSON, max_bytes=cap).content
        assert content is not None and SURROGATE not in content


def test_ten_megabytes_of_text_in_one_body_are_cut_and_its_end_is_read() -> None:
    body = document(completion(answer({"content": "0123456789" * 1_000_000}), usage=USAGE))
    transcript = read(body, piece_bytes=65536, max_bytes=100_000)
    assert transcript.content is not None
    kept, _, mark = transcript.content.partition("…")
    assert ("0123456789" * 10_000).startswith(kept) and len(kept) > 99_000
    assert mark == f"[cut: {len(body)} bytes in all]"
    assert transcript.truncated and transcript.raw_text is None
    assert (transcript.finish_reason, transcript.total_tokens) == ("stop", 30)


def test_embeddings_beyond_the_cap_keep_their_usage() -> None:
    vectors = [{"index": i, "embedding": [0.125] * 100} for i in range(100)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    body = document({"object": "list", "data": vectors, "model": "e", "usage": usage})
    transcript = read(body, max_bytes=5000)
    assert transcript == Transcript(
        prompt_tokens=7, total_tokens=7, usage_json=compact(usage), truncated=True
    )


def test_a_page_beyond_the_cap_is_kept_as_its_beginning() -> None:
    body = b"<html>" + "é".encode() * 5000
    transcript = read(body, "text/html", max_bytes=1001)
    assert transcript.raw_text == "<html>" + "é" * 497 + "…[cut: 10006 bytes in all]"
    assert transcript.truncated


def test_an_event_beyond_the_limit_is_left_out_and_said() -> None:
    body = texts(1, "a") + texts(1, "x" * (2 << 20)) + texts(1, "b")
    transcript = read(body, STREAM, max_bytes=1000, piece_bytes=65536)
    assert (transcript.content, transcript.truncated) == ("ab", True)


@pytest.mark.parametrize("kind", [JSON, STREAM])
def test_memory_stays_bounded_by_the_cap(kind: str) -> None:
    piece = texts(40, "x" * 1000)
    reader = make_transcript_reader(kind, None, 200_000)
    tracemalloc.start()
    try:
        for _ in range(500):
            reader.feed(piece)
        transcript = reader.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert transcript.truncated
    assert peak < 4_000_000


def test_very_many_small_deltas_cost_little_more_than_their_text() -> None:
    piece = texts(1000, "ab")
    reader = make_transcript_reader(STREAM, None, CAP)
    tracemalloc.start()
    try:
        for _ in range(20):
            reader.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.finish().content == "ab" * 20_000
    assert peak < 800_000


def test_more_choices_and_calls_than_any_api_allows_are_left_out() -> None:
    call = {"function": {"name": "f"}}
    body = document(completion(answer({"tool_calls": [call] * 2000})))
    transcript = read(body)
    assert transcript.tool_calls == [ToolCall(None, "f", None)] * 1024
    assert transcript.truncated
    many = completion(*[{**answer({"content": "a"}), "index": i} for i in range(1000)])
    assert read(document(many)).truncated


def test_long_labels_errors_and_usage_are_bounded() -> None:
    long = "x" * 100_000
    choice = answer({"tool_calls": [{"id": long, "function": {"name": long}}]}, long)
    body = document(completion(choice, id=long, usage={**USAGE, "note": long}, error=long))
    transcript = read(body)
    assert transcript.tool_calls is not None
    call = transcript.tool_calls[0]
    for text in (transcript.response_id, transcript.finish_reason, call.id, call.name):
        assert text == "x" * 512 + "…[cut: 100000 characters in all]"
    assert transcript.error == "x" * 4096 + "…[cut: 100000 characters in all]"
    assert (transcript.usage_json, transcript.total_tokens, transcript.truncated) == (
        None,
        30,
        True,
    )


@pytest.mark.parametrize("depth", [300, 5000, 500_000])
def test_deep_nesting_is_kept_as_text(depth: int) -> None:
    deep = '{"choices":' + "[" * depth + "]" * depth + "}"
    assert read(deep.encode()).raw_text == deep
    body = f"data: {deep}\n\n".encode() + texts(1, "a")
    transcript = read(body, STREAM)
    assert (transcript.content, transcript.raw_text) == ("a", deep)


def test_deep_nesting_in_a_field_that_is_not_logged_hurts_nothing() -> None:
    odd = json.loads("[" * 150 + "]" * 150)
    body = document(completion({**answer({"content": "a"}), "logprobs": odd}))
    assert read(body).content == "a"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def fields(**strategies: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """An object with some of these fields, each as it should be or as any other JSON."""
    return ANY_JSON | st.fixed_dictionaries(
        {}, optional={name: values | ANY_JSON for name, values in strategies.items()}
    )


TEXT = st.sampled_from(["", "a", "森", SURROGATE, "\0"])
FUNCTION = fields(name=TEXT, arguments=TEXT, input=TEXT)
CALLS = st.lists(
    fields(index=st.integers(0, 2), id=TEXT, function=FUNCTION, custom=FUNCTION), max_size=3
)
PARTS = st.lists(
    fields(type=st.sampled_from(["text", "thinking", "image_url"]), text=TEXT, image_url=TEXT),
    max_size=3,
)
MESSAGE = fields(
    content=TEXT | PARTS,
    reasoning_content=TEXT,
    reasoning=TEXT,
    refusal=TEXT,
    tool_calls=CALLS,
    function_call=FUNCTION,
    images=PARTS,
    audio=fields(transcript=TEXT),
)
CHOICES = st.lists(
    fields(index=st.integers(-1, 2), delta=MESSAGE, message=MESSAGE, text=TEXT, finish_reason=TEXT),
    max_size=3,
)
ITEM = fields(
    type=st.sampled_from(["message", "reasoning", "function_call", "image_generation_call"]),
    content=PARTS,
    summary=PARTS,
    call_id=TEXT,
    name=TEXT,
    arguments=TEXT,
    result=TEXT,
)
COUNTS = fields(
    prompt_tokens=st.integers() | TEXT, prompt_tokens_details=fields(cached_tokens=st.floats())
)
RESPONSE = fields(
    id=TEXT,
    object=st.just("response"),
    status=TEXT,
    output=st.lists(ITEM, max_size=3),
    usage=COUNTS,
    error=ANY_JSON,
    incomplete_details=fields(reason=TEXT),
)
EVENT_TYPES = st.sampled_from(
    [
        *["response.completed", "response.created", "response.output_text.delta", "error"],
        *["response.reasoning_text.delta", "response.function_call_arguments.delta", "ping"],
        *["response.output_item.added", "response.output_item.done", "response."],
    ]
)
EVENTS = RESPONSE | fields(
    id=TEXT,
    type=EVENT_TYPES,
    choices=CHOICES,
    usage=COUNTS,
    error=fields(message=TEXT),
    message=TEXT,
    detail=TEXT,
    object=TEXT,
    response=RESPONSE,
    item=ITEM,
    delta=TEXT,
    output_index=st.integers(0, 2),
)


@given(st.lists(EVENTS, min_size=1, max_size=4))
@settings(deadline=None, database=None)
def test_fields_of_any_type_raise_nothing_and_give_texts(events: list[object]) -> None:
    documents = [json.dumps(event).encode() for event in events]
    stream = b"".join(b"data: " + text + b"\n\n" for text in documents)
    transcripts = [read(stream, STREAM), *(read(text) for text in documents)]
    transcripts += [read(text, max_bytes=len(text) // 2) for text in documents]
    for transcript in transcripts:
        for name in ("content", "reasoning_content", "finish_reason", "error", "usage_json"):
            assert isinstance(getattr(transcript, name), str | None)
        for call in transcript.tool_calls or ():
            assert isinstance(call.id, str | None) and isinstance(call.name, str | None)
            assert isinstance(call.arguments, str | None)
        for name in ("prompt_tokens", "cached_tokens"):
            assert type(getattr(transcript, name)) in (int, type(None))


@given(
    st.lists(st.binary(max_size=20) | st.sampled_from([b"data: ", b"\n\n", b'{"choices":[', b"}"])),
    st.sampled_from([None, JSON, STREAM, "", "text/html", "\0;;"]),
    st.sampled_from([None, "gzip", "deflate", "br"]),
    st.integers(0, 50),
)
@settings(deadline=None, database=None)
def test_any_bytes_under_any_headers_raise_nothing(
    pieces: list[bytes], kind: str | None, coding: str | None, max_bytes: int
) -> None:
    reader = make_transcript_reader(kind, coding, max_bytes)
    for piece in pieces:
        reader.feed(piece)
    transcript = reader.finish()
    body = b"".join(pieces)
    if kind == "text/html" and coding is None and body.strip() and len(body) <= max_bytes:
        assert transcript != Transcript()


def test_a_long_stream_byte_by_byte_takes_linear_time() -> None:
    body = texts(1, "x" * 400_000)
    with cpu_seconds(6):
        transcript = read(body, STREAM, piece_bytes=1)
    assert transcript.content == "x" * 400_000


@pytest.mark.parametrize(
    ("usage", "prompt", "cached"),
    [
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, 3, 2),
        ({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}, 3, 2),
        ({"prompt_tokens": "3", "cached_tokens": 2.0}, 3, 2),
        ({"prompt_tokens": " 3.0 ", "prompt_cache_hit_tokens": 0}, 3, 0),
        ({"prompt_tokens": None, "input_tokens": 3}, 3, None),
        ({"prompt_tokens": 3.5, "cached_tokens": "2.5"}, None, None),
        ({"prompt_tokens": True, "cached_tokens": "٣"}, None, 3),
        ({"prompt_tokens": -1, "cached_tokens": 2**63}, None, None),
        ({"prompt_tokens": float("nan"), "cached_tokens": float("inf")}, None, None),
        ({"prompt_tokens": "9" * 5000, "cached_tokens": "1e3"}, None, None),
        ({"prompt_tokens": [3], "prompt_tokens_details": [2]}, None, None),
        ([3], None, None),
        ("3", None, None),
    ],
)
def test_token_counts_are_whole_numbers_or_none(
    usage: object, prompt: int | None, cached: int | None
) -> None:
    counts = read_token_counts(usage)
    assert (counts.prompt_tokens, counts.cached_tokens) == (prompt, cached)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, None),
        ("plain", "plain"),
        ([], None),
        (["a", {"type": "text", "text": "b"}], "a\nb"),
        ([{"image_url": {"url": "data:image/jpeg;base64,AAAA"}}], "[image/jpeg 3 bytes]"),
        ([{"type": "image_url", "image_url": {"url": "data:,x"}}], "[image_url 0 bytes]"),
        ([{"image_url": "data:image/png;base64,AA=="}], "[image/png 1 bytes]"),
        (
            [{"type": "image", "source": {"media_type": "image/webp", "data": "AAA="}}],
            "[image/webp 2 bytes]",
        ),
        ([{"type": "input_file", "file_id": "f"}], "[input_file]"),
        ([{"type": 5}, None, 7], "[part]"),
        ({"type": "text", "text": "one part"}, "one part"),
    ],
)
def test_content_parts_become_text_and_descriptions(content: object, text: str | None) -> None:
    assert content_text(content) == text
