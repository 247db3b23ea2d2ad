"""Reading JSON from outside: what is accepted, and that nothing but NotJSON is raised."""

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_llm_proxy.server.json_text import (
    MAX_DEPTH,
    NotJSON,
    compact_json,
    decode_json,
    encode_json,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'"\\ud800"', "\ud800"),
        (b'"\\ud83c\\udf32"', "🌲"),
        (b'"\\u0000"', "\0"),
        (b'"\x00\n"', "\0\n"),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"-Infinity", -math.inf),
        (b"1e999", math.inf),
        (b'{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_reads_what_clients_and_providers_send(data: bytes, value: object) -> None:
    assert decode_json(data) == value


def test_reads_nan() -> None:
    value = decode_json(b"NaN")
    assert isinstance(value, float) and math.isnan(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b"[1] [2]",
        b"nope",
        b'"\xff"',
        b'{"a": "\xe9", "b": "\\ud800"}',
    ],
)
def test_refuses_what_is_no_json(data: bytes) -> None:
    with pytest.raises(NotJSON):
        decode_json(data)


def test_invalid_utf8_becomes_replacement_characters_on_request() -> None:
    assert decode_json(b'["caf\xe9", "\\ud800"]', replace_invalid_utf8=True) == [
        "caf\ufffd",
        "\ud800",
    ]


def test_the_message_quotes_nothing_of_the_text() -> None:
    with pytest.raises(NotJSON) as refused:
        decode_json(b'{"api_key": sk-secret}')
    assert "secret" not in str(refused.value)


def test_an_integer_of_ten_thousand_digits_is_refused() -> None:
    with pytest.raises(NotJSON):
        decode_json(b"9" * 10_000)


def test_nesting_is_accepted_up_to_the_limit_and_refused_above_it() -> None:
    decode_json(nested(MAX_DEPTH))
    with pytest.raises(NotJSON, match="deep"):
        decode_json(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("lone_surrogate", [b"", b'"\\ud800",'], ids=["msgspec", "json"])
@pytest.mark.parametrize("depth", [500, 5_000, 1_000_000])
def test_deep_nesting_is_refused_by_both_decoders(depth: int, lone_surrogate: bytes) -> None:
    with pytest.raises(NotJSON, match="deep"):
        decode_json(b"[" + lone_surrogate + b"[" * depth + b"]" * depth + b"]")


def test_the_limit_is_the_same_for_a_caller_deep_in_its_own_stack() -> None:
    def from_deeper(frames: int) -> object:
        return from_deeper(frames - 1) if frames else decode_json(nested(MAX_DEPTH))

    from_deeper(sys.getrecursionlimit() - 2 * MAX_DEPTH - 250)


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert decode_json(b"[" + b"[]," * 10_000 + b"{}]") == [[]] * 10_000 + [{}]


@given(JSON_VALUES)
@settings(deadline=None, database=None)
def test_what_is_encoded_is_decoded_to_the_same_value(value: object) -> None:
    assert decode_json(encode_json(value).encode()) == value


def test_what_json_has_no_word_for_is_encoded_as_null_or_an_escape() -> None:
    assert encode_json([math.nan, math.inf]) == "[null,null]"
    assert encode_json({"a": "\ud800", "b": math.nan}) == '{"a":"\\ud800","b":null}'


@pytest.mark.parametrize(
    ("document", "compact"),
    [
        (b'{ "a" : 1.50,\n "b": [1, 2] }', '{"a":1.50,"b":[1,2]}'),
        (b'{"a": NaN, "b": "\\ud800"}', '{"a":null,"b":"\\ud800"}'),
        (b'{"a": "\xff"}', '{"a":"\ufffd"}'),
    ],
)
def test_compact_json_keeps_numbers_as_they_were_sent(document: bytes, compact: str) -> None:
    assert compact_json(document) == compact


@given(st.binary() | st.text(alphabet='{}[]",:\\ua1 ').map(str.encode))
@settings(deadline=None, database=None)
def test_any_bytes_give_a_value_or_not_json(data: bytes) -> None:
    for read in (decode_json, compact_json):
        try:
            read(data)
        except NotJSON as refused:
            assert str(refused)
