"""The transcript of an answer: recorded shapes, any cutting of the bytes, hostile input."""

import gzip
import json
import zlib
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import engine_shapes  # noqa: F401  # adds to SHAPES
from open_llm_proxy.server.relay.held_end import HeldStreamEnd
from open_llm_proxy.server.transcript.content_parts import content_text
from open_llm_proxy.server.transcript.document_body import read_completion
from open_llm_proxy.server.transcript.reader import TranscriptReader
from open_llm_proxy.server.transcript.transcript import ToolCall, Transcript
from open_llm_proxy.server.transcript.usage import read_usage
from response_shapes import (
    DONE,
    JSON,
    SHAPES,
    STREAM,
    ResponseShape,
    answer,
    chunk,
    chunks,
    completion,
    document,
)
from transcripts import CAP, read, texts

SURROGATE = "\ud83c"


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
    reader, gate = TranscriptReader(recorded.content_type, coding, CAP), HeldStreamEnd()
    passed = b""
    for start, end in pairwise(edges):
        reader.feed(body[start:end])
        passed += gate.pass_on(body[start:end])
    assert reader.finish() == Transcript(**recorded.expected)  # type: ignore[arg-type]
    assert passed + gate.held() == body


def test_finishing_twice_gives_the_same_transcript() -> None:
    reader = TranscriptReader(STREAM, None, CAP)
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
    reader = TranscriptReader(STREAM, None, CAP)
    reader.feed(b": wait\n\n" + chunks(chunk({"role": "assistant", "content": ""})))
    assert reader.stream and not reader.stream.content_seen
    event = chunks(chunk(first))
    reader.feed(event[:-1])
    assert reader.stream and not reader.stream.content_seen
    reader.feed(event[-1:])
    assert reader.stream.content_seen


def test_the_completion_is_seen_when_it_comes_also_through_gzip() -> None:
    for coding in (None, "gzip"):
        reader = TranscriptReader(STREAM, coding, CAP)
        compressor = zlib.compressobj(wbits=31)
        for part, is_done in ((texts(1, "a"), False), (DONE, True)):
            if coding:
                part = compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
            reader.feed(part)
            assert reader.stream and reader.stream.saw_done is is_done


@pytest.mark.parametrize("depth", [300, 5000, 9000])
def test_deep_nesting_is_kept_as_text_up_to_a_bound(depth: int) -> None:
    deep = '{"choices":' + "[" * depth + "]" * depth + "}"
    raw = deep if len(deep) <= 16384 else deep[:16384] + f"…[cut: {len(deep)} bytes in all]"
    assert read(deep.encode()).raw_text == raw
    body = f"data: {deep}\n\n".encode() + texts(1, "a")
    transcript = read(body, STREAM)
    assert (transcript.content, transcript.raw_text) == ("a", raw)


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
@settings(deadline=None, database=None, max_examples=60)
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


@example([b":"], "text/html", None, 1)  # what a stream's comment begins with
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
    reader = TranscriptReader(kind, coding, max_bytes)
    for piece in pieces:
        reader.feed(piece)
    transcript = reader.finish()
    body = b"".join(pieces)
    if kind == "text/html" and coding is None and body.strip() and len(body) <= max_bytes:
        assert transcript != Transcript()


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
    counts = read_usage(usage)
    assert (counts.prompt_tokens, counts.cached_tokens) == (prompt, cached)


@pytest.mark.parametrize(
    ("cost", "usd"),
    [
        (0.00123, 0.00123),
        (2, 2.0),
        ("0.5", 0.5),
        (0, 0.0),
        (None, None),
        (True, None),
        (-1, None),
        (float("nan"), None),
        ("inf", None),
        ("much", None),
        ([1], None),
        (10**400, None),
    ],
)
def test_the_cost_is_a_number_that_the_provider_reports(cost: object, usd: float | None) -> None:
    assert read_usage({"cost": cost}).cost_usd == usd
    body = document(completion(answer({"content": "a"}), usage={"cost": cost, "total_tokens": 3}))
    transcript = read(body)
    assert (transcript.cost_usd, transcript.total_tokens) == (usd, 3)


@pytest.mark.parametrize("recorded", SHAPES, ids=lambda recorded: recorded.name)
def test_the_short_way_of_a_whole_answer_reads_the_same_as_the_long_one(
    recorded: ResponseShape,
) -> None:
    short = read_completion(recorded.body)
    if short is not None:
        padded = recorded.body.rstrip()[:-1] + b',"refusal_of_the_short_way":0,"error":{}}'
        assert read_completion(padded) is None
        assert read(padded, recorded.content_type) == short


def test_an_ordinary_completion_takes_the_short_way() -> None:
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}, "cost": 0.5}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for message in ({"content": "a"}, {"content": None, "tool_calls": [call]}, {"reasoning": "r"}):
        body = document(completion(answer({**message, "refusal": None}), usage=usage, x=[1]))
        short = read_completion(body)
        assert short is not None and short.cost_usd == 0.5 and short.cached_tokens == 2


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
