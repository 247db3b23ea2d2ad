"""/v1/models: what this deployment routes, asked of the providers and cached.

A provider's own list is filtered through the router itself, so a model stands here only if a
call for it would reach that provider. A provider that does not answer keeps its last list, and
the ids of config.json are always there.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.httputil import HTTPHeaders

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.json_text import NotJSON, decode_json
from open_llm_proxy.server.relay.masked_answer import KeyMask
from open_llm_proxy.server.routing import Provider, Router
from open_llm_proxy.server.services import Services
from open_llm_proxy.server.upstream.client import StreamingRequest, UpstreamError

log = logging.getLogger(__name__)

CACHE_SECONDS = 300.0
RETRY_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0

Model = dict[str, Any]


class ModelList:
    """The models of all providers; one refresh at a time, however many ask."""

    def __init__(self, router: Router, client: AsyncHTTPClient) -> None:
        self._router = router
        self._client = client
        self._known: dict[str, list[Model]] = {}
        self._expires = 0.0
        self._refresh: asyncio.Task[None] | None = None

    async def models(self) -> list[Model]:
        """OpenAI's model objects, sorted by id."""
        if time.monotonic() >= self._expires:
            if self._refresh is None or self._refresh.done():
                self._refresh = asyncio.ensure_future(self._ask_all())
            await asyncio.shield(self._refresh)
        found: dict[str, Model] = {}
        for provider in self._router.providers.values():
            for model in provider.config.exact_models:
                found[model] = _model(model, provider.name)
        for name, models in self._known.items():
            for model_object in models:
                if self._belongs(model_object["id"], name):
                    found[model_object["id"]] = model_object | {"owned_by": name}
        return [found[model] for model in sorted(found)]

    def _belongs(self, model: str, provider: str) -> bool:
        route = self._router.route(model)
        return route is not None and route.provider.name == provider

    async def _ask_all(self) -> None:
        asked = [p for p in self._router.providers.values() if p.is_configured]
        answers = await asyncio.gather(*(self._ask(provider) for provider in asked))
        for provider, models in zip(asked, answers, strict=True):
            if models is not None:
                self._known[provider.name] = models
        seconds = CACHE_SECONDS if all(a is not None for a in answers) else RETRY_SECONDS
        self._expires = time.monotonic() + seconds

    async def _ask(self, provider: Provider) -> list[Model] | None:
        request = StreamingRequest(
            provider.url("/v1/models"),
            headers=HTTPHeaders({"Authorization": f"Bearer {provider.api_key}"}),
            connect_timeout=TIMEOUT_SECONDS,
            request_timeout=TIMEOUT_SECONDS,
        )
        try:
            answer = await self._client.fetch(request, raise_error=False)
            body = KeyMask(str(provider.api_key)).whole(answer.body)
            document = decode_json(body) if answer.code == 200 else None
        except (UpstreamError, NotJSON) as error:
            log.warning("Provider %s: cannot list its models: %s", provider.name, error)
            return None
        listed = document.get("data") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            log.warning(
                "Provider %s: cannot list its models: status %d without a list in `data`",
                provider.name,
                answer.code,
            )
            return None
        return [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]


class ModelsHandler(ProxyHandler):
    """`GET /v1/models` and `/v1/models/{id}`, for the proxy's own key holders."""

    def initialize(self, services: Services, models: ModelList | None = None) -> None:
        super().initialize(services)
        assert models is not None, "given by the route table"
        self._models = models

    def judge(self) -> Awaitable[None] | None:
        if self.request.method != "OPTIONS":
            self.check_key()
        return super().judge()

    async def get(self, model: str | None = None) -> None:
        models = await self._models.models()
        if model is None:
            self.answer_json(200, {"object": "list", "data": models})
            return
        for found in models:
            if found["id"] == model:
                self.answer_json(200, found)
                return
        raise proxy_errors.model_not_found(model, self.services.router.served())


def _model(model: str, provider: str) -> Model:
    return {"id": model, "object": "model", "created": 0, "owned_by": provider}
