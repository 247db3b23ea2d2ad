"""The number of JSON values is known before one of them is built."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_log import MemoryLog
from open_llm_proxy.server.client_request import ClientRequest
from open_llm_proxy.server.json_size import MAX_VALUES, has_too_many_values
from open_llm_proxy.server.proxy_errors import ProxyError
from raw_client import request
from relay_calls import BEARER, MIB, Relay, chat_fields

pytest_plugins = ("relay_fixtures",)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\,[]{}:é', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('a,"\\{', max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


def counted(document: bytes) -> int:
    """The smallest bound that the document keeps, by bisection."""
    low, high = 0, 10_000
    while low < high:
        middle = (low + high) // 2
        if has_too_many_values(document, middle):
            low = middle + 1
        else:
            high = middle
    return low


@given(VALUES, st.booleans())
@settings(deadline=None, database=None, max_examples=300)
def test_the_count_follows_the_structure_and_not_the_texts(value: Any, ascii_only: bool) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only).encode()
    plain = json.dumps(_without_texts(value)).encode()
    assert counted(document) == counted(plain)


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {f"k{index}": _without_texts(child) for index, child in enumerate(value.values())}
    if isinstance(value, list):
        return [_without_texts(child) for child in value]
    return "t" if isinstance(value, str) else value


@given(st.lists(st.text('",[{\\', max_size=20), max_size=20), st.integers(1, 40))
@settings(deadline=None, database=None)
def test_wherever_the_slices_are_cut(texts: list[str], size: int) -> None:
    document = json.dumps(texts).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_llm_proxy.server.json_size._SLICE_BYTES", size)
        assert counted(document) == max(2, 1 + len(texts))


MODEL = b'{"model":"kimi","x":'
HOSTILE = {
    "objects": MODEL + b"[" + b",".join([b"{}"] * (58 * MIB // 3)) + b"]}",
    "lists": MODEL + b"[" + b"[]," * MIB + b"[]]}",
    "numbers": MODEL + b"[" + b"1," * MIB + b"1]}",
    "strings": MODEL + b"[" + b'"",' * MIB + b'""]}',
    "members": MODEL + b"{" + b",".join(b'"%d":1' % n for n in range(MIB)) + b"}}",
    "nested": MODEL + b"[" * MIB,
    "one-member objects": MODEL + b"[" + b'{"a":1},' * (MIB // 2) + b"1]}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_too_many_values_are_refused_before_anything_is_built(name: str) -> None:
    body = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ProxyError) as raised:
            ClientRequest.parse(body)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 32 * MIB
    finally:
        tracemalloc.stop()
    assert (raised.value.status, raised.value.code) == (400, "too_many_values")
    assert str(MAX_VALUES) in str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "kimi", "input": list(range(300_000))},
        {"model": "kimi", "messages": [{"role": "user", "content": 'a, [b], {c}, \\"' * 200_000}]},
        {"model": "kimi", "messages": [{"role": "user", "content": "x"}] * 20_000},
    ],
    ids=["token ids", "text", "messages"],
)
def test_what_is_large_for_a_reason_passes(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    tracemalloc.start()
    try:
        assert ClientRequest.parse(body).model == "kimi"
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body) + 32 * MIB
    finally:
        tracemalloc.stop()


async def test_the_caller_is_told_and_the_log_has_it(relay: Relay, log: MemoryLog) -> None:
    async with relay.connection() as client:
        body = HOSTILE["numbers"]
        await client.send(request("POST", "/v1/embeddings", body, (BEARER,)))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (400, "too_many_values")
        tokens = json.dumps(chat_fields(1) | {"logit_bias": [1] * 300_000}).encode()
        await client.send(request("POST", "/v1/chat/completions", tokens, (BEARER,)))
        assert (await client.answer()).status == 200
    assert [row["outcome"] for row in log.responses] == ["rejected", "ok"]
