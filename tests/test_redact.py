"""Redaction: what must go goes, what must stay stays, and nothing breaks on the way."""

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from open_llm_proxy.server.redaction import (
    commands,
    credentials,
    documents,
    grammars,
    layouts,
    members,
    names,
    pem,
    redactor,
    rules,
    shapes,
    values,
)
from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.redactor import Redactor
from redaction_corpus import (
    CEPH_KEY,
    CEPH_SECRET,
    DUCKDB_SECRET,
    JWT,
    NEGATIVES,
    OPENAI,
    PEM,
    POSITIVES,
    SHA256,
    UUID,
)

MODULES = [
    *(commands, credentials, documents, grammars, layouts, members, names),
    *(pem, redactor, rules, shapes, values),
]
REDACTOR = Redactor()
ALL_POSITIVES = [
    pytest.param(text, secrets, id=f"{kind}-{index}")
    for kind, cases in POSITIVES.items()
    for index, (text, secrets) in enumerate(cases)
]
ALL_NEGATIVES = [
    pytest.param(text, id=f"{kind}-{index}")
    for kind, cases in NEGATIVES.items()
    for index, text in enumerate(cases)
]
WRAPPERS = {
    "json": lambda text: json.dumps({"content": text}),
    "json_in_json": lambda text: json.dumps({"arguments": json.dumps({"sql": text})}),
    "json_three_deep": lambda text: json.dumps(
        [1, json.dumps({"a": json.dumps({"b": text}, ensure_ascii=False)}, indent=2)]
    ),
    "messages": lambda text: json.dumps(
        [{"role": "user", "content": [{"type": "text", "text": text}]}]
    ),
    "sentence": lambda text: f"I tried this:\n{text}\nand it failed",
    "sentence_in_json": lambda text: json.dumps({"a": f"I tried this:\n{text}\nand it failed"}),
    "sentence_in_json_in_json": lambda text: json.dumps(
        {"arguments": json.dumps({"a": f"I tried this:\r\n{text}\nand it failed"})}
    ),
    "code_block": lambda text: f"Look:\n```\n{text}\n```\nok",
    "cut_json": lambda text: json.dumps({"content": text})[:-2],
    "event": lambda text: f"data: {json.dumps({'n': 1, 'delta': text})}\n\n",
    "error": lambda text: f"bad body {json.dumps({'a': json.dumps({'b': text})})}",
}


def test_the_corpus_is_large_enough() -> None:
    assert len(ALL_POSITIVES) >= 150
    assert len(ALL_NEGATIVES) >= 150
    assert all(
        secret in text for case in POSITIVES.values() for text, all_ in case for secret in all_
    )


@pytest.mark.parametrize(("text", "secrets"), ALL_POSITIVES)
def test_credentials_go(text: str, secrets: tuple[str, ...]) -> None:
    redacted = REDACTOR.text(text)
    assert [secret for secret in secrets if secret in redacted] == []
    assert MARK in redacted
    assert REDACTOR.text(redacted) == redacted


@pytest.mark.parametrize("text", ALL_NEGATIVES)
def test_everything_else_stays(text: str) -> None:
    assert REDACTOR.text(text) is text


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_credentials_go_wherever_the_text_is_quoted(wrapper: str) -> None:
    for kind, cases in POSITIVES.items():
        for text, secrets in cases:
            redacted = REDACTOR.text(WRAPPERS[wrapper](text))
            for secret in secrets:
                escaped = json.dumps(secret)[1:-1]
                assert secret not in redacted and escaped not in redacted, (kind, text, redacted)
            assert REDACTOR.text(redacted) == redacted, (kind, text)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_everything_else_stays_wherever_the_text_is_quoted(wrapper: str) -> None:
    for cases in NEGATIVES.values():
        for text in cases:
            wrapped = WRAPPERS[wrapper](text)
            assert REDACTOR.text(wrapped) == wrapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            DUCKDB_SECRET,
            "CREATE OR REPLACE SECRET s3 (TYPE S3, KEY_ID '[redacted]', SECRET '[redacted]', "
            "ENDPOINT 's3-west.nrp-nautilus.io', URL_STYLE 'path');",
        ),
        ("SET s3_secret_access_key='fake';", "SET s3_secret_access_key='[redacted]';"),
        ("https://me:fakepw@example.org/x?y=1", "https://me:[redacted]@example.org/x?y=1"),
        (
            f"https://{OPENAI}@example.org/",
            "https://[redacted]@example.org/",
        ),
        (
            "https://h/b/k?X-Amz-Date=1&X-Amz-Signature=0123abcd&x=1",
            "https://h/b/k?X-Amz-Date=1&X-Amz-Signature=[redacted]&x=1",
        ),
        ("$y$j9T$fAkEsalt0123$fAkE0123456789", "$y$j9T$fAkEsalt0123$[redacted]"),
        ("X-Api-Key: fakefake1\r\nHost: h", "X-Api-Key: [redacted]\r\nHost: h"),
        ("Authorization: Bearer fakefake\n", "Authorization: Bearer [redacted]\n"),
        ("curl -u me:fakepw https://h/", "curl -u me:[redacted] https://h/"),
        ("export A_KEY=1 NRP_API_KEY=fakekey\n", "export A_KEY=1 NRP_API_KEY=[redacted]\n"),
        (f"before\n{PEM}\nafter", "before\n[redacted]\nafter"),
        ("host=db password=fakepw1 user=me", "host=db password=[redacted] user=me"),
        ('{ "n" : 1.50,\t"api_key":"fake" }', '{"n": 1.5, "api_key": "[redacted]"}'),
        ('{"token": "", "secret": null, "password": 5}', None),
        ('{ "n" : 1.50,\t"key":"fake" }', None),
        ('{"a": 1, "a": 2E5, "token": "x"}', '{"a": 1, "a": 2E5, "token": "[redacted]"}'),
        ('{"a": 1e999, "token": "x"}', '{"a": 1e999, "token": "[redacted]"}'),
        ('{"a": [1, 2, {"token": "cut', '{"a": [1, 2, {"token": "[redacted]'),
        ('{"token": "fake", "n": tr', '{"token": "[redacted]", "n": tr'),
        ('{"token": "fake", "n": ', '{"token": "[redacted]", "n": '),
        ('{"token": "fake", ', '{"token": "[redacted]", '),
        ('{"token": "fake", "na', '{"token": "[redacted]", "na'),
        ('[{"token": "fake"}, {', '[{"token": "[redacted]"}, {'),
        ('{"token": "fake\\u00', '{"token": "[redacted]\\u00'),
        ('{"token": "cut off', '{"token": "[redacted]'),
        ('{"q": "gr\\u00fcn", "token": "fake"}', '{"q": "gr\\u00fcn", "token": "[redacted]"}'),
        (r"say {\"password\": \"fake\"}", r"say {\"password\": \"[redacted]\"}"),
        (r'cut "{\"password\": \"fake", "n": "x"', r'cut "{\"password\": \"[redacted]", "n": "x"'),
    ],
)  # fmt: skip
def test_the_text_around_a_credential_stays_as_it_was(text: str, expected: str | None) -> None:
    assert REDACTOR.text(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"s3_key": "fake", "bucket": "b"}, {"s3_key": MARK, "bucket": "b"}),
        ({"Authorization": "Bearer fake"}, {"Authorization": MARK}),
        ({"api_keys": ["fake", "", 3, None]}, {"api_keys": [MARK, "", 3, None]}),
        ([{"name": "API_KEY", "value": "fake"}], [{"name": "API_KEY", "value": MARK}]),
        ([{"value": "fake", "name": "API_KEY"}], [{"value": MARK, "name": "API_KEY"}]),
        ({"secret": "fake", "key": "fake2"}, {"secret": MARK, "key": MARK}),
        ({"password": {"value": "fake", "n": 1}}, {"password": {"value": MARK, "n": 1}}),
        ({"cookies": {"sid": "fake", "path": "/"}}, {"cookies": {"sid": MARK, "path": "/"}}),
        ({"sql": DUCKDB_SECRET}, {"sql": REDACTOR.text(DUCKDB_SECRET)}),
        (
            {"arguments": json.dumps({"sql": DUCKDB_SECRET, "n": 1.50})},
            {"arguments": json.dumps({"sql": REDACTOR.text(DUCKDB_SECRET), "n": 1.50})},
        ),
        ({JWT: "x"}, {MARK: "x"}),
        (f"my key is {OPENAI}", f"my key is {MARK}"),
    ],
)
def test_values_lose_their_credentials(value: object, expected: object) -> None:
    before = json.dumps(value)
    assert REDACTOR.value(value) == expected
    assert json.dumps(value) == before
    assert REDACTOR.value(expected) is expected


@pytest.mark.parametrize(
    "value",
    [
        {"token": 5, "password": None, "secret": True, "api_key": 0.5},
        {"max_tokens": "100", "tokenizer": "gpt2", "key": "value", "key_name": "team"},
        {"token": "Hello", "logprob": -0.3},
        {"properties": {"api_key": {"type": "string", "description": "Your key"}}},
        {"password": "", "token": "your-token-here", "secret": "${SECRET}"},
        {"id": UUID, "sha256": SHA256, "h3": "8928308280fffff", 7: "seven"},
        {"key": "population", "value": "12"},
        ["a", {"b": ["c", {"d": None}]}],
        "text",
        None,
        3,
    ],
)
def test_values_without_credentials_come_back_as_the_same_object(value: object) -> None:
    assert REDACTOR.value(value) is value


def test_two_keys_that_are_credentials_stay_two_members() -> None:
    value = REDACTOR.value({OPENAI: 1, JWT: 2})
    assert isinstance(value, dict)
    assert sorted(value.values()) == [1, 2]
    assert OPENAI not in str(value) and JWT not in str(value)


class TestKnownSecrets:
    redactor = Redactor(secrets=("plain words here", 'quo"ted\\key/+', "short", "redacted"))

    @pytest.mark.parametrize(
        "text",
        [
            "a plain words here b",
            "plain words here" * 3,
            json.dumps({"x": 'quo"ted\\key/+'}),
            json.dumps(json.dumps({"x": 'quo"ted\\key/+'})),
            "https://h/?q=quo%22ted%5Ckey%2F%2B",
            '{"plain words here": 1}',
        ],
    )
    def test_they_go_wherever_they_stand(self, text: str) -> None:
        redacted = self.redactor.text(text)
        assert MARK in redacted
        assert "plain words" not in redacted and "quo" not in redacted
        assert self.redactor.text(redacted) == redacted

    def test_short_ones_are_not_used(self) -> None:
        assert self.redactor.text("short words are short") == "short words are short"

    def test_the_mark_itself_is_no_secret(self) -> None:
        assert self.redactor.text("it was redacted: [redacted]") == "it was redacted: [redacted]"

    def test_they_are_not_shown(self) -> None:
        assert "plain" not in repr(self.redactor) and "quo" not in repr(self.redactor)


def test_a_broken_escape_does_not_stop_redaction() -> None:
    assert REDACTOR.text(r'{"a": "\x \u12", "token": "fa\qke"}') == (
        r'{"a": "\x \u12", "token": "[redacted]"}'
    )


@pytest.mark.parametrize("depth", [1, 3, 8, 9, 11])
def test_json_in_strings_is_redacted_at_any_depth(depth: int) -> None:
    text = json.dumps({"s3_secret": CEPH_SECRET, "note": CEPH_KEY, "n": 1})
    for _ in range(depth):
        text = json.dumps({"payload": text})
    value: Any = json.loads(REDACTOR.text(text))
    for _ in range(depth):
        value = json.loads(value["payload"])
    assert value == {"s3_secret": MARK, "note": CEPH_KEY, "n": 1}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"token":[' * 50_000 + '"fake"',
        '["token",' * 50_000,
        '"' + "\\" * 100_000,
        "\x00" * 1000 + '{"token": "fa\x00ke"}',
        '{"token": "\ud800 fake", "\udfff": "\ud83d"}',
        '{"token": "\\ud800 fake", "x": "\\udfff token=abc12345 \\ud83d"}',
    ],
)
def test_hostile_text_is_redacted_without_an_error(text: str) -> None:
    redacted = REDACTOR.text(text)
    assert "fake" not in redacted and "abc12345" not in redacted


@pytest.mark.parametrize(
    "before", ['"a line that only looks like JSON"', '"key": and prose', '["a" b']
)
def test_a_document_behind_what_only_looks_like_one_is_read(before: str) -> None:
    document = {"Bearer": [["fakefake1", 1]], "Cookie": "a b"}
    text = f"{before}\n{json.dumps(document)}\nand token: words"
    assert "fakefake1" not in REDACTOR.text(text)


def test_values_of_any_depth_are_redacted_without_recursion() -> None:
    value: Any = {"token": "fake"}
    for _ in range(50_000):
        value = {"a": [value]}
    redacted: Any = REDACTOR.value(value)
    for _ in range(50_000):
        value, redacted = value["a"][0], redacted["a"][0]
    assert (value, redacted) == ({"token": "fake"}, {"token": MARK})


def test_no_pattern_repeats_a_repetition() -> None:
    """A repetition without limit inside another is what makes patterns slow on hostile text."""
    patterns = [pattern for module in MODULES for pattern in compiled_patterns(module)]
    assert len(patterns) > 30
    assert [pattern.pattern for pattern in patterns if repeats_a_repetition(parsed(pattern))] == []
    assert repeats_a_repetition(parsed(re.compile(r"(?:a+b?)+")))
    assert not repeats_a_repetition(parsed(re.compile(r"(?:a++b?)*+a+")))


def compiled_patterns(module: ModuleType) -> list[re.Pattern[Any]]:
    return [value for value in vars(module).values() if isinstance(value, re.Pattern)]


def parsed(pattern: re.Pattern[Any]) -> Any:
    return re._parser.parse(pattern.pattern, pattern.flags)  # type: ignore[attr-defined]


def repeats_a_repetition(items: Any, *, repeated: bool = False) -> bool:
    for operation, arguments in items:
        unlimited = str(operation) in ("MAX_REPEAT", "MIN_REPEAT") and (
            arguments[1] == re._constants.MAXREPEAT  # type: ignore[attr-defined]
        )
        if unlimited and repeated:
            return True
        for part in parts_of(arguments):
            if repeats_a_repetition(part, repeated=repeated or unlimited):
                return True
    return False


def parts_of(arguments: Any) -> Iterator[Any]:
    """The patterns inside the arguments of an operation."""
    if isinstance(arguments, re._parser.SubPattern):  # type: ignore[attr-defined]
        yield arguments
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from parts_of(argument)


def test_json_without_strings_is_left_alone() -> None:
    usage = '{"prompt_tokens": 1000, "details": {"token": 3, "x": -1.5e3}, "ok": true, "no": null}'
    assert Redactor().text(usage) is usage
