"""The composition root: which handler answers which route, and what it is given."""

from tornado.web import Application

from open_llm_proxy.server.client_stream import ClientApplication
from open_llm_proxy.server.handler import UnknownPathHandler
from open_llm_proxy.server.health import HealthHandler, MetricsHandler, ReadyHandler, RootHandler
from open_llm_proxy.server.models import ModelList, ModelsHandler
from open_llm_proxy.server.relay.handler import RelayHandler
from open_llm_proxy.server.services import Services


def make_metrics_app(services: Services) -> Application:
    """The application of METRICS_PORT: /metrics without a key."""
    handler = (r"/metrics", MetricsHandler, {"services": services, "needs_key": False})
    return ClientApplication(
        [handler],
        default_handler_class=UnknownPathHandler,
        default_handler_args={"services": services},
        log_function=lambda handler: None,
    )


def make_app(services: Services) -> Application:
    """The Tornado application; everything it works with comes in `services`."""
    common = {"services": services}
    models = common | {"models": ModelList(services.router, services.client)}
    return ClientApplication(
        [
            (r"/v1/chat/completions", RelayHandler, common),
            (r"/chat", RelayHandler, common),
            (r"/v1/completions", RelayHandler, common),
            (r"/v1/embeddings", RelayHandler, common),
            (r"/v1/responses", RelayHandler, common),
            (r"/v1/models", ModelsHandler, models),
            (r"/v1/models/(.+)", ModelsHandler, models),
            (r"/health", HealthHandler, common),
            (r"/ready", ReadyHandler, common),
            (r"/metrics", MetricsHandler, common),
            (r"/", RootHandler, common),
        ],
        default_handler_class=UnknownPathHandler,
        default_handler_args=common,
        # One line of stderr per request would say less than the log does, and cost more.
        log_function=lambda handler: None,
    )
