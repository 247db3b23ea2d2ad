"""What the gate lets through when: the completion waits, the usage chunk goes, all else passes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_streams import BOM, CUTS, DONE, PIECES, STREAMS, TEXT_EVENT, USAGE_EVENT, cut
from open_llm_proxy.server.relay.held_end import HeldStreamEnd
from response_shapes import SHAPES, ResponseShape


def passed_and_held(gate: HeldStreamEnd, chunks: list[bytes]) -> tuple[bytes, bytes]:
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
        (b"", BOM + DONE.replace(b" ", b"", 1)),
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
    assert passed_and_held(HeldStreamEnd(), [stream]) == (passed, held)
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    assert passed_and_held(HeldStreamEnd(), bytewise) == (passed, held)


@pytest.mark.parametrize("line_start", [b"x", b"data: x", b"y" * 100])
def test_a_completion_in_the_middle_of_a_line_is_none(line_start: bytes) -> None:
    gate = HeldStreamEnd()
    assert gate.pass_on(line_start) == line_start
    assert gate.pass_on(DONE) == DONE
    assert gate.pass_on(DONE) == b""


def completion_start(stream: bytes) -> int | None:
    """Where the first line begins that tells a client of the end, looked for line by line."""
    endings = ("completed", "incomplete", "failed")
    names = [f"response.{ending}" for ending in endings]
    lines = [f'data: {{"type":"{name}"' for name in names] + [f"event: {name}" for name in names]
    done = (b"data: [DONE]", b"data:[DONE]")
    marks = (*done, *(BOM + mark for mark in done), *map(str.encode, lines))
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
    gate = HeldStreamEnd()
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
        assert b"".join(passed_and_held(HeldStreamEnd(), chunks)) == body


def test_after_held_everything_passes() -> None:
    gate = HeldStreamEnd()
    assert gate.pass_on(TEXT_EVENT + DONE) == TEXT_EVENT
    assert gate.pass_on(b"more") == b""
    assert gate.held() == DONE + b"more"
    assert gate.pass_on(DONE) == DONE
    assert gate.held() == b""


def test_a_gate_that_is_full_says_so_and_still_passes_nothing() -> None:
    gate = HeldStreamEnd(max_held_bytes=1000)
    gate.pass_on(DONE)
    assert not gate.is_full
    assert gate.pass_on(b"x" * 1000) == b""
    assert gate.is_full
    assert gate.held() == DONE + b"x" * 1000
    assert not gate.is_full
    assert gate.pass_on(b"y") == b"y"


TYPE_LATER = b'data: {"sequence_number":9,"type":"response.completed","response":{}}\n\n'


@pytest.mark.parametrize(
    ("chunk", "passed"),
    [
        (b"\x1f\x8b", b""),
        (TYPE_LATER, b""),
        (TYPE_LATER + DONE, b""),
        (b'onse":{}}\n\n' + DONE, b""),
        (TEXT_EVENT + b"event: response.completed\n" + TYPE_LATER, TEXT_EVENT),
    ],
)
def test_a_completion_that_was_seen_elsewhere_is_kept_with_its_whole_chunk(
    chunk: bytes, passed: bytes
) -> None:
    gate = HeldStreamEnd()
    assert gate.pass_on(TEXT_EVENT) == TEXT_EVENT
    assert not gate.saw_completion
    assert gate.pass_on(chunk, is_complete=True) == passed
    assert gate.saw_completion
    assert gate.pass_on(b"more", is_complete=True) == b""
    assert gate.held() == chunk[len(passed) :] + b"more"
    assert gate.pass_on(b"after", is_complete=True) == b"after"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("end", [DONE, b"", b"data: {"])
def test_only_the_usage_chunk_is_hidden(newline: bytes, end: bytes) -> None:
    before = b": wait\n\n" + TEXT_EVENT * 2
    stream = (before + USAGE_EVENT + end).replace(b"\n", newline)
    rest = (before + end).replace(b"\n", newline)
    for size in (1, 2, 3, 5, 1000):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert b"".join(passed_and_held(HeldStreamEnd(hide_usage=True), chunks)) == rest


@given(st.lists(PIECES, max_size=8), st.lists(PIECES, max_size=8), CUTS)
@settings(deadline=None, database=None, max_examples=200)
def test_hiding_usage_changes_nothing_else_wherever_the_stream_is_cut(
    before: list[bytes], after: list[bytes], shares: list[float]
) -> None:
    head = b"".join(piece for piece in before if piece != USAGE_EVENT) + b"\n\n"
    tail = b"".join(after)
    stream = head + USAGE_EVENT + tail
    gate = HeldStreamEnd(hide_usage=True)
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
    assert HeldStreamEnd(hide_usage=True).pass_on(event) == event


def test_only_the_first_usage_chunk_is_hidden() -> None:
    gate = HeldStreamEnd(hide_usage=True)
    assert gate.pass_on(TEXT_EVENT + USAGE_EVENT + USAGE_EVENT) == TEXT_EVENT + USAGE_EVENT


def test_a_usage_chunk_without_its_blank_line_is_hidden_at_the_end() -> None:
    gate = HeldStreamEnd(hide_usage=True)
    assert gate.pass_on(TEXT_EVENT + USAGE_EVENT.strip()) == TEXT_EVENT
    assert gate.held() == b""


def test_hiding_usage_passes_whole_events_and_keep_alive_comments_at_once() -> None:
    gate = HeldStreamEnd(hide_usage=True)
    assert gate.pass_on(b": wait\n") == b": wait\n"
    assert gate.pass_on(TEXT_EVENT[:30]) == b""
    assert gate.pass_on(TEXT_EVENT[30:]) == TEXT_EVENT


def test_an_event_too_large_to_be_looked_at_passes_byte_by_byte() -> None:
    gate = HeldStreamEnd(hide_usage=True, max_event_bytes=100)
    assert gate.pass_on(b"data: " + b"x" * 50) == b""
    assert gate.pass_on(b"x" * 50) == b"data: " + b"x" * 100
    assert gate.pass_on(b"x") == b"x"
    assert gate.pass_on(b"\n\n" + DONE) == b"\n\n"
    assert gate.held() == DONE
