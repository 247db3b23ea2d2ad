"""A document of any size in bounded memory: what is kept, however it is cut or breaks off."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_time import cpu_seconds
from open_llm_proxy.server.json_text import NotJSON, decode_json
from open_llm_proxy.server.transcript.reduced_json import HEAD_BYTES, ReducedJSON

MIB = 1 << 20
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=80), inner, max_size=3)
    ),
    max_leaves=8,
)


def reduce(data: bytes, text_bytes: int = MIB, piece_bytes: int = 0) -> ReducedJSON:
    reduced = ReducedJSON(text_bytes)
    for start in range(0, len(data), piece_bytes or len(data) or 1):
        reduced.feed(data[start : start + (piece_bytes or len(data))])
    return reduced


def read(data: bytes, text_bytes: int = MIB, piece_bytes: int = 0) -> Any:
    reduced = reduce(data, text_bytes, piece_bytes)
    assert reduced.is_json
    return decode_json(reduced.document(), replace_invalid_utf8=True)


@given(JSON_VALUES, st.integers(1, 7), st.booleans())
@settings(deadline=None, database=None)
def test_a_short_document_stays_what_it_is(value: object, piece: int, as_ascii: bool) -> None:
    data = json.dumps({"a": value}, ensure_ascii=as_ascii, indent=piece).encode()
    for piece_bytes in (0, piece):
        reduced = reduce(data, piece_bytes=piece_bytes)
        assert reduced.is_whole and not reduced.is_cut and reduced.size == len(data)
        assert decode_json(reduced.document()) == decode_json(data)


@pytest.mark.parametrize(
    ("head", "value"),
    [
        (b'{"a": "some te', {"a": "some te"}),
        (b'{"a": "x", "b', {"a": "x"}),
        (b'{"a": "x", "b"', {"a": "x"}),
        (b'{"a": "x", "b":', {"a": "x"}),
        (b'{"a": "x", "b": 12', {"a": "x"}),
        (b'{"a": [1, 2, 34', {"a": [1, 2]}),
        (b'{"a": [1, {"b": tru', {"a": [1, {}]}),
        (b'{"a": ["x", "y"', {"a": ["x", "y"]}),
        (b'{"a": {"b": 1}', {"a": {"b": 1}}),
        (b'["a\\', ["a"]),
        (b'["a\\\\', ["a\\"]),
        (b'["a\\u26', ["a"]),
        (b'["a\\"b', ['a"b']),
        (b'["a\\ud83c', ["a"]),
        (b'["a\\ud83c\\udf', ["a"]),
        (b'["a\xf0\x9f\x8c', ["a"]),
        (b'{"embedding": [1, 2', {"embedding": "…"}),
        (b"{", {}),
        (b'{"a": 1} and more', {"a": 1}),
        (b'{"a": 1, }', {"a": 1}),
    ],
)
def test_a_document_that_breaks_off_is_read_as_far_as_it_goes(head: bytes, value: object) -> None:
    for piece_bytes in (0, 1, 2):
        assert read(head, piece_bytes=piece_bytes) == value


@given(JSON_VALUES, st.floats(0, 1), st.booleans(), st.integers(1, 9))
@settings(deadline=None, database=None)
def test_a_cut_document_is_still_one(
    value: object, share: float, as_ascii: bool, piece_bytes: int
) -> None:
    text = json.dumps({"a": value}, ensure_ascii=as_ascii).encode()
    head = text[: 1 + int((len(text) - 1) * share)]
    whole = reduce(head)
    read = decode_json(whole.document())
    assert isinstance(read, dict) and whole.is_whole is (head == text)
    assert decode_json(reduce(head, piece_bytes=piece_bytes).document()) == read


@given(st.binary() | st.text(alphabet='{}[]",:\\ua1 ').map(str.encode), st.integers(1, 9))
@settings(deadline=None, database=None)
def test_any_bytes_are_read_or_said_to_be_no_json(data: bytes, piece_bytes: int) -> None:
    reduced = reduce(data)
    pieces = reduce(data, piece_bytes=piece_bytes)
    assert reduced.head == data[:HEAD_BYTES]
    assert pieces.is_json == reduced.is_json
    if reduced.is_json:
        try:
            decode_json(reduced.document(), replace_invalid_utf8=True)
        except NotJSON as refused:  # a number or an escape that is none
            assert str(refused)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("x" * 5000, 5000),
        ("é" * 5000, 5000),
        ("森🌲" * 3000, 6000),
        ('\n"\\' * 3000, 9000),
        ("🌲\0" * 3000, 6000),
    ],
)
@pytest.mark.parametrize("as_ascii", [False, True])
def test_a_long_text_is_cut_with_the_length_that_it_had(
    text: str, length: int, as_ascii: bool
) -> None:
    data = json.dumps({"a": text, "usage": 7}, ensure_ascii=as_ascii).encode()
    results = []
    for piece_bytes in (0, 1, 5, 1000):
        value = read(data, 3000, piece_bytes)
        head, _, mark = value["a"].partition("…")
        assert text.startswith(head) and len(head) > 100
        assert mark == f"[cut: {length} characters in all]"
        assert value["usage"] == 7
        results.append(value)
    assert results.count(results[0]) == len(results)


def test_what_stands_behind_a_long_text_is_kept_also_where_no_text_fits_any_more() -> None:
    value = {"a": "x" * MIB, "b": "y" * 1000, "c": {"d": [1, "z" * 9000]}, "e": None}
    got = read(json.dumps(value).encode(), 10_000)
    assert got["a"].startswith("x" * 10_000) and got["b"] == "y" * 1000
    assert got["c"]["d"][0] == 1 and got["c"]["d"][1].endswith("[cut: 9000 characters in all]")
    assert got["e"] is None


@pytest.mark.parametrize("padding", ["", "=", "=="])
def test_data_takes_no_room_of_texts_and_keeps_its_padding(padding: str) -> None:
    data = {"data": "A" * MIB + padding, "transcript": "t" * 5000}
    got = read(json.dumps(data).encode(), 6000)
    assert got["data"].endswith(f"[cut: {MIB + len(padding)} characters in all]{padding}")
    assert got["transcript"] == "t" * 5000


def test_vectors_and_log_probabilities_are_replaced() -> None:
    value = {"logprobs": {"content": [{"token": '}"'}]}, "embedding": [0.5], "n": [[1], {}]}
    assert read(json.dumps(value).encode()) == {"logprobs": "…", "embedding": "…", "n": [[1], {}]}


def test_a_member_with_an_endless_name_is_left_out_and_said() -> None:
    reduced = reduce(json.dumps({"a": 1, "b" * 2000: {"c": [2]}, "usage": 3}).encode())
    assert reduced.is_whole and reduced.is_cut
    assert decode_json(reduced.document()) == {"a": 1, "usage": 3}


def test_too_much_structure_costs_all_but_the_facts() -> None:
    parts = [{"type": "text", "text": f"part {i}"} for i in range(100_000)]
    document = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    data = json.dumps(document | {"junk": parts[:9], "usage": {"total_tokens": 7, "a": [1]}})
    reduced = reduce(data.encode())
    assert reduced.is_cut and reduced.has_gaps and len(reduced.document()) < 2 * MIB
    got = decode_json(reduced.document())
    assert isinstance(got, dict)
    assert got["choices"][0]["finish_reason"] == "stop"
    assert got["usage"] == {"total_tokens": 7, "a": [1]} and "junk" not in got


@pytest.mark.parametrize(
    "unit",
    [b'"', b"[", b'["",', b"\\", b'"\\', b'{"a":', b"[],", b'"a",', b"1,", b'{"a":[', b'\\"[{'],
)
@pytest.mark.parametrize("start", [b'["', b"[", b'{"logprobs":[', b'{"a":"'])
def test_hostile_documents_take_linear_time_and_bounded_room(start: bytes, unit: bytes) -> None:
    data = start + unit * (4_000_000 // len(unit))
    with cpu_seconds(20):
        reduced = reduce(data, piece_bytes=65_536)
    assert len(reduced.document()) < 2 * MIB


def test_memory_stays_bounded() -> None:
    tracemalloc.start()
    try:
        reduced = ReducedJSON(MIB)
        reduced.feed(b'{"a":"')
        for _ in range(200):
            reduced.feed(b"x" * 100_000)
        reduced.feed(b'","b":[')
        for _ in range(200):
            reduced.feed(b'[1,{"c":"d"}],' * 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MIB
