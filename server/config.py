"""config.json: the providers and their models, read and checked once at start.

Whatever would fail later in a running server is refused here: unknown fields, wrong types, invalid
URLs, a default provider that is not defined, a model listed by two providers. Each mistake is one
sentence that names the path in the file. The sentences never repeat a value, because a common
mistake is to write an API key where the name of its variable belongs.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SET_BY_PROXY = ("authorization", "host", "content-length", "transfer-encoding")
# Hop-by-hop headers (RFC 9110 section 7.6.1), and what the proxy reads itself or sets anew.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
NEVER_FORWARDED = HOP_BY_HOP | {
    "accept-encoding",
    "authorization",
    "content-encoding",
    "content-length",
    "cookie",
    "expect",
    "host",
    "origin",
    "referer",
    "x-client",
    "x-session-id",
}
CHAT_PATH = "/chat/completions"
MODELS_AUTHS = ("bearer", "x-api-key", "none")
# Endings of prefixes; ids end in letters and digits.
PREFIX_ENDINGS = "~-_.:*"
# Stand for required fields that are missing or wrong, while the others are checked.
PLACEHOLDERS = {"endpoint": f"https://host{CHAT_PATH}", "api_key_env": "KEY"}

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class ConfigError(Exception):
    """config.json cannot be used; `mistakes` has one sentence for each mistake in it."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider of config.json. `endpoint` is its chat-completions URL.

    An entry of `models` that ends in ``/`` is a prefix, like the entries of `model_prefixes`; every
    other entry is one exact model id. `thinking_models` maps a model to the chat template argument
    that replaces ``enable_thinking``. `extra_body_env` maps body fields to the variables that hold
    their values. `forward_headers` names headers of clients that the provider gets beside those of
    server/relay/header_policy.py.
    """

    endpoint: _Text
    api_key_env: _Text
    models: tuple[_Text, ...] = ()
    model_prefixes: tuple[_Text, ...] = ()
    thinking_models: dict[_Text, _Text] = {}
    no_sampling_params: tuple[_Text, ...] = ()
    models_endpoint: str = ""
    models_auth: str = "bearer"
    extra_headers: dict[_Text, str] = {}
    forward_headers: tuple[_Text, ...] = ()
    extra_body: dict[_Text, Any] = {}
    extra_body_env: dict[_Text, _Text] = {}
    log_stream_usage: bool = False

    @property
    def exact_models(self) -> tuple[str, ...]:
        return tuple(model for model in self.models if not model.endswith("/"))

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.model_prefixes + tuple(m for m in self.models if m.endswith("/"))

    @property
    def doubtful_models(self) -> list[str]:
        """Entries of `models` that look like prefixes and are taken for ids."""
        return [model for model in self.models if model[-1] in PREFIX_ENDINGS]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `default_provider` serves models that no provider lists; None: nobody does.

    `source` says where it was read from, `sha256` is the hash of its bytes.
    """

    providers: dict[str, ProviderConfig]
    default_provider: str | None
    source: str
    sha256: str


def load_config(path: Path) -> Config:
    """Read and check the file at `path`; raises `ConfigError` with every mistake found."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        sentence = f"Cannot read {path} ({error.strerror}); set CONFIG to the path of config.json"
        raise ConfigError([sentence]) from error
    return parse_config(raw, path.name, str(path))


def parse_config(raw: bytes, name: str = "config.json", source: str = "built in") -> Config:
    """`load_config` for bytes that were read already; `name` is the file's name in sentences."""
    try:
        document = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{name} is not valid JSON: {error}"]) from error
    if not isinstance(document, dict):
        raise ConfigError([f"{name} must be a JSON object"])
    providers, mistakes = _providers(document.get("providers"))
    default = document.get("default_provider", "nrp" if "nrp" in providers else None) or None
    if default is not None and (not isinstance(default, str) or default not in providers):
        known = ", ".join(providers) or "providers"
        mistakes.append(f"default_provider must be one of {known}, or null for none")
    mistakes += _unknown(document, ("providers", "default_provider"), "")
    if mistakes:
        raise ConfigError([f"{name}: {mistake}" for mistake in mistakes])
    return Config(
        providers=providers,
        default_provider=default,
        source=source,
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _providers(value: Any) -> tuple[dict[str, ProviderConfig], list[str]]:
    """The providers, as far as they can be read, and all mistakes in them."""
    if not isinstance(value, dict):
        return {}, ["providers must be a JSON object with an entry for each provider"]
    if not value:
        return {}, ["providers is empty; define at least one provider"]
    providers: dict[str, ProviderConfig] = {}
    mistakes: list[str] = []
    for name, fields in value.items():
        path = f"providers.{name}"
        if not isinstance(fields, dict):
            mistakes.append(f"{path} must be a JSON object")
            fields = {}
        else:
            mistakes += _unknown(fields, ProviderConfig.__struct_fields__, f"{path}.")
        readable = dict(PLACEHOLDERS)
        for field in msgspec.structs.fields(ProviderConfig):
            if field.name not in fields:
                if field.required and fields:
                    mistakes.append(f"{path}.{field.name} is missing")
            elif wrong := _wrong(fields[field.name], field.type, f"{path}.{field.name}"):
                mistakes += wrong
            else:
                readable[field.name] = fields[field.name]
        providers[name] = msgspec.convert(readable, ProviderConfig)
        mistakes += [f"{path}.{mistake}" for mistake in _mistakes(providers[name])]
    return providers, mistakes + _claimed_twice(providers)


def _wrong(value: Any, expected: Any, path: str) -> list[str]:
    """The mistakes in a value that should have the type `expected`, those of its items each."""
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        inner: list[str] = []
        if isinstance(value, list) and get_origin(expected) is tuple:
            for index, item in enumerate(value):
                inner += _wrong(item, get_args(expected)[0], f"{path}[{index}]")
        elif isinstance(value, dict) and get_origin(expected) is dict:
            for key, item in value.items():
                inner += _wrong(item, get_args(expected)[1], f"{path}.{key}")
        return inner or [f"{path}: {str(error).partition(' - at `')[0]}"]
    return []


def _unknown(fields: dict[str, Any], known: tuple[str, ...], path: str) -> list[str]:
    """A mistake for each name in `fields` that is not `known`; ``_comment`` and such may be."""
    found = []
    for name in fields:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            found.append(f"{path}{name} is not a known field; {advice}")
    return found


def _mistakes(provider: ProviderConfig) -> list[str]:
    """The mistakes in one provider, each starting with the name of the field."""
    found = []
    if problem := _url_problem(provider.endpoint):
        found.append(f"endpoint {problem}")
    if not VARIABLE_NAME.fullmatch(provider.api_key_env):
        found.append("api_key_env must be the name of an environment variable, not the key itself")
    if provider.models_endpoint and (problem := _url_problem(provider.models_endpoint, "/models")):
        found.append(f"models_endpoint {problem}")
    if provider.models_auth not in MODELS_AUTHS:
        found.append(f"models_auth must be one of {', '.join(MODELS_AUTHS)}")
    for field, variable in provider.extra_body_env.items():
        if not VARIABLE_NAME.fullmatch(variable):
            found.append(f"extra_body_env.{field} must be the name of an environment variable")
    for header, value in provider.extra_headers.items():
        if not HEADER_NAME.fullmatch(header) or any(c in value for c in "\r\n\0"):
            found.append(f"extra_headers.{header!r} is not a valid HTTP header")
        elif header.lower() in SET_BY_PROXY:
            found.append(f"extra_headers.{header} is set by the proxy itself; remove it")
    for header in provider.forward_headers:
        if not HEADER_NAME.fullmatch(header):
            found.append(f"forward_headers: {header!r} is not the name of an HTTP header")
        elif header.lower() in NEVER_FORWARDED:
            found.append(f"forward_headers: {header} is never forwarded; remove it")
    return found


def _url_problem(url: str, example: str = CHAT_PATH) -> str | None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in url):
        return f"must be a URL such as https://host/v1{example}"
    if parts.username is not None or parts.query or parts.fragment:
        return "must not contain a user, query or fragment"
    if example == CHAT_PATH and not parts.path.endswith(CHAT_PATH):
        return f"must be the chat-completions URL, which ends in {CHAT_PATH}"
    return None


def _claimed_twice(providers: dict[str, ProviderConfig]) -> list[str]:
    owners: dict[str, str] = {}
    found = []
    for name, provider in providers.items():
        for model in provider.exact_models + provider.prefixes:
            owner = owners.setdefault(model, name)
            if owner != name:
                found.append(f"providers.{name}: providers.{owner} also lists model {model!r}")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return found
