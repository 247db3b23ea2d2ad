"""Which provider gets a call: exact ids first, then the longest prefix, then the default.

`qwen` listed by one provider never swallows `qwen3` of another, as only entries that end in
``/`` and those of `model_prefixes` match more than themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from open_llm_proxy.server.config import CHAT_PATH, Config, ProviderConfig

Rule = Literal["exact", "prefix", "default"]
# The label of models that config.json does not list: their ids come from clients.
OTHER = "other"
# Anthropic's API refuses requests that name none; its list of models is as it was in this one.
ANTHROPIC_VERSION = "2023-06-01"


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider with what the environment adds to its entry in config.json."""

    name: str
    config: ProviderConfig
    api_key: str | None = field(repr=False)
    extra_body: Mapping[str, Any] = field(repr=False)

    @property
    def is_configured(self) -> bool:
        return self.api_key is not None

    def url(self, path: str) -> str:
        """The provider's URL for a path of ours such as ``/v1/embeddings``."""
        base = self.config.endpoint.removesuffix(CHAT_PATH)
        return base + path.removeprefix("/v1")

    def models_url(self) -> str:
        """Where its list of models is."""
        return self.config.models_endpoint or self.url("/v1/models")

    def models_headers(self) -> dict[str, str]:
        """What its list of models is asked for with."""
        if self.config.models_auth == "none":
            return {}
        if self.config.models_auth == "x-api-key":
            return {"x-api-key": str(self.api_key), "anthropic-version": ANTHROPIC_VERSION}
        return {"Authorization": f"Bearer {self.api_key}"}

    def takes_sampling(self, model: str) -> bool:
        """Whether `model` takes ``temperature`` and the like."""
        return not model.startswith(self.config.no_sampling_params)

    def thinking_argument(self, model: str) -> str | None:
        """The chat template argument that switches thinking for `model`, if it has one."""
        return self.config.thinking_models.get(model)


@dataclass(frozen=True, slots=True)
class Route:
    """`label` names the model in metrics: its id, its prefix as ``anthropic/…``, or `other`."""

    provider: Provider
    rule: Rule
    label: str


class Router:
    """Routes model ids; made once from config.json and the environment."""

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        self.providers = {
            name: _provider(name, provider, environment)
            for name, provider in config.providers.items()
        }
        every = self.providers.values()
        self._exact = {
            model: Route(provider, "exact", model)
            for provider in every
            for model in provider.config.exact_models
        }
        self._prefixes = sorted(
            (
                (prefix, Route(provider, "prefix", f"{prefix}…"))
                for provider in every
                for prefix in provider.config.prefixes
            ),
            key=lambda pair: -len(pair[0]),
        )
        default = config.default_provider
        self._default = (
            Route(self.providers[default], "default", OTHER) if default is not None else None
        )

    def route(self, model: str) -> Route | None:
        """Where `model` goes and by which rule; None where nobody serves it."""
        if (route := self._exact.get(model)) is not None:
            return route
        for prefix, route in self._prefixes:
            if model.startswith(prefix):
                return route
        return self._default

    def labels(self) -> list[tuple[str, str]]:
        """Every pair of provider and label that a route can have."""
        routes = [*self._exact.values(), *(route for _, route in self._prefixes)]
        if self._default is not None:
            routes.append(self._default)
        return [(route.provider.name, route.label) for route in routes]

    def served(self) -> list[str]:
        """The exact ids and the prefixes (as ``anthropic/…``) that are routed on purpose."""
        return sorted(self._exact) + sorted(f"{prefix}…" for prefix, _ in self._prefixes)


def _provider(name: str, config: ProviderConfig, environment: Mapping[str, str]) -> Provider:
    from_environment = {
        field_name: environment[variable]
        for field_name, variable in config.extra_body_env.items()
        if environment.get(variable)
    }
    return Provider(
        name=name,
        config=config,
        api_key=environment.get(config.api_key_env, "").strip() or None,
        extra_body={**config.extra_body, **from_environment},
    )
