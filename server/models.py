"""/v1/models: what this deployment routes, asked of the providers and cached.

A provider's own list is filtered through the router itself, so a model stands here only if a
call for it would reach that provider. A provider that does not answer keeps its last list, and
the ids of config.json are always there.

A list may have a hundred thousand models. It is read and written out once per refresh, some models
at a time with the event loop in between; an answer is bytes that are there already.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import unquote

import msgspec

from open_llm_proxy.server import proxy_errors
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.http1.connection import ClientConnection
from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.json_text import NotJSON, decode_json
from open_llm_proxy.server.relay.masked_answer import MaskedAnswer
from open_llm_proxy.server.routing import Provider, Router
from open_llm_proxy.server.services import Services
from open_llm_proxy.server.upstream.client import (
    PooledHTTPClient,
    StreamingRequest,
    Timeouts,
    UpstreamError,
)

log = logging.getLogger(__name__)

CACHE_SECONDS = 300.0
RETRY_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
MAX_LIST_BYTES = 64 << 20
MODELS_PER_TURN = 200


class _Document(msgspec.Struct):
    data: list[msgspec.Raw]


class NoList(Exception):
    """A provider gave no list of models; the message says why."""


class ModelList:
    """The models of all providers; one refresh at a time, however many ask."""

    def __init__(self, router: Router, client: PooledHTTPClient) -> None:
        self._router = router
        self._client = client
        self._known: dict[str, dict[str, bytes]] = {}  # by provider: id and OpenAI's object
        self._by_id: dict[str, bytes] = {}
        self._page = b""
        self._expires = 0.0
        self._refresh: asyncio.Task[None] | None = None

    async def page(self, allowed: Callable[[str], bool] | None = None) -> bytes:
        """OpenAI's list of model objects, sorted by id; those only that are `allowed`."""
        await self._be_fresh()
        return self._page if allowed is None else _page(self._by_id, filter(allowed, self._by_id))

    async def model(self, model: str) -> bytes | None:
        """One model's object, None where nobody serves it."""
        await self._be_fresh()
        if (found := self._by_id.get(model)) is not None:
            return found
        route = self._router.route(model)
        return None if route is None else _rendered(_bare(model), route.provider.name)

    async def _be_fresh(self) -> None:
        if time.monotonic() >= self._expires:
            if self._refresh is None or self._refresh.done():
                self._refresh = asyncio.ensure_future(self._ask_all())
            await asyncio.shield(self._refresh)

    async def _ask_all(self) -> None:
        asked = [p for p in self._router.providers.values() if p.is_configured]
        answers = await asyncio.gather(*(self._ask(provider) for provider in asked))
        for provider, models in zip(asked, answers, strict=True):
            if models is not None:
                self._known[provider.name] = models
        found: dict[str, bytes] = {}
        for provider in self._router.providers.values():
            for model in provider.config.exact_models:
                found[model] = _rendered(_bare(model), provider.name)
        for models in self._known.values():
            found |= models
        self._by_id = found
        self._page = _page(found, found)
        seconds = CACHE_SECONDS if all(a is not None for a in answers) else RETRY_SECONDS
        self._expires = time.monotonic() + seconds

    async def _ask(self, provider: Provider) -> dict[str, bytes] | None:
        """The provider's models that are routed to it; None where it gives no list."""
        try:
            return {
                model["id"]: _rendered(model, provider.name)
                async for model in _objects(await self._listed(provider))
                if self._belongs(model["id"], provider.name)
            }
        except (UpstreamError, NotJSON, NoList) as error:
            log.warning("Provider %s: cannot list its models: %s", provider.name, error)
            return None

    async def _listed(self, provider: Provider) -> bytes:
        request = StreamingRequest(
            provider.models_url(),
            headers=list(provider.models_headers().items()),
            timeouts=Timeouts(connect_seconds=TIMEOUT_SECONDS, total_seconds=TIMEOUT_SECONDS),
            keeps_trying=False,
        )
        pieces: list[bytes] = []
        size = 0
        async with self._client.stream(request) as upstream:
            if upstream.status != 200:
                raise NoList(f"status {upstream.status}")
            source = MaskedAnswer(upstream, str(provider.api_key))
            while piece := await source.read():
                size += len(piece)
                if size > MAX_LIST_BYTES:
                    raise NoList(f"the list is longer than {MAX_LIST_BYTES} bytes")
                pieces.append(piece)
        return b"".join(pieces)

    def _belongs(self, model: str, provider: str) -> bool:
        route = self._router.route(model)
        return route is not None and route.provider.name == provider


async def _objects(document: bytes) -> AsyncIterator[dict[str, Any]]:
    """The model objects of a list; raises `NotJSON` or `NoList` where it is none."""
    try:
        listed: list[Any] = msgspec.json.decode(document, type=_Document).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = decode_json(document)
        listed = decoded.get("data") if isinstance(decoded, dict) else None  # type: ignore[assignment]
        if not isinstance(listed, list):
            raise NoList("status 200 without a list in `data`") from None
    for index, model in enumerate(listed):
        if index % MODELS_PER_TURN == 0:
            await asyncio.sleep(0)
        if isinstance(model, msgspec.Raw):
            model = decode_json(bytes(model))
        if isinstance(model, dict) and isinstance(model.get("id"), str):
            yield model


class ModelsHandler(ProxyHandler):
    """`GET /v1/models` and `/v1/models/{id}`, for the proxy's own key holders."""

    def __init__(
        self,
        services: Services,
        connection: ClientConnection,
        request: Request,
        models: ModelList,
    ) -> None:
        super().__init__(services, connection, request)
        self._models = models

    def judge(self) -> None:
        if self.request.method != "OPTIONS":
            self._key_name = self.check_key()
        super().judge()

    async def get(self) -> None:
        keys = self.services.keys
        model = unquote(self.path.removeprefix("/v1/models").removeprefix("/"))
        if not model:
            page = await self._models.page(keys.allowed(self._key_name))
            self.answer_text(200, "application/json", page)
            return
        keys.check_model(self._key_name, model)
        found = await self._models.model(model)
        if found is None:
            raise proxy_errors.model_not_found(model, self.services.router.served())
        self.answer_text(200, "application/json", found)


def _page(by_id: dict[str, bytes], models: Iterable[str]) -> bytes:
    return b'{"object":"list","data":[%b]}' % b",".join(by_id[model] for model in sorted(models))


def _bare(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0}


def _rendered(model: dict[str, Any], provider: str) -> bytes:
    named = model | {"owned_by": provider}
    try:
        return msgspec.json.encode(named)
    except UnicodeEncodeError:
        return json.dumps(named).encode()
