"""The transcript's bounds: content codings, caps on texts, memory and time."""

import gzip
import tracemalloc
import zlib

import pytest

from cpu_time import cpu_seconds
from open_llm_proxy.server.transcript.content_coding import Inflation
from open_llm_proxy.server.transcript.reader import TranscriptReader
from open_llm_proxy.server.transcript.transcript import ToolCall, Transcript
from response_shapes import (
    DONE,
    JSON,
    STREAM,
    USAGE,
    answer,
    chunk,
    chunks,
    compact,
    completion,
    document,
)
from transcripts import CAP, read, texts

SURROGATE = "\ud83c"


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


def test_a_body_that_is_only_said_to_be_gzip_is_read_as_it_is() -> None:
    for piece_bytes in (1, 100):
        transcript = read(document(completion(answer({"content": "a"}))), JSON, "gzip, identity",
                          piece_bytes=piece_bytes)  # fmt: skip
        assert transcript.content == "a"
        assert "not compressed" in str(transcript.error)
    assert read(b"no gzip at all", JSON, "gzip").raw_text == "no gzip at all"


@pytest.mark.parametrize("size", range(65_537, 66_000, 66))
def test_a_chunk_is_decoded_whole_at_once_also_where_it_fills_the_last_piece(size: int) -> None:
    compressor = zlib.compressobj(wbits=31)
    chunk = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert sum(len(piece) for piece in Inflation("gzip", CAP).feed(chunk)) == size


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "x" * 1000])
def test_an_unknown_coding_is_said_and_not_decoded(coding: str) -> None:
    transcript = read(b"\x8b\x02\x80{}", JSON, coding)
    assert transcript.content is not None and len(transcript.content) < 200
    assert transcript.content.startswith("[5 bytes in content coding")


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
    assert mark == "[cut: 10000000 characters in all]"
    assert transcript.truncated and transcript.raw_text is None
    assert (transcript.finish_reason, transcript.total_tokens) == ("stop", 30)


@pytest.mark.parametrize("name", ["content", "reasoning_details"])
@pytest.mark.parametrize("sizes", [(30_000, 90_000), (90_000, 30_000), (90_000, 9), (50_000,) * 3])
def test_parts_that_are_cut_together_are_marked_with_the_length_of_all(
    name: str, sizes: tuple[int, ...]
) -> None:
    kind = "text" if name == "content" else "reasoning.text"
    parts = [{"type": kind, "text": "z" * size} for size in sizes]
    for body, type_ in (
        (chunks(chunk({name: parts})), STREAM),
        (document(completion(answer({name: parts}))), JSON),
    ):
        transcript = read(body, type_, max_bytes=40_000)
        text = transcript.content if name == "content" else transcript.reasoning_content
        assert str(text).endswith(f"…[cut: {sum(sizes) + len(sizes) - 1} characters in all]")


def test_embeddings_beyond_the_cap_keep_their_usage() -> None:
    vectors = [{"index": i, "embedding": [0.125] * 100} for i in range(2000)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    body = document({"object": "list", "data": vectors, "model": "e", "usage": usage})
    transcript = read(body, max_bytes=5000)
    assert transcript == Transcript(prompt_tokens=7, total_tokens=7, usage_json=compact(usage))
    assert len(body) > 1 << 20 and transcript.evidence.kind == "embeddings"


def test_a_page_beyond_the_cap_is_kept_as_its_beginning() -> None:
    body = b"<html>1" + "é".encode() * 1_000_000
    transcript = read(body, "text/html", max_bytes=1001)
    assert transcript.raw_text == "<html>1" + "é" * 8188 + "…[cut: 2000007 bytes in all]"
    assert transcript.truncated


def test_an_event_beyond_the_limit_is_cut_and_said() -> None:
    body = texts(1, "a") + texts(1, "x" * (2 << 20)) + texts(1, "b")
    transcript = read(body, STREAM, max_bytes=1000, piece_bytes=65536)
    assert transcript.content == "a" + "x" * 999 + "…[cut: 2097154 characters in all]"
    assert transcript.truncated


@pytest.mark.parametrize("kind", [JSON, STREAM])
def test_memory_stays_bounded_by_the_cap(kind: str) -> None:
    piece = texts(40, "x" * 1000)
    reader = TranscriptReader(kind, None, 200_000)
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
    reader = TranscriptReader(STREAM, None, CAP)
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
    mark = ToolCall(None, "…[cut: 2000 tool calls in all]", None)
    assert transcript.tool_calls == [ToolCall(None, "f", None)] * 1024 + [mark]
    assert transcript.truncated
    many = completion(*[{**answer({"content": "a"}), "index": i} for i in range(1000)])
    transcript = read(document(many))
    assert transcript.truncated and str(transcript.content).endswith("[cut: 1000 choices in all]")


@pytest.mark.parametrize("type_", [STREAM, JSON])
def test_what_was_too_long_to_be_waited_for_is_reduced_a_little_at_a_time(type_: str) -> None:
    function = {"name": "f", "arguments": "{}"}
    calls = [{"index": i, "id": f"call_{i}", "function": function} for i in range(5000)]
    made = (
        chunks(chunk({"tool_calls": calls}))
        if type_ == STREAM
        else document(completion(answer({"tool_calls": calls})))
    )
    reader = TranscriptReader(type_, None, CAP)
    step = 16_384
    pieces = [made[start : start + step] for start in range(0, len(made), step)]
    steps = sum(1 for piece in pieces for _ in reader.feed_in_steps(piece))
    assert steps > 1.2 * len(pieces), "what was waiting is not read at once"
    assert len(reader.finish().tool_calls or ()) == 1025


def test_long_labels_errors_and_usage_are_bounded() -> None:
    long = "x" * 10_000
    choice = answer({"tool_calls": [{"id": long, "function": {"name": long}}]}, long)
    body = document(completion(choice, id=long, usage={**USAGE, "note": "x" * 66_000}, error=long))
    transcript = read(body)
    assert transcript.tool_calls is not None
    call = transcript.tool_calls[0]
    for text in (transcript.response_id, transcript.finish_reason, call.id, call.name):
        assert text == "x" * 512 + "…[cut: 10000 characters in all]"
    assert transcript.error == "x" * 4096 + "…[cut: 10000 characters in all]"
    assert (transcript.usage_json, transcript.total_tokens, transcript.truncated) == (
        '"…[cut: 66088 bytes in all]"',
        30,
        True,
    )


def test_a_long_stream_byte_by_byte_takes_linear_time() -> None:
    body = texts(1, "x" * 200_000)
    with cpu_seconds(4):
        transcript = read(body, STREAM, piece_bytes=1)
    assert transcript.content == "x" * 200_000


@pytest.mark.parametrize("unit", [b"1,", b"{},", b'"a",', b'{"a":1},', b"[1],"])
@pytest.mark.parametrize("before", [b"[", b'{"choices":['])
def test_small_values_without_end_cost_time_in_proportion(unit: bytes, before: bytes) -> None:
    body = before + unit * (2_000_000 // len(unit))
    reader = TranscriptReader(JSON, None, CAP)
    with cpu_seconds(2):
        for start in range(0, len(body), 65536):
            reader.feed(body[start : start + 65536])
        reader.finish()
