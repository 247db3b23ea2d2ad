"""The composition root: which handler answers which route, and what it is given."""

from collections.abc import Callable, Mapping
from functools import partial

from open_llm_proxy.server.handler import ProxyHandler, UnknownPathHandler, UnreadableHandler
from open_llm_proxy.server.health import HealthHandler, MetricsHandler, ReadyHandler, RootHandler
from open_llm_proxy.server.http1.connection import ClientConnection
from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.models import ModelList, ModelsHandler
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.relay.handler import RelayHandler
from open_llm_proxy.server.services import Services

MakeHandler = Callable[[Services, ClientConnection, Request], ProxyHandler]


class App:
    """Finds a request's handler by its path; one that ends in a slash stands for all below it."""

    def __init__(self, services: Services, routes: Mapping[str, MakeHandler]) -> None:
        self._services = services
        self._routes = routes
        self._below = {
            path: make for path, make in routes.items() if path != "/" and path[-1] == "/"
        }

    def begin(self, connection: ClientConnection, request: Request) -> ProxyHandler:
        return self._maker(request.path)(self._services, connection, request)

    def refuse(self, connection: ClientConnection, problem: ProxyError) -> ProxyHandler:
        return UnreadableHandler(self._services, connection, problem)

    def _maker(self, path: str) -> MakeHandler:
        found = self._routes.get(path)
        if found is None:
            below = (make for start, make in self._below.items() if path.startswith(start))
            found = next(below, UnknownPathHandler)
        return found


def make_metrics_app(services: Services) -> App:
    """The application of METRICS_PORT: /metrics without a key."""
    return App(services, {"/metrics": partial(MetricsHandler, needs_key=False)})


def make_app(services: Services) -> App:
    """The proxy's application; everything it works with comes in `services`."""
    models = partial(ModelsHandler, models=ModelList(services.router, services.client))
    return App(
        services,
        {
            "/v1/chat/completions": RelayHandler,
            "/chat": RelayHandler,
            "/v1/completions": RelayHandler,
            "/v1/embeddings": RelayHandler,
            "/v1/responses": RelayHandler,
            "/v1/models": models,
            "/v1/models/": models,
            "/health": HealthHandler,
            "/ready": ReadyHandler,
            "/metrics": MetricsHandler,
            "/": RootHandler,
        },
    )
