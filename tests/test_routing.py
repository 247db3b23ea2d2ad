"""Routing: which provider gets which model, and by which rule."""

import json
from typing import Any

import pytest

from open_llm_proxy.server.config import parse_config
from open_llm_proxy.server.routing import Router


def router(default: str | None = "nrp", **extra: Any) -> Router:
    providers: dict[str, Any] = {
        "nrp": {"models": ["kimi", "qwen3"], "thinking_models": {"kimi": "thinking"}},
        "local": {"models": ["qwen", "openai/gpt-oss", "team/"]},
        "openrouter": {"model_prefixes": ["openai/", "anthropic/", "openai/gpt-5"]},
        **extra,
    }
    for name, provider in providers.items():
        provider.setdefault("endpoint", f"https://{name}.example/api/v1/chat/completions")
        provider.setdefault("api_key_env", f"{name.upper()}_KEY")
    document = {"providers": providers} | ({"default_provider": default} if default else {})
    return Router(parse_config(json.dumps(document).encode()), {"NRP_KEY": "the-nrp-key-1"})


@pytest.mark.parametrize(
    ("model", "provider", "rule"),
    [
        ("kimi", "nrp", "exact"),
        ("qwen3", "nrp", "exact"),
        ("qwen", "local", "exact"),
        ("qwen3-small", "nrp", "default"),
        ("openai/gpt-oss", "local", "exact"),
        ("openai/gpt-4o", "openrouter", "prefix"),
        ("anthropic/claude-sonnet-4-5", "openrouter", "prefix"),
        ("team/own-model", "local", "prefix"),
        ("team", "nrp", "default"),
        ("KIMI", "nrp", "default"),
        ("", "nrp", "default"),
    ],
)
def test_exact_then_longest_prefix_then_default(model: str, provider: str, rule: str) -> None:
    route = router().route(model)
    assert route is not None
    assert (route.provider.name, route.rule) == (provider, rule)


def test_the_longest_prefix_wins_over_providers() -> None:
    own = {"model_prefixes": ["openai/gpt-5-mini"]}
    route = router(own=own).route("openai/gpt-5-mini-2026")
    assert route is not None
    assert route.provider.name == "own"


def test_nrp_is_the_default_unless_another_is_named() -> None:
    for default, expected in ((None, "nrp"), ("openrouter", "openrouter")):
        route = router(default).route("unheard-of")
        assert route is not None
        assert route.provider.name == expected


def test_without_nrp_and_without_a_default_an_unknown_model_goes_nowhere() -> None:
    provider = {
        "endpoint": "https://a.example/v1/chat/completions",
        "api_key_env": "A_KEY",
        "models": ["m", "prefix/"],
    }
    alone = Router(parse_config(json.dumps({"providers": {"a": provider}}).encode()), {})
    assert alone.route("n") is None
    assert alone.served() == ["m", "prefix/…"]


def test_urls_of_other_routes_are_derived_from_the_endpoint() -> None:
    provider = router().providers["nrp"]
    assert provider.url("/v1/chat/completions") == provider.config.endpoint
    assert provider.url("/v1/embeddings") == "https://nrp.example/api/v1/embeddings"
    assert provider.url("/v1/models") == "https://nrp.example/api/v1/models"


def test_a_key_is_read_from_its_variable_and_never_shown() -> None:
    providers = router().providers
    assert providers["nrp"].api_key == "the-nrp-key-1"
    assert providers["nrp"].is_configured
    assert not providers["local"].is_configured
    assert "the-nrp-key-1" not in repr(providers)
