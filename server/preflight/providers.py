"""Proxy keys and providers: whether calls are accepted, and whether providers accept ours."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from open_llm_proxy.server.key_files import KeyFileError, all_keys
from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.proxy_key import SENDABLE
from open_llm_proxy.server.routing import Provider, Router
from open_llm_proxy.server.settings import DEFAULT_KEY_NAME, Settings
from open_llm_proxy.server.upstream.client import (
    PooledHTTPClient,
    StreamingRequest,
    Timeouts,
    UpstreamError,
)

SHORT_KEY_CHARACTERS = 16
SOON = timedelta(days=7)
TIMEOUT_SECONDS = 20.0


def check_keys(settings: Settings) -> list[Finding]:
    """Findings for the keys of this proxy's own clients."""
    return [*_proxy_keys(settings)]


def _proxy_keys(settings: Settings) -> Iterator[Finding]:
    area = "proxy keys"
    try:
        keys = all_keys(settings)
    except KeyFileError as error:
        yield Finding(area, Level.MISTAKE, str(error))
        return
    if not keys:
        text = "none, so that every call is refused; set PROXY_KEY"
        yield Finding(area, Level.PROBLEM, text)
        return
    for name, key in keys.items():
        shown = "PROXY_KEY" if name == DEFAULT_KEY_NAME else f"key {name}"
        if not SENDABLE.fullmatch(key.key):
            text = f"{shown} contains characters that no client can send; use ASCII without blanks"
            yield Finding(area, Level.MISTAKE, text)
        elif len(key.key) < SHORT_KEY_CHARACTERS:
            text = (
                f"{shown} has fewer than {SHORT_KEY_CHARACTERS} characters; make a longer one "
                "with `open-llm-proxy keys new`"
            )
            yield Finding(area, Level.WARNING, text)
        if key.expires_at is not None and key.expires_at < datetime.now(UTC) + SOON:
            has = "has expired" if key.is_expired() else "expires"
            text = f"{shown} {has} at {key.expires_at:%Y-%m-%d %H:%M}Z; make another one"
            yield Finding(area, Level.WARNING, text)
    yield Finding(area, Level.OK, ", ".join(keys))


def check_providers(router: Router, default: str | None) -> list[Finding]:
    """Findings for the providers' own keys; nothing is sent."""
    found = []
    for provider in router.providers.values():
        found.append(_provider(provider, provider.name == default))
        if doubtful := provider.config.doubtful_models:
            text = f"models has {', '.join(doubtful)}, taken for whole ids; prefixes belong into "
            found.append(Finding(_area(provider), Level.WARNING, f"{text}model_prefixes"))
    return found


def _provider(provider: Provider, is_default: bool) -> Finding:
    area, variable = _area(provider), provider.config.api_key_env
    if provider.api_key is None:
        text = f"no key, so that calls of its models get 503; set {variable}"
        return Finding(area, Level.PROBLEM if is_default else Level.NOTE, text)
    if not _can_be_sent(provider.api_key):
        text = f"{variable} contains a line break or characters that no header can carry"
        return Finding(area, Level.PROBLEM, f"{text}; correct it")
    models = ", ".join(
        [*provider.config.exact_models, *(f"{p}…" for p in provider.config.prefixes)]
    )
    default = "; default" if is_default else ""
    return Finding(area, Level.OK, f"key set{default}; models {models or 'none listed'}")


async def probe_providers(router: Router, client: PooledHTTPClient) -> list[Finding]:
    """Ask each provider that has a key for its models."""
    asked = [p for p in router.providers.values() if p.api_key and _can_be_sent(p.api_key)]
    found = await asyncio.gather(*(_probe(provider, client) for provider in asked))
    return [finding for findings in found for finding in findings]


async def _probe(provider: Provider, client: PooledHTTPClient) -> list[Finding]:
    area, url = _area(provider), provider.models_url()
    request = StreamingRequest(
        url,
        headers=list(provider.models_headers().items()),
        timeouts=Timeouts(connect_seconds=TIMEOUT_SECONDS, total_seconds=TIMEOUT_SECONDS),
        keeps_trying=False,
    )
    try:
        answer = await client.fetch(request, raise_error=False)
    except UpstreamError as error:
        return [Finding(area, Level.PROBLEM, f"GET {url}: {error}; check endpoint and network")]
    if answer.code in (401, 403):
        text = f"answered {answer.code}: it does not accept the key; correct "
        return [Finding(area, Level.PROBLEM, f"GET {url} {text}{provider.config.api_key_env}")]
    listed = _listed(answer.body) if answer.code == 200 else None
    if listed is None:
        text = f"GET {url} answered {answer.code} without a list of models; check endpoint"
        return [Finding(area, Level.WARNING, text)]
    missing = [model for model in provider.config.exact_models if model not in listed]
    accepts = "accepts the key and " if provider.config.models_auth != "none" else ""
    found = [Finding(area, Level.OK, f"{accepts}lists {len(listed)} models")]
    if missing:
        text = f"does not list {', '.join(missing)}; correct models in config.json"
        found.append(Finding(area, Level.WARNING, text))
    return found


def _listed(body: bytes) -> set[str] | None:
    try:
        models = json.loads(body)["data"]
        return {str(model["id"]) for model in models}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _can_be_sent(key: str) -> bool:
    """Whether a key can stand behind `Bearer` in a header."""
    return key.isascii() and key.isprintable() and " " not in key


def _area(provider: Provider) -> str:
    return f"provider {provider.name}"
