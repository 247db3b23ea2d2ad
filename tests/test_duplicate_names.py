"""A name that comes twice in an object of a body is found, however it is written."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.duplicate_names import duplicate_name
from open_llm_proxy.server.json_text import decode_json
from raw_client import request
from relay_calls import BEARER, CHAT, Relay

pytest_plugins = ("relay_fixtures",)

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def twice(body: bytes) -> str | None:
    return duplicate_name(body, decode_json(body))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"kimi",%b,"messages":[]}' % MESSAGES, "messages"),
        (b'{"model":"a","model":"a"}', "model"),
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model":"a","mod\\u0065l":"b"}', "model"),
        (b'{"\\u006dodel":"a","model":"b"}', "model"),
        (b'{"stream":false,"x":{"stream":1},"stream":true}', "stream"),
        (b'{"messages":[{"role":"user","content":"a","content":"b"}]}', "content"),
        (b'{"stream_options":{"include_usage":1,"x":1.50,"include_usage":0}}', "include_usage"),
        (b'[[{"a":1},{"a":1,"b":[{"c":{}}],"a":2}]]', "a"),
        (b'{"user":"a","b":[{"c":1},{"c":2}],"user":"a"}', "user"),
        (b'{"model":"a","":1,"":1}', ""),
        (b'{"model":"a","\xc3\xa9":1,"\\u00e9":2}', "\u00e9"),
        (b'\n{ "model" : "a",\n "n":NaN, "model" : "b" }\n', "model"),
        (b'\xef\xbb\xbf{"model":"a","model":"b"}', "model"),
        (b'{"a\\ud800":1,"a\\ud800":2}', "a\ud800"),
        # As many quotes as are left when it is written again.
        (b'{"a":"\\u0022\\u0022","b":1,"b":2}', "b"),
    ],
)
def test_a_name_that_comes_twice_is_found(body: bytes, name: str) -> None:
    assert twice(body) == name


KEYS = st.sampled_from(["a", "b", "ab", "é", 'q"', "a b"])
# Objects as lists of pairs, in which a name may come twice.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 999) | st.text('ab"\\é😀\x00,:{} ', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4),
    max_leaves=12,
)
STYLES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : "), (", ", ":")])


@given(VALUES, STYLES, st.booleans())
@settings(deadline=None, database=None, max_examples=400)
def test_found_exactly_where_there_is_one(
    value: Any, style: tuple[str, str], ascii_only: bool
) -> None:
    doubled: set[str] = set()

    def dump(value: Any) -> str:
        if not isinstance(value, list):
            return json.dumps(value, ensure_ascii=ascii_only)
        if not value or not isinstance(value[0], tuple):
            return "[" + style[0].join(dump(item) for item in value) + "]"
        names = [name for name, _ in value]
        doubled.update(name for name in names if names.count(name) > 1)
        return "{" + style[0].join(dump(n) + style[1] + dump(v) for n, v in value) + "}"

    found = twice(dump(value).encode())
    assert found in doubled if doubled else found is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"kimi","messages":[{"role":"system","content":"a"}],"messages":[]}',
        b'{"model":"kimi","stream":true,"messages":[],"stre\\u0061m":false}',
        b'{"model":"kimi","model":"other","messages":[]}',
        b'{"model":"kimi","messages":[{"role":"user","content":"a","content":"b"}]}',
    ],
)
async def test_such_a_call_is_refused_by_name_and_never_forwarded(
    relay: Relay, log: MemoryLog, body: bytes
) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body, (BEARER,)))
        answer = await client.answer()
    name = twice(body)
    assert (answer.status, answer.error["code"]) == (400, "duplicate_name")
    assert answer.error["param"] == name and f"`{name}`" in answer.error["message"]
    assert not relay.provider.calls
    assert [row["outcome"] for row in log.responses] == ["rejected"]
