"""Redaction: properties that hold for any text, found or made up."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.redactor import Redactor
from redaction_corpus import NEGATIVES, POSITIVES, SHA256, UUID

REDACTOR = Redactor()
WORDS = ["password", "api_key", "token", "key", "secret", "name", "value", "text", "s3_key", "auth"]
PIECES = st.sampled_from(
    [
        *(text for cases in POSITIVES.values() for text, _ in cases if len(text) < 300),
        *(text for cases in NEGATIVES.values() for text in cases),
        *(*WORDS, "Authorization", "cookie", "KEY_ID", "SECRET", "Bearer", "Basic", "curl -u "),
        *"='\"\\ \n{}[],&?@:",
        *(MARK, "hunter2", "fakeKey0123456789", "https://", "-----BEGIN ", "-----", "is ", "sk-"),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(), st.text("\"'\\=: {}[]a1\n"))
NAMES = st.sampled_from(WORDS)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), children, max_size=4)
        | st.lists(children, max_size=2).map(json.dumps)
    ),
    max_leaves=12,
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_redacting_a_value_twice_is_redacting_it_once(value: object) -> None:
    once = REDACTOR.value(value)
    assert REDACTOR.value(once) is once


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES, st.sampled_from([None, 1]), st.booleans())
def test_json_stays_json_of_the_same_shape(value: object, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    assert_same_shape(value, json.loads(REDACTOR.text(text)))
    assert_same_shape(value, REDACTOR.value(value))


def assert_same_shape(before: object, after: object) -> None:
    assert type(before) is type(after)
    if isinstance(before, dict) and isinstance(after, dict):
        assert len(before) == len(after)
        for old, new in zip(before.values(), after.values(), strict=True):
            assert_same_shape(old, new)
    elif isinstance(before, list) and isinstance(after, list):
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert_same_shape(old, new)
    elif isinstance(before, str) and isinstance(after, str):
        if after != MARK and (inner := json_container(before)) is not None:
            assert_same_shape(inner, json_container(after))
    else:
        assert before == after


def json_container(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


SAFE_WORDS = st.one_of(
    st.sampled_from(["the", "county", "SELECT", "FROM", "8928308280fffff", "=", ":", ",", "."]),
    st.sampled_from(
        [UUID, SHA256, "max_tokens", "tokenizer", "secretary", "primary_key", "(", ")"]
    ),
    st.integers().map(str),
    st.uuids().map(str),
    st.text("bdfghijlmnqvxz", min_size=1, max_size=12),
    st.binary(min_size=4, max_size=40).map(bytes.hex),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SAFE_WORDS, max_size=30), st.sampled_from([" ", "\n", ", ", " = "]))
def test_ordinary_text_is_not_touched(words: list[str], separator: str) -> None:
    text = separator.join(words)
    assert REDACTOR.text(text) is text


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_is_read_without_an_error(text: str) -> None:
    for wrapped in (text, f'password="{text}', f'{{"token": "{text}', f"https://{text}@h"):
        redacted = REDACTOR.text(wrapped)
        assert REDACTOR.text(redacted) == redacted
