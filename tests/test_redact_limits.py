"""Redaction: behind a limit that a text has used up, nothing passes unread."""

import json

import pytest

from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.redactor import Redactor
from redaction_corpus import DISCORD

REDACTOR = Redactor()
HIDDEN = r'"\u0070assword": "fakepw1"'  # only who decodes it sees the name
DEEP = "[" * 250 + "]" * 250
CUT = r'{"x": "{\"password\": \"fakepw1'


def in_strings(text: str, levels: int) -> str:
    for _ in range(levels):
        text = text.replace("\\", r"\u005c").replace('"', r"\u0022")
        text = f'{{"a": "{text}"}}'
    return text


LIMITS = {
    "read again": '["a",x{"b": "' * 4000 + f"{{{HIDDEN}}}",
    "read again, unclosed": " ".join([CUT, f"{{{HIDDEN}}}"] * 40),
    "read again, open strings": r'["a\", {"b":' * 4000 + f"{{{HIDDEN}}}",
    "nesting": f'{{{HIDDEN}, "a": {DEEP}}}',
    "nesting, behind it": f'{{"a": {DEEP}, {HIDDEN}}}',
    "nesting, cut": f'{{{HIDDEN}, "a": {"[" * 250}',
    "nesting, without braces": f'{HIDDEN}, "a": {DEEP}',
    "nesting, before another": f"{DEEP} {{{HIDDEN}}}",
    "nesting, mismatched": "[" * 250 + f"}} {{{HIDDEN}}}",
    "quotes": '{"a": ["b"' + ', "b"' * 100_001 + f"], {HIDDEN}}}",
    "quotes, without braces": '"a": ["b"' + ', "b"' * 100_001 + f"], {HIDDEN}",
    "strings in strings": in_strings(f"{{{HIDDEN}}}", 20),
    "words": "turkey_01 2.5 " * 10_001 + "password=fakepw1",
    "marks": "$" * 100_001 + " password=fakepw1",
    "hidden letters": r"\u0041 " * 100_001 + f"{{{HIDDEN}}}",
    "runs": ("k" * 18 + "9_0 ") * 30_001 + "password=fakepw1",
    "flags": "curl -x\n" * 10_001 + "password=fakepw1",
    "places": "DB_PASSWORD=hunter2x " * 2_001 + "password=fakepw1",
    "passes": "mysql" + f" -p{'x9' * 600}" * 40 + " -pfakepw1",
    "rows of a table": "a,password\n" + "b,c\n" * 5_001 + "d,fakepw1\n",
    "lines of a manifest": "kind: Secret\ndata:\n" + "  a: bbb\n" * 12_000 + "  z: fakepw1\n",
}


@pytest.mark.parametrize("limit", LIMITS)
def test_nothing_passes_unread_behind_a_limit(limit: str) -> None:
    redacted = REDACTOR.text(LIMITS[limit])
    assert "fakepw1" not in redacted and MARK in redacted
    assert REDACTOR.text(redacted) == redacted


def test_lines_of_json_that_were_cut_use_no_limit_up() -> None:
    line = json.dumps({"a": {"b": [{"c": "d e", "tools": [{"f": "g" * 90, "key": 1}]}]}})[:100]
    text = f"{line}...\n" * 1000 + f"{{{HIDDEN}}}"
    assert REDACTOR.text(text) == text.replace(HIDDEN, f'"password": "{MARK}"')


@pytest.mark.parametrize("key", ["dop_v1_" + "0123456789abcdef" * 4, DISCORD])
def test_keys_without_a_separator(key: str) -> None:
    assert REDACTOR.text(key * 5) == MARK
