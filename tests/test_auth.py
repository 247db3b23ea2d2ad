"""Proxy keys: who is let in, under which name, and what the others are told."""

import pytest

from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.proxy_errors import ProxyError

KEYS = ProxyKeys("the-main-key", [("team", "the-team-key")])


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        ("Bearer the-main-key", "default"),
        ("bearer the-main-key", "default"),
        ("BEARER   the-main-key ", "default"),
        ("Bearer the-team-key", "team"),
    ],
)
def test_a_key_is_known_by_its_name(authorization: str, name: str) -> None:
    assert KEYS.check(authorization) == name


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer the-main-ke",
        "Bearer the-main-key2",
        "Bearer thé-main-key",
        "Basic the-main-key",
        "the-main-key",
        "Token the-main-key",
    ],
)
def test_anything_else_is_a_401_that_says_how_to_send_the_key(authorization: str | None) -> None:
    with pytest.raises(ProxyError) as raised:
        KEYS.check(authorization)
    assert raised.value.status == 401
    assert raised.value.code == "invalid_api_key"
    assert "API key provided" in str(raised.value)
    assert "the-main-key" not in str(raised.value)


def test_without_any_key_every_call_is_told_why() -> None:
    with pytest.raises(ProxyError, match="PROXY_KEY") as raised:
        ProxyKeys("", []).check("Bearer anything")
    assert raised.value.status == 503


def test_extra_keys_are_enough() -> None:
    assert ProxyKeys("", [("app", "key-of-the-app")]).check("Bearer key-of-the-app") == "app"
