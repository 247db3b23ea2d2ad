"""config.json: the shipped one, the seed's trimmed one, and every mistake with its path."""

import json
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.server.config import ConfigError, load_config, parse_config
from open_llm_proxy.server.routing import Router

ROOT = Path(__file__).resolve().parent.parent
NRP: dict[str, Any] = {
    "endpoint": "https://ellm.nrp-nautilus.io/v1/chat/completions",
    "api_key_env": "NRP_API_KEY",
    "models": ["kimi", "qwen3", "glm-4.7"],
}


def document(**changes: Any) -> bytes:
    return json.dumps({"providers": {"nrp": NRP | changes}}).encode()


def mistakes(raw: bytes) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_config(raw)
    return raised.value.mistakes


def test_the_shipped_file_has_the_three_providers() -> None:
    config = load_config(ROOT / "config.json")
    assert list(config.providers) == ["nrp", "openrouter", "nimbus"]
    assert config.default_provider == "nrp"
    nrp, openrouter, nimbus = config.providers.values()
    seed = {"kimi", "qwen3", "glm-4.7", "minimax-m2", "gpt-oss", "gemma"}
    assert seed <= set(nrp.models) and set(nrp.thinking_models) <= set(nrp.models)
    assert set(nrp.thinking_models) > {"kimi", "qwen3", "glm-4.7"}
    assert openrouter.api_key_env == "OPENROUTER_KEY"
    assert set(openrouter.extra_headers) == {"HTTP-Referer", "X-Title"}
    assert set(openrouter.prefixes) == {
        "anthropic/", "mistralai/", "openai/", "qwen/", "nvidia/", "amazon/", "z-ai/", "minimax/",
        "moonshotai/", "deepseek/", "google/", "meta-llama/", "x-ai/", "~",
    }  # fmt: skip
    assert nrp.extra_body_env == {"cache_salt": "CACHE_SALT"}
    assert nimbus.models == ("nemotron",)
    assert nimbus.api_key_env == "NIMBUS_API_KEY"


def test_the_trimmed_file_of_the_readme_works_as_it_stands() -> None:
    text = (ROOT / "README.md").read_text()
    config = parse_config(text.split("```json\n", 1)[1].split("```", 1)[0].encode())
    assert config.default_provider == "nrp"
    route = Router(config, {}).route("no-such-model")
    assert route is not None
    assert (route.provider.name, route.rule) == ("nrp", "default")


@pytest.mark.parametrize("nothing", ["null", '""'])
def test_null_means_that_no_provider_gets_unlisted_models(nothing: str) -> None:
    raw = b'{"default_provider": %b, "providers": {"nrp": %b}}'
    config = parse_config(raw % (nothing.encode(), json.dumps(NRP).encode()))
    assert config.default_provider is None
    assert Router(config, {}).route("no-such-model") is None


def test_names_that_begin_with_an_underscore_are_comments() -> None:
    raw = {"_comment": ["why"], "providers": {"nrp": NRP | {"_comment": "why"}}}
    assert list(parse_config(json.dumps(raw).encode()).providers) == ["nrp"]


def test_the_hash_is_of_the_files_bytes() -> None:
    assert parse_config(document()).sha256 != parse_config(document() + b" ").sha256


@pytest.mark.parametrize(
    ("raw", "path", "part"),
    [
        (b"", "config.json", "not valid JSON"),
        (b"{", "config.json", "not valid JSON"),
        (b"[" * 100_000, "config.json", "not valid JSON"),
        (b"[]", "config.json", "must be a JSON object"),
        (b"{}", "config.json", "providers must be a JSON object"),
        (b'{"providers": {}}', "providers", "empty"),
        (b'{"providers": {"a": 1}}', "providers.a", "must be a JSON object"),
        (b'{"providers": {}, "models": []}', "models", "not a known field"),
        (document(model=["kimi"]), "providers.nrp.model", "did you mean models?"),
        (document(models="kimi"), "providers.nrp.models", "xpected"),
        (document(models=[""]), "providers.nrp.models", "length"),
        (document(models=["a", 1]), "providers.nrp.models[1]", "xpected"),
        (document(endpoint=None), "providers.nrp.endpoint", "xpected"),
        (document(endpoint="ellm.nrp-nautilus.io"), "providers.nrp.endpoint", "URL"),
        (document(endpoint="ftp://host/v1/chat/completions"), "providers.nrp.endpoint", "URL"),
        (document(endpoint="https://h:x/chat/completions"), "providers.nrp.endpoint", "URL"),
        (document(endpoint="https://host/v1"), "providers.nrp.endpoint", "/chat/completions"),
        (
            document(endpoint="https://u:p@host/v1/chat/completions"),
            "providers.nrp.endpoint",
            "must not contain a user",
        ),
        (
            document(api_key_env="sk-not-a-name"),
            "providers.nrp.api_key_env",
            "name of an environment",
        ),
        (
            document(extra_body_env={"cache_salt": "a b"}),
            "providers.nrp.extra_body_env.cache_salt",
            "name of an environment variable",
        ),
        (
            document(extra_headers={"X": "a\r\nb"}),
            "providers.nrp.extra_headers",
            "not a valid HTTP header",
        ),
        (
            document(extra_headers={"Authorization": "x"}),
            "providers.nrp.extra_headers.Authorization",
            "by the proxy itself",
        ),
        (
            document(forward_headers=["Cookie"]),
            "providers.nrp.forward_headers",
            "never forwarded",
        ),
        (document(models_endpoint="host/models"), "providers.nrp.models_endpoint", "v1/models"),
        (document(models_endpoint="http://u:p@h/"), "providers.nrp.models_endpoint", "a user"),
        (document(models_auth="sk-key"), "providers.nrp.models_auth", "bearer, x-api-key, none"),
        (document(no_sampling_params="kimi"), "providers.nrp.no_sampling_params", "xpected"),
        (document(forward_headers=["X Y"]), "providers.nrp.forward_headers", "not the name"),
        (
            b'{"default_provider": "nrq", "providers": {"nrp": %b}}' % json.dumps(NRP).encode(),
            "default_provider",
            "must be one of nrp, or null",
        ),
        (
            b'{"providers": {"nrp": %b, "b": %b}}' % ((json.dumps(NRP).encode(),) * 2),
            "providers.b",
            "providers.nrp also lists model 'kimi'",
        ),
        (b'{"providers": {"a": {}, "a": {}}}', "config.json", "appears twice"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_path_in_the_file(
    raw: bytes, path: str, part: str
) -> None:
    sentences = mistakes(raw)
    assert any(path in sentence and part in sentence for sentence in sentences), sentences
    assert all("\n" not in sentence for sentence in sentences)


def test_all_mistakes_are_reported_at_once() -> None:
    wrong = {"endpoint": "no-url", "models": ["kimi", 1, ""], "thinking_models": {"kimi": 2}}
    other = {"endpoint": NRP["endpoint"], "models": ["kimi"], "extra_header": {}}
    raw = {"providers": {"nrp": wrong, "other": other}, "default_provider": "x", "prividers": {}}
    assert mistakes(json.dumps(raw).encode()) == [
        f"config.json: {mistake}"
        for mistake in (
            "providers.nrp.api_key_env is missing",
            "providers.nrp.models[1]: Expected `str`, got `int`",
            "providers.nrp.models[2]: Expected `str` of length >= 1",
            "providers.nrp.thinking_models.kimi: Expected `str`, got `int`",
            "providers.nrp.endpoint must be a URL such as https://host/v1/chat/completions",
            "providers.other.extra_header is not a known field; did you mean extra_headers?",
            "providers.other.api_key_env is missing",
            "default_provider must be one of nrp, other, or null for none",
            "prividers is not a known field; did you mean providers?",
        )
    ]


def test_every_mistake_is_told_and_no_value_repeated() -> None:
    secret = "sk-live-0123456789"
    raw = document(api_key_env=secret, endpoint=f"https://u:{secret}@host/v1/chat/completions")
    sentences = mistakes(raw)
    assert len(sentences) == 2
    assert secret not in "".join(sentences)


def test_a_missing_file_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*; set CONFIG"):
        load_config(Path("no-such-file.json"))
