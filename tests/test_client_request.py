"""What is read from a client's body, and what of it changes on the way to a provider."""

import json
from typing import Any

import msgspec
import pytest

from open_llm_proxy.server.client_request import ClientRequest, ProviderBody, provider_body
from open_llm_proxy.server.config import ProviderConfig
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.routing import Provider
from relay_calls import CHAT

MODELS = {"kimi": "thinking", "qwen3": "enable_thinking"}
# Spellings that a decoder and an encoder would not bring back.
ODD = (
    rb'{"model" : "kimi","temperature":1.0, "seed":12345678901234567890, "top_p":1e-7,'
    rb' "messages":[{"role":"user","content":"\u00e9 \ud83d\ude00 \/ caf\u00e9"}] ,'
    rb' "logit_bias": {"50256":-100}, "unknown": {"b":1,"a":[1.50]} }'
)


def provider(**changes: Any) -> Provider:
    config = ProviderConfig(
        endpoint="http://127.0.0.1/v1/chat/completions",
        api_key_env="KEY",
        thinking_models=MODELS,
        log_stream_usage=changes.pop("log_stream_usage", False),
    )
    return Provider("nrp", config, "key", changes)


def translated(body: bytes, endpoint: str = CHAT, **changes: Any) -> ProviderBody:
    return provider_body(ClientRequest.parse(body), provider(**changes), endpoint)


def fields_of(body: bytes) -> dict[str, bytes]:
    """The top-level fields with the bytes of their values."""
    raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return {name: bytes(value).strip() for name, value in raw.items()}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b'{"model": "a"} x', "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"a":' * 50_000, "invalid_json", None),
        (b"[]", "invalid_body", None),
        (b"null", "invalid_body", None),
        (b'"text"', "invalid_body", None),
        (b"{}", "missing_model", "model"),
        (b'{"model": ""}', "missing_model", "model"),
        (b'{"model": null}', "missing_model", "model"),
        (b'{"model": 7}', "missing_model", "model"),
        (b'{"model": ["kimi"]}', "missing_model", "model"),
    ],
)
def test_a_body_that_is_no_call_is_refused(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(ProxyError) as caught:
        ClientRequest.parse(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_a_refusal_quotes_nothing_of_the_body() -> None:
    with pytest.raises(ProxyError) as caught:
        ClientRequest.parse(b'{"api_key": "sk-secret", oops')
    assert "secret" not in str(caught.value.body())


@pytest.mark.parametrize(
    "body",
    [
        ODD,
        b'\xef\xbb\xbf{"model":"kimi"}',
        b'{"model":"kimi","x":"\\ud800","y":NaN}',
    ],
    ids=["odd", "byte order mark", "lone surrogate and NaN"],
)
def test_a_body_in_which_nothing_has_to_change_stays_byte_for_byte(body: bytes) -> None:
    assert translated(body).body is body or translated(body).body == body


def test_of_a_body_that_has_to_change_all_other_values_keep_their_bytes() -> None:
    changed = translated(ODD[:-2] + b', "enable_thinking": true}', extra=1)
    before, after = fields_of(ODD), fields_of(changed.body)
    assert after.pop("chat_template_kwargs") == b'{"thinking":true}'
    assert after.pop("extra") == b"1"
    assert after == before and list(after) == list(before)


@pytest.mark.parametrize(
    ("model", "flag", "sent", "applied", "arguments"),
    [
        ("kimi", True, None, True, {"thinking": True}),
        ("kimi", False, None, True, {"thinking": False}),
        ("qwen3", True, {"a": 1}, True, {"a": 1, "enable_thinking": True}),
        ("kimi", True, {"thinking": False}, True, {"thinking": True}),
        ("other", True, None, False, None),
        ("other", True, {"a": 1}, False, {"a": 1}),
        ("kimi", None, None, None, None),
    ],
)
def test_the_thinking_flag_becomes_the_models_own_argument(
    model: str,
    flag: bool | None,
    sent: dict[str, Any] | None,
    applied: bool | None,
    arguments: dict[str, Any] | None,
) -> None:
    fields: dict[str, Any] = {"model": model, "enable_thinking": flag}
    if sent is not None:
        fields["chat_template_kwargs"] = sent
    result = translated(json.dumps(fields).encode())
    assert result.thinking_applied is applied
    after = json.loads(result.body)
    assert "enable_thinking" not in after
    assert after.get("chat_template_kwargs") == arguments


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"enable_thinking": 1}, "enable_thinking"),
        ({"enable_thinking": True, "chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_a_thinking_flag_that_means_nothing_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ProxyError) as caught:
        translated(json.dumps({"model": "kimi", **fields}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_operators_fields_win_and_objects_are_merged() -> None:
    body = b'{"model":"kimi","cache_salt":"theirs","nested":{"a":1,"b":1}}'
    after = json.loads(translated(body, cache_salt="ours", nested={"b": 2}).body)
    assert after == {"model": "kimi", "cache_salt": "ours", "nested": {"a": 1, "b": 2}}


ASKED = {"include_usage": True}


@pytest.mark.parametrize(
    ("stream", "options", "sent", "asked"),
    [
        (True, None, ASKED, True),
        (True, {}, ASKED, True),
        (True, {"include_usage": False}, ASKED, True),
        (True, {"include_usage": None, "x": 1}, {"include_usage": True, "x": 1}, True),
        (True, {"include_usage": True}, ASKED, False),
        (True, {"include_usage": "yes"}, {"include_usage": "yes"}, False),
        (True, [], [], False),
        (True, "text", "text", False),
        (False, None, None, False),
        (None, None, None, False),
        ("true", None, None, False),
    ],
)
def test_usage_of_a_stream_is_asked_for_where_the_client_has_not(
    stream: object, options: object, sent: object, asked: bool
) -> None:
    fields: dict[str, object] = {"model": "kimi", "stream": stream}
    if options is not None:
        fields["stream_options"] = options
    body = json.dumps(fields).encode()
    for endpoint in (CHAT, "/v1/completions"):
        result = translated(body, endpoint, log_stream_usage=True)
        assert json.loads(result.body).get("stream_options") == sent
        assert (result.asked_for_usage, result.stream) == (asked, stream is True)
    for endpoint in ("/v1/responses", "/v1/embeddings"):
        assert translated(body, endpoint, log_stream_usage=True).body == body
    assert translated(body).body == body


def test_an_operator_who_asks_for_usage_for_everybody_shows_it_to_everybody() -> None:
    body = b'{"model":"kimi","stream":true}'
    result = translated(body, log_stream_usage=True, stream_options=ASKED)
    assert json.loads(result.body)["stream_options"] == ASKED and not result.asked_for_usage


@pytest.mark.parametrize("body", [ODD, b'{"model":"kimi","x":"\\ud800","y":NaN,"user":"u"}'])
def test_json_that_one_decoder_refuses_is_changed_by_another(body: bytes) -> None:
    after = json.loads(translated(body, extra=1).body)
    assert after.pop("extra") == 1
    assert str(after) == str(json.loads(body))
