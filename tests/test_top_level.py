"""A name that comes twice at the top of a body: found however it is written, and only there."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.json_text import decode_json
from open_llm_proxy.server.top_level import duplicate_name
from raw_client import request
from relay_calls import BEARER, CHAT, Relay

pytest_plugins = ("relay_fixtures",)

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"kimi",%b,"messages":[]}' % MESSAGES, "messages"),
        (b'{"model":"a","model":"a"}', "model"),
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model":"a","mod\\u0065l":"b"}', "model"),
        (b'{"\\u006dodel":"a","model":"b"}', "model"),
        (b'{"stream":false,"x":{"stream":1},"stream":true}', "stream"),
        (b'{"user":"a","b":[{"c":1},{"c":2}],"user":"a"}', "user"),
        (b'{"model":"a","":1,"":1}', ""),
        (b'{"model":"a","\xc3\xa9":1,"\\u00e9":2}', "\u00e9"),
        (b'\n{ "model" : "a",\n "n":NaN, "model" : "b" }\n', "model"),
        (b'\xef\xbb\xbf{"model":"a","model":"b"}', "model"),
        (b'{"a\\ud800":1,"a\\ud800":2}', "a\ud800"),
        # As long as the other way of writing its different members.
        (b'{"a":1,"bcde":{"x":5, "bcde": 2},"a":1}', "a"),
        (b'{"model":"a","b":1,"c":1,"b":11}', "b"),
    ],
)
def test_a_name_that_comes_twice_is_found(body: bytes, name: str) -> None:
    decode_json(body)
    assert duplicate_name(body) == name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 999) | st.text('ab"\\é😀\x00,:{} ', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", "é", 'q"', "a b"]), JSON), max_size=6)
STYLES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : "), (", ", ":")])


@given(PAIRS, STYLES, st.booleans())
@settings(deadline=None, database=None, max_examples=400)
def test_found_exactly_where_there_is_one(
    pairs: list[tuple[str, Any]], style: tuple[str, str], ascii_only: bool
) -> None:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, separators=style)

    body = "{" + style[0].join(dump(n) + style[1] + dump(v) for n, v in pairs) + "}"
    names = [name for name, _ in pairs]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    assert duplicate_name(body.encode()) == (twice[0] if twice else None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"kimi","messages":[{"role":"system","content":"a"}],"messages":[]}',
        b'{"model":"kimi","stream":true,"messages":[],"stre\\u0061m":false}',
        b'{"model":"kimi","model":"other","messages":[]}',
    ],
)
async def test_such_a_call_is_refused_by_name_and_never_forwarded(
    relay: Relay, log: MemoryLog, body: bytes
) -> None:
    async with relay.connection() as client:
        await client.send(request("POST", CHAT, body, (BEARER,)))
        answer = await client.answer()
    name = duplicate_name(body)
    assert (answer.status, answer.error["code"]) == (400, "duplicate_name")
    assert answer.error["param"] == name and f"`{name}`" in answer.error["message"]
    assert not relay.provider.calls
    assert [row["outcome"] for row in log.responses] == ["rejected"]
